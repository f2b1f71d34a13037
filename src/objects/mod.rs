//! Objects in S3-compatible storage: the client, URIs, and the embedded server with its crash-safe
//! store. Everything that reads or writes objects goes through [`Objects`], also when the server at
//! the other end is our own: one path, so what is tested on one is what runs on the other.

mod client;
pub mod embedded;
mod uri;

pub use client::{Endpoint, Fetched, Head, Listed, Objects};
pub use uri::Uri;
