//! Starts everything in the order in which one thing needs the other (database, first keys, object store,
//! base models, API, workers), and ends it in the reverse order on SIGTERM or Ctrl-C.

mod storage_keys;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use self::storage_keys::{SERVICE_KEY, StorageKeys, service_secret};
use crate::app::{App, deployments, rounds};
use crate::clock::Clock;
use crate::config::{Config, Role, Secret};
use crate::durable;
use crate::error::{Error, Result};
use crate::http::credentials::{self, RootKeys};
use crate::http::serve;
use crate::models::{Registry, starter};
use crate::net::Limits;
use crate::objects::{Endpoint, Objects, embedded};
use crate::routes;
use crate::store::Db;
use crate::store::accounts::{self, Assignment, Source};
use crate::worker::Pool;

/// How long the embedded object store waits for requests in flight, after everything of ours has ended.
const LAST_OBJECTS: Duration = Duration::from_secs(2);

/// A running service.
pub struct Service {
    /// What it is built from.
    pub app: Arc<App>,
    /// The keys that open everything; `None` for a worker, and where they were revoked.
    pub keys: Option<RootKeys>,
    /// Where the API listens; `None` for a worker.
    pub api: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    server: Option<JoinHandle<()>>,
    /// What goes on beside answering: deployments are made ready, and what other processes change is looked at.
    beside: Vec<JoinHandle<()>>,
    pool: Option<Pool>,
    embedded: Option<embedded::Server>,
}

impl Service {
    /// Brings the service up; when this returns, requests are answered and jobs are taken.
    ///
    /// # Errors
    /// `Validation` for settings that cannot work and addresses in use, with what to change;
    /// `Unavailable` when the database or the object store is away.
    pub async fn start(config: Config, role: Role) -> Result<Self> {
        let config = config.checked()?;
        config.open_data_dir()?;
        #[cfg(feature = "fault-points")]
        crate::fault_points::open(config.fault_points.as_ref());
        let clock = Clock::system();
        let db = Db::connect(config.database().expose()).await?;
        db.migrate().await?;
        let keys = if role == Role::Worker { None } else { first_of_the_api(&config, &clock, &db).await? };
        let secret = service_secret(&db, &clock).await?;
        let embedded = embedded_store(&config, role, &db, &clock, &secret).await?;
        let objects = Objects::new(&endpoint(&config, &secret, embedded.as_ref()));
        let registry = Registry::open(&model_folders(&config)?)?;
        let mut app = App::new(config, clock, db, objects, registry);
        if role == Role::Api && app.config.memory.memory.is_none() {
            // Jobs run on other machines, of which this one knows nothing.
            app.job_memory = None;
        }
        let app = Arc::new(app);

        let (stop, stopping) = watch::channel(false);
        let (mut api, mut server, mut beside) = (None, None, Vec::new());
        if role != Role::Worker {
            let listener = listen(app.config.listen).await?;
            api = Some(listener.local_addr()?);
            let limits = Limits { grace: app.config.grace(), ..Limits::default() };
            // Before the first request may take a place that is kept.
            app.door.refresh(&app.db).await?;
            beside.push(tokio::spawn(deployments::make_ready(app.clone(), stopping.clone())));
            beside.push(tokio::spawn(rounds::run(app.clone(), stopping.clone())));
            server = Some(tokio::spawn(serve(listener, routes::router(app.clone()), limits, told(stopping))));
        }
        let pool = if role == Role::Api { None } else { Some(Pool::start(app.clone()).await?) };
        info!(?role, "service started");
        Ok(Self { app, keys, api, stop, server, beside, pool, embedded })
    }

    /// Where the embedded object store listens; `None` where another is configured, and for a worker.
    pub fn s3_endpoint(&self) -> Option<String> {
        self.embedded.as_ref().map(embedded::Server::endpoint)
    }

    /// Takes nothing new, answers what is in flight, keeps a checkpoint of every running job and gives it
    /// back; then closes the object store and the database. Ends within the grace period in any case:
    /// what is not given back by then is taken up again when its lease has run out.
    pub async fn stop(self) {
        let grace = self.app.config.grace();
        // Nobody listening means that there is no server to stop.
        let _ = self.stop.send(true);
        let server = async {
            for part in self.server.into_iter().chain(self.beside) {
                if let Err(cause) = part.await {
                    warn!("a part of the API ended badly: {cause}");
                }
            }
        };
        let pool = async {
            if let Some(pool) = self.pool {
                pool.drain().await;
            }
        };
        let drained = tokio::time::timeout(grace, async { tokio::join!(server, pool) }).await;
        if drained.is_err() {
            warn!(grace_s = grace.as_secs(), "the grace period is over: unfinished work is left to its leases");
        }
        if let Some(embedded) = self.embedded {
            embedded.stop(LAST_OBJECTS).await;
        }
        self.app.db.close().await;
        info!("service stopped");
    }
}

