//! From a file of records to batches of tokens.
mod chat;
mod learning;
mod messages;
mod order;
mod preparing;
pub(crate) mod tokens;
