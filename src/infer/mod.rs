//! Answers from a base model with an adapter: sampling, the KV cache, what is loaded where.
