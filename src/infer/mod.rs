//! Answers from a base model with an adapter: sampling, the KV cache, what is loaded where.
//! [`Engine`] keeps models in memory and answers prompts; [`Speaker`] is one model answering.
//! Everything here blocks: call it from a thread that may.

mod cache;
mod detokenize;
mod engine;
mod generate;
mod loaded;
mod sampling;
mod stops;

pub use cache::Cache;
pub use engine::{Adapter, Capacity, Engine, Prompt, Target};
pub use generate::{Answer, Options, Piece, Speaker, StopReason};
