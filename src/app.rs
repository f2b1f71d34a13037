//! [`App`]: everything a request or a job may reach. It is built once from [`Config`] and handed down;
//! nothing is global, so a test can swap any field.

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::config::Config;
use crate::models::Registry;
use crate::objects::Objects;
use crate::store::Db;

/// The service's parts. Handlers take it as `State<Arc<App>>`.
#[derive(Debug)]
pub struct App {
    /// The settings it was built from.
    pub config: Config,
    /// Time, ids and keys.
    pub clock: Clock,
    /// What the service remembers.
    pub db: Db,
    /// Data sets in, artifacts out.
    pub objects: Objects,
    /// The base models.
    pub registry: Registry,
    /// Rung when a job was accepted, so that a worker of the same process takes it at once.
    pub job_accepted: Notify,
}
