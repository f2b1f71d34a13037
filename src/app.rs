//! [`App`]: everything a request or a job may reach. It is built once from [`Config`] and handed down;
//! nothing is global, so a test can swap any field.

pub mod artifact;
pub mod deployments;
pub mod door;
pub mod heap;
pub(crate) mod layout;
pub mod model_cache;
pub mod models;
pub mod preview;
pub mod readiness;
pub mod rounds;
pub mod supervision;
pub mod walls;

use std::fmt;
use std::sync::Arc;

use candle_core::Device;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::door::Door;
use self::model_cache::ModelCache;
use self::preview::Previews;
use self::readiness::Readiness;
use self::supervision::Parts;
use self::walls::Walls;
use crate::clock::Clock;
use crate::config::{Budgets, ByteSize, Config};
use crate::infer::{Capacity, Engine, Limits};
use crate::models::Registry;
use crate::objects::{Objects, Wall};
use crate::store::Db;

/// The service's parts. Handlers take it as `State<Arc<App>>`.
pub struct App {
    /// The settings it was built from.
    pub config: Config,
    /// Time, ids and keys.
    pub clock: Clock,
    /// What the service remembers.
    pub db: Db,
    /// Data sets in, artifacts out, with the rights of the service itself: for what belongs to an account see
    /// [`App::objects_of`].
    pub objects: Objects,
    /// The same for requests: [`App::objects_for_request`].
    request_objects: Objects,
    /// Walls between accounts: the parts of object storage that each may use.
    pub walls: Arc<dyn Wall>,
    /// The base models.
    pub registry: Registry,
    /// Answers prompts; it blocks, so it is called from a blocking thread.
    pub engine: Arc<Engine>,
    /// Bytes that a job may take where it runs, as far as this process knows.
    pub job_memory: Option<u64>,
    /// Where each answer under way has a place.
    pub door: Door,
    /// Model cache: files fetched from object storage to be served.
    pub model_cache: Arc<ModelCache>,
    /// Permits to count tokens, which keeps a core busy.
    pub counting: Arc<Semaphore>,
    /// The checkpoints of running jobs that were asked.
    pub previews: Previews,
    /// Rung when a job or a model to bring in was accepted, so that a worker of the same process takes it at once.
    pub job_accepted: Notify,
    /// Rung when a deployment was accepted or changed, so that this process makes it ready at once.
    pub deployment_accepted: Notify,
    /// The supervised parts of this process.
    pub parts: Parts,
    /// Readiness: the last answer of `/readyz`.
    pub readiness: Readiness,
    /// Cancelled shortly before a stopping process ends: answers under way say so and end.
    pub closing: CancellationToken,
}

impl App {
    /// The parts that are opened from outside; the rest is made here.
    pub fn new(config: Config, budgets: &Budgets, clock: Clock, db: Db, objects: Objects, registry: Registry) -> Self {
        let quantized = Some(config.quantized());
        let serving = &config.serving;
        let embedded = config.s3_endpoint.is_none().then(|| objects.clone());
        let walls = Arc::new(Walls::new(db.clone(), &config.account_id, embedded.clone()));
        let model_cache = Arc::new(ModelCache::new(config.cache(), config.cache_bytes(), clock.clone()));
        let (door, counting) = (Door::new(serving.answers), Arc::new(Semaphore::new(serving.counts())));
        let limits = Limits { sequences: serving.sequences, cache: budgets.cache };
        let capacity = Capacity { bases: budgets.bases, adapters: budgets.adapters, limits };
        // A process that does not train knows nothing of the machines that do, unless it is told.
        let told = config.memory.memory.map(|ByteSize(bytes)| bytes);
        let training = if budgets.training > 0 { Some(budgets.training) } else { told };
        let job_memory = training.map(|bytes| bytes / config.slots());
        Self {
            job_memory,
            model_cache,
            config,
            clock,
            db,
            // The embedded store is this process: what is slow there is slow for everybody, and silent it never is.
            request_objects: embedded.unwrap_or_else(|| objects.for_requests()),
            objects,
            walls,
            registry,
            engine: Arc::new(Engine::new(Device::Cpu, capacity, quantized)),
            door,
            counting,
            previews: Previews::default(),
            job_accepted: Notify::new(),
            deployment_accepted: Notify::new(),
            parts: Parts::default(),
            readiness: Readiness::default(),
            closing: CancellationToken::new(),
        }
    }

    /// Object storage as an account may use it.
    pub fn objects_of(&self, account: &str) -> Objects {
        self.objects.within(account, Arc::clone(&self.walls))
    }

    /// The same for a request of the account's, which has its answer in time also when the store is silent.
    pub fn objects_for_request(&self, account: &str) -> Objects {
        self.request_objects.within(account, Arc::clone(&self.walls))
    }

    /// Looks how many model units provisioned throughput keeps by now. What cannot be told at this moment is looked at
    /// again a moment later.
    pub async fn units_changed(&self) {
        if let Err(error) = self.door.refresh(&self.db).await {
            warn!("the places that are kept could not be counted: {}", error.log());
        }
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("config", &self.config).finish_non_exhaustive()
    }
}
