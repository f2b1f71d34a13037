//! Text to token batches. [`jsonl`] reads lines, [`records`] says what they mean, [`chat`] writes a
//! conversation the way the base model knows it, [`encode`] turns text into tokens and marks what is
//! learned, [`mod@prepare`] does all of it for whole files and either writes a [`Corpus`] or reports every
//! bad line, and [`Batches`] deals the corpus out in a seeded order. [`Prompts`] are what is answered and graded.

pub mod batches;
pub mod chat;
pub mod corpus;
pub mod encode;
mod invocation_logs;
mod json;
pub mod jsonl;
pub mod preference;
pub mod prepare;
pub mod prompts;
mod questions;
pub mod records;
pub mod report;
mod shuffle;

pub(crate) use batches::share_out;
pub use batches::{Batch, BatchSettings, Batches, Cursor, LargestMicroBatch, MicroBatch, in_order, largest_in_order};
pub use corpus::{Corpus, Manifest};
pub use encode::{Encoded, Encoder};
pub use invocation_logs::{Logged, MetadataFilters};
pub use preference::Preference;
pub use prepare::{Options, Prepared, Progress, Source, prepare};
pub use prompts::{PromptRecord, Prompts, ReadPrompts};
pub use questions::{Asked, Question};
pub use records::{Conversation, Format, Message, Objective, Record, Role, join_blocks};
pub use report::{BadLine, DataReport, REPORT_FILE};
