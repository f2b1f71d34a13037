//! Tags, on everything of the caller's that has an ARN.

pub mod list;
pub mod tag;
pub mod untag;

use crate::error::Error;

/// The same answer for a resource that is not there and for one that is not the caller's.
fn no_such_resource(arn: &str) -> Error {
    Error::not_found(format!("Could not find the resource '{arn}'")).about(arn)
}
