//! The API over real sockets: who gets in, what is refused, and what is answered.

mod accounts;
mod auth;
mod bodies;
mod cors;
mod customization;
mod docs;
mod doctor;
mod health;
mod idempotency;
mod imports;
mod jobs;
mod keys;
mod limits;
mod merged;
mod openapi;
mod paging;
mod preview;
mod private;
mod programs;
mod runtime;
mod serving;
mod tags;
mod unauthorised;
mod untrusted;
