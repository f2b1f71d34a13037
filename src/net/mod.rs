//! TCP listeners: the accept loop that the API and the embedded S3 server share, with deadlines for
//! slow clients, a share of the connections for each address, and an orderly end. Our own loop,
//! because `axum::serve` has no deadline for a half-sent request head.

mod admission;
mod reply;
mod serve;
mod source;
mod streams;
mod timed_stream;
mod timeouts;

use std::time::Duration;

pub use serve::serve;
pub use source::Source;

/// Limits of one listener: what one client, and all clients together, may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Deadline of a request's head from its first byte, and of a new connection's first request.
    pub head: Duration,
    /// Longest pause between two requests of a connection.
    pub idle: Duration,
    /// Longest time that a client may leave a reply unread without taking any of it.
    pub stall: Duration,
    /// Connections open at once.
    pub connections: usize,
    /// Connections that one address may hold at once (an IPv6 address counts as its /64 network). Clients on
    /// this machine are exempt.
    pub share: usize,
    /// Connections kept back for clients on this machine, the service's own among them.
    pub reserve: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            connections: 1024,
            share: 512,
            reserve: 128,
        }
    }
}
