//! [`App`]: everything a request or a job may reach. It is built once from [`Config`] and handed down;
//! nothing is global, so a test can swap any field.

use crate::clock::Clock;
use crate::config::Config;
use crate::store::Db;

/// The service's parts. Handlers take it as `State<Arc<App>>`.
pub struct App {
    /// The settings it was built from.
    pub config: Config,
    /// Time, ids and keys.
    pub clock: Clock,
    /// What the service remembers.
    pub db: Db,
}
