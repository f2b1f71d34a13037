//! The integration tests, one binary.
mod jobs;
