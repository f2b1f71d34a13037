//! The S3 server inside: `s3s` speaks the protocol and checks signatures, the store behind it is
//! our own and loses nothing that it acknowledged.
//!
//! A put streams into a new file with a random name while its digests are computed; the file and
//! its folder are made durable; one transaction then points the object's row at the file, and only
//! after the commit the old file goes. Whatever dies in between leaves either the old object or the
//! new one, and at most a stray file, which the next start sweeps away. Keys are rows, never paths.

mod addressing;
mod assembly;
mod attributes;
mod body;
mod buckets;
mod checksums;
mod conditions;
mod cors;
mod crc;
mod described;
mod digest;
mod expiry;
#[cfg(test)]
mod faults;
mod files;
mod index;
mod intake;
mod listing;
mod multipart;
mod objects;
mod operations;
mod server;
mod settings;
mod signatures;
mod tags;
mod unused;
mod upload_listing;
mod walls;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use server::{Server, start};
pub use walls::{Holder, Keys, Limits};

/// Where the server listens and keeps its objects.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address; port 0 takes a free one, [`Server::address`] says which.
    pub listen: SocketAddr,
    /// Folder of the objects; one process at a time may use it.
    pub folder: PathBuf,
    /// What `GetBucketLocation` answers.
    pub region: String,
    /// Owns the buckets that the service itself makes, and those of releases that knew no owners.
    pub account: String,
    /// Domains whose subdomains are buckets, besides `localhost`.
    pub domains: Vec<String>,
}
