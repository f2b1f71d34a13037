//! Objects in S3-compatible storage. [`Objects`] is the client (AWS, MinIO, Ceph, or our own
//! server), [`Uri`] an `s3://bucket/key`, and [`embedded`] the server that is started when no
//! endpoint is configured: the same protocol to ourselves, so there is one path to test.

mod client;
pub mod embedded;
mod failure;
#[cfg(test)]
mod fake;
mod folder;
mod listing;
mod reach;
mod read;
mod upload;
mod uri;
mod wall;
mod write;

pub use client::{Endpoint, Head, Objects};
pub use failure::{unreadable, unwritable};
pub use folder::{Entry, FOLDER_LISTING, Folder};
pub use listing::{Listed, Pages};
pub use read::{Fetched, Opened};
pub use uri::Uri;
pub use wall::{Grants, Wall, is_plain, is_within};
pub use write::{Precondition, Put};
