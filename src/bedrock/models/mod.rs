//! Custom models.

pub mod create;
pub mod delete;
pub mod get;
pub mod list;

use crate::error::Error;

/// The same answer for a model that is not there and for one that is not the caller's.
fn no_such_model(identifier: &str) -> Error {
    Error::not_found(format!("Could not find the custom model '{identifier}'"))
}
