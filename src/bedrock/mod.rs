//! Bedrock's operations, one file each: its shapes, its description, its handler, its tests.

pub mod arn;
pub mod constraint;
pub mod customization;
pub mod deployments;
pub mod foundation;
pub mod idempotency;
pub mod imported_models;
pub mod imports;
pub mod jobs;
pub mod listing;
pub mod models;
pub mod roles;
pub mod runtime;
pub mod shapes;
pub mod tags;
pub mod throughputs;
mod walls;
