//! Imported models: what model import jobs make.

pub mod delete;
pub mod get;
pub mod list;

use super::constraint::texts;
use crate::error::Error;

texts! {
    /// An imported model's ARN or name.
    ImportedModelIdentifier, 1..=1011, r"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:imported-model/[a-z0-9]{12})|(([0-9a-zA-Z][_-]?)+)";
}

/// The same answer for a model that is not there and for one that is not the caller's.
fn no_such_model(identifier: &str) -> Error {
    Error::not_found(format!("Could not find the imported model '{identifier}'"))
}
