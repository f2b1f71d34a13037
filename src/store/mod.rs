//! What the service remembers, in SQL: one query text for SQLite and Postgres, one file per table.
//! Every query that serves a caller names the caller's account, so another account's row is not
//! found rather than refused. State changes say which state they expect, and report whether a row
//! changed; `jobs/` gives those answers their meaning.

mod db;
mod page;
mod schema;
mod status;
mod text;

pub mod accounts;
pub mod custom_models;
pub mod deployments;
pub mod imported_models;
pub mod imports;
pub mod job_events;
pub mod jobs;
pub mod keys;
pub mod queue;
pub mod root_keys;
pub mod scratch;
pub mod service_secrets;
pub mod serving;
pub mod tags;
pub mod throughputs;

pub use db::Db;
pub use page::{Cursor, Filter, Listed, Order};
pub use schema::Schema;
pub use status::{
    Commitment, CustomizationType, DeploymentStatus, ImportKind, ImportStatus, ModelStatus, Status, Task, TaskStatus,
    Tasks, ThroughputStatus, UpdateStatus,
};
pub use text::Json;
