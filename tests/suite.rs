//! The integration tests, one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "tests read the real clock and their own environment")]

mod api;
mod clients;
mod data;
mod docker;
mod faults;
mod fuzz;
mod golden;
mod infer;
mod jobs;
mod memory;
mod objects;
mod reinforcement;
mod support;
mod upgrade;