/// Runs the service until SIGTERM or Ctrl-C. Once it is ready, the addresses it is bound to are written
/// to `ready_file`, when asked for, as `{"listen": "127.0.0.1:8080", "s3": "127.0.0.1:9000"}`.
pub async fn run(config: Config, role: Role, ready_file: Option<PathBuf>) -> Result<()> {
    // Installed first: a signal that arrives during the start is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let service = Service::start(config, role).await?;
    if let Some(path) = ready_file {
        let ready = serde_json::json!({
            "listen": service.api.map(|address| address.to_string()),
            "s3": service.embedded.as_ref().map(|embedded| embedded.address().to_string()),
        });
        durable::replace(&path, ready.to_string())?;
    }
    announce(&service);
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: draining"),
        _ = interrupt.recv() => info!("interrupted: draining"),
    }
    tokio::select! {
        () = service.stop() => {}
        // A second Ctrl-C means now.
        _ = interrupt.recv() => warn!("interrupted again: unfinished work is left to its leases"),
    }
    Ok(())
}

/// Says on standard output where the service is and, at the first start, where its keys lie. The keys themselves are
/// never shown: standard output is kept by whatever runs the process.
fn announce(service: &Service) {
    if let Some(path) = service.keys.as_ref().and_then(|keys| keys.written_to.as_deref()) {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        println!("First start. The keys that open the service are in a file for its owner only. To use them:");
        println!("export AWS_SHARED_CREDENTIALS_FILE={}", path.display());
    }
    if let Some(address) = service.api {
        println!("The API listens on http://{address}");
    }
    if let Some(embedded) = &service.embedded {
        println!("The embedded S3 server listens on {}", embedded.endpoint());
    }
}

/// The object store of the settings, or the embedded one.
fn endpoint(config: &Config, service_secret: &Secret, embedded: Option<&embedded::Server>) -> Endpoint {
    let region = config.region.clone();
    match (&config.s3_endpoint, &config.s3_access_key, &config.s3_secret_key) {
        (Some(url), Some(access_key), Some(secret_key)) => Endpoint {
            url: url.clone(),
            access_key: access_key.clone(),
            secret_key: secret_key.expose().to_string(),
            region,
        },
        _ => Endpoint {
            // A worker without a store of its own uses the one that the API process of this machine runs.
            url: embedded.map_or_else(|| format!("http://{}", config.s3_listen), embedded::Server::endpoint),
            // No user's key: revoking every one of them does not touch jobs.
            access_key: SERVICE_KEY.to_string(),
            secret_key: service_secret.expose().to_string(),
            region,
        },
    }
}

/// Starts the embedded object store where no other is configured. A lone worker does not: the API
/// process of its machine runs it.
async fn embedded_store(
    config: &Config,
    role: Role,
    db: &Db,
    clock: &Clock,
    service_secret: &Secret,
) -> Result<Option<embedded::Server>> {
    if config.s3_endpoint.is_some() || role == Role::Worker {
        return Ok(None);
    }
    let settings = embedded::Settings {
        listen: config.s3_listen,
        folder: config.data_dir.join("objects"),
        region: config.region.clone(),
        account: config.account_id.clone(),
        domains: config.s3_domain.clone(),
    };
    let keys = StorageKeys { db: db.clone(), clock: clock.clone(), service_secret: service_secret.clone() };
    Ok(Some(embedded::start(&settings, Arc::new(keys), clock.clone()).await?))
}

/// What a process of the API does before anybody may call: the root keys are there, and the file of accounts is in force.
async fn first_of_the_api(config: &Config, clock: &Clock, db: &Db) -> Result<Option<RootKeys>> {
    let keys = credentials::ensure_root(config, clock, db).await?;
    let now = clock.now();
    accounts::insert(db, &config.account_id, "root", now).await?;
    let listed: Vec<_> = config.accounts.iter().flat_map(|file| file.iter()).collect();
    let names: Vec<_> = listed.iter().map(|(id, account)| ((*id).clone(), account.name.clone())).collect();
    let mut assignments = Vec::new();
    for (id, account) in listed {
        for place in &account.storage {
            let (bucket, folder) = (place.bucket().to_string(), place.folder().to_string());
            assignments.push(Assignment { account_id: id.clone(), bucket, folder, source: Source::File });
        }
    }
    accounts::take_file(db, &names, &assignments, now).await?;
    Ok(keys)
}

/// The folders of base models: the starter's, unpacked from this binary, and the configured one.
///
/// # Errors
/// When the data folder cannot be written.
pub(crate) fn model_folders(config: &Config) -> Result<Vec<PathBuf>> {
    let shipped = config.data_dir.join("models");
    starter::unpack(&shipped)?;
    Ok(std::iter::once(shipped).chain(config.models.iter().map(PathBuf::from)).collect())
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|cause| Error::validation(format!("Cannot listen on {address}: {cause}; set TUNESMITH_LISTEN")))
}

/// Ends when the service is told to stop, or is dropped.
async fn told(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}
