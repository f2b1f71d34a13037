//! Answers from a base model with an adapter: sampling, the KV cache, what is loaded where.
//! [`Engine`] keeps models in memory and answers prompts; [`Speaker`] is one model answering; [`Batch`] is one
//! model that goes on with many sequences at once, and [`complete()`] answers many prompts through one.
//! Everything here blocks: call it from a thread that may.

mod batch;
mod cache;
mod complete;
mod detokenize;
mod engine;
mod generate;
mod loaded;
mod rooms;
mod sampling;
mod score;
mod stops;

pub use batch::{Batch, Drawn, SequenceId};
pub use cache::Cache;
pub use complete::{Completion, Request, complete};
pub use engine::{Adapter, Capacity, Engine, Prompt, Target};
pub use generate::{Answer, Options, Piece, Speaker, StopReason};
pub use sampling::Sampling;
pub use score::score;
