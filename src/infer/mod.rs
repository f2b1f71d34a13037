//! Answers from a base model with adapters: sampling, keys and values, what is loaded where, who is decoded together.
//! [`Engine`] keeps models in memory and answers prompts; [`Scheduler`] lets the requests to one base share its
//! steps; [`Batch`] is one model that goes on with many sequences at once, each with a tuning of its own, and
//! [`complete()`] answers many prompts through one. Everything here blocks: call it from a thread that may.

mod answer;
mod batch;
mod complete;
mod detokenize;
mod engine;
mod loaded;
mod mixed;
mod prompt_length;
mod rooms;
mod sampling;
mod scheduler;
mod score;
mod stops;

pub use answer::{Answer, Options, Piece, StopReason};
pub use batch::{Asked, Batch, Drawn, SequenceId, Tuned};
pub use complete::{Completion, Request, complete};
pub use engine::{Adapter, Capacity, Engine, Prompt, Target};
pub use sampling::Sampling;
pub use scheduler::{Limits, Scheduler};
pub use score::score;
