//! Bedrock's operations, one file each: its shapes, its description, its handler, its tests.

pub mod arn;
pub mod constraint;
pub mod foundation;
pub mod jobs;
pub mod listing;
pub mod models;
pub mod roles;
pub mod runtime;
pub mod shapes;
