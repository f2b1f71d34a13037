//! What a job is, and who may do what to it: no HTTP, no tensors. [`job`] says which state may follow
//! which, [`queue`] hands jobs to workers so that each ends exactly once, [`sweep`] ends what no worker
//! will end.

pub mod job;
pub mod queue;
pub mod sweep;

pub use queue::{Claim, Held, Queue};
