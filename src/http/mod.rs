//! The wire: accepts connections, bounds what a client may send, authenticates it, and turns errors
//! into Bedrock's replies. It knows no operation; [`crate::routes`] says which there are.

pub mod auth;
mod bodies;
pub mod cors;
pub mod credentials;
pub mod docs;
pub mod extract;
pub mod health;
pub mod identify;
pub mod json;
pub mod openapi;
pub mod page;
pub mod places;
pub mod policy;
pub mod rate;
pub mod receive;
pub mod reply;
pub mod serve;
pub mod sigv4;

pub use auth::Caller;
pub use serve::serve;
