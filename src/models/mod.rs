//! The base models: which there are, how their weights are read, and the decoder that runs them.
