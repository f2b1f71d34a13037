//! Starts everything in the order in which one thing needs the other (database, first keys, object store,
//! base models, API, workers), and ends it in the reverse order on SIGTERM or Ctrl-C.

pub mod checks;
mod ending;
mod reserve;
mod storage_keys;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use self::checks::{Check, Verdict};
use self::ending::{Ending, Signals, Told, end_after};
use self::storage_keys::{SERVICE_KEY, StorageKeys, service_secret};
use crate::app::{App, deployments, rounds};
use crate::clock::Clock;
use crate::config::{Budgets, Config, Role, Secret};
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
        checks::local(&config, role).iter().try_for_each(reported)?;
        reserve::tend(&config.data_dir);
        let budgets = Budgets::of(&config, role)?;
        let clock = Clock::system();
        let db = Db::connect(config.database().expose()).await.map_err(|error| no_database(&config, error))?;
        reported(&checks::schema(&config, &db).await)?;
        db.migrate().await?;
        let keys = if role == Role::Worker { None } else { first_of_the_api(&config, &clock, &db).await? };
        let secret = service_secret(&db, &clock).await?;
        let embedded = embedded_store(&config, role, &db, &clock, &secret).await?;
        let endpoint = endpoint(&config, &secret, embedded.as_ref());
        let objects = Objects::new(&endpoint);
        reported(&checks::object_store(&objects, &endpoint.url, config.probe_bucket.as_deref()).await)?;
        let registry = Registry::open(&model_folders(&config)?)?;
        let app = Arc::new(App::new(config, &budgets, clock, db, objects, registry));

        let (stop, stopping) = watch::channel(false);
        let (mut api, mut server, mut beside) = (None, None, Vec::new());
        if role != Role::Worker {
            let listener = listen(app.config.listen).await?;
            api = Some(listener.local_addr()?);
            let grace = Ending::within(app.config.grace()).work;
            let limits = Limits { stall: app.config.stall(), ..Limits::default() };
            // Before the first request may take a place that is kept.
            app.door.refresh(&app.db).await?;
            let (of, stop) = (app.clone(), stopping.clone());
            beside
                .push(part(&app, "deployments", &stopping, move || deployments::make_ready(of.clone(), stop.clone())));
            let (of, stop) = (app.clone(), stopping.clone());
            beside.push(part(&app, "periodic tasks", &stopping, move || rounds::run(of.clone(), stop.clone())));
            let stop = async move {
                told(stopping).await;
                grace
            };
            server = Some(tokio::spawn(serve(listener, routes::router(app.clone()), limits, stop)));
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
    /// back; then closes the object store and the database. Ends within the grace period in any case: answers that
    /// would take longer say so, and jobs that would are given back as they are.
    pub async fn stop(self) {
        let ending = Ending::within(self.app.config.grace());
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
                pool.drain_within(ending.answers).await;
            }
        };
        let closing = async {
            tokio::time::sleep(ending.answers).await;
            self.app.closing.cancel();
            std::future::pending::<()>().await;
        };
        let drained = async {
            tokio::select! {
                _ = async { tokio::join!(server, pool) } => {}
                () = closing => {}
            }
        };
        if tokio::time::timeout(ending.work, drained).await.is_err() {
            warn!(grace_s = ending.work.as_secs(), "the grace period is over: unfinished work is left to its leases");
        }
        if let Some(embedded) = self.embedded {
            embedded.stop(ending.last * 2 / 3).await;
        }
        if tokio::time::timeout(ending.last / 3, self.app.db.close()).await.is_err() {
            warn!("the database was not closed in time: what it was asked is left to it");
        }
        info!("service stopped");
    }

    /// Ends when the API has stopped answering although nobody told it to.
    async fn broken(&mut self) {
        match &mut self.server {
            Some(server) => drop(server.await),
            None => std::future::pending().await,
        }
        self.server = None;
    }
}

/// Writes what was found to the log, and refuses to start with what no waiting mends.
fn reported(check: &Check) -> Result<()> {
    match check.verdict {
        Verdict::Ok => debug!("{}", check.sentence()),
        Verdict::Fail if check.lasting => return Err(Error::validation(check.sentence())),
        _ => warn!("{}", check.sentence()),
    }
    Ok(())
}

/// A start without a database, with its name and what to do.
fn no_database(config: &Config, error: Error) -> Error {
    Error::new(error.kind(), checks::unreachable(config, &error).sentence()).because(error)
}

/// Starts a supervised part of the process.
fn part<F: Future<Output = ()> + Send + 'static>(
    app: &Arc<App>,
    name: &'static str,
    stopping: &watch::Receiver<bool>,
    work: impl Fn() -> F + Send + Sync + 'static,
) -> JoinHandle<()> {
    let (parts, stopping) = (app.parts.clone(), stopping.clone());
    tokio::spawn(async move { parts.supervise(name, stopping, work).await })
}

/// Runs the service until SIGTERM or Ctrl-C. Once it is ready, the addresses it is bound to are written
/// to `ready_file`, when asked for, as `{"listen": "127.0.0.1:8080", "s3": "127.0.0.1:9000"}`.
///
/// # Errors
/// Those of [`Service::start`], and `Internal` when the API stops answering without having been told to.
pub async fn run(config: Config, role: Role, ready_file: Option<PathBuf>) -> Result<()> {
    // Installed first: a signal that arrives during the start is not lost.
    let mut signals = Signals::listen(config.grace())?;
    let started = tokio::select! {
        started = Service::start(config, role) => Some(started?),
        () = signals.told(Told::Drain) => None,
    };
    let Some(mut service) = started else {
        info!("told to end during the start");
        return Ok(());
    };
    if let Some(path) = ready_file {
        let ready = serde_json::json!({
            "listen": service.api.map(|address| address.to_string()),
            "s3": service.embedded.as_ref().map(|embedded| embedded.address().to_string()),
        });
        durable::replace(&path, ready.to_string())?;
    }
    announce(&service);
    let mut outcome = Ok(());
    tokio::select! {
        () = signals.told(Told::Drain) => {}
        () = service.broken() => {
            end_after(service.app.config.grace(), 1);
            error!("the API has stopped answering: the process ends, so that it is started again");
            outcome = Err(Error::internal(anyhow::anyhow!("the API's accept loop ended")));
        }
    }
    tokio::select! {
        () = service.stop() => {}
        () = signals.told(Told::Now) => warn!("interrupted again: unfinished work is left to its leases"),
    }
    outcome
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
    let keys = StorageKeys {
        db: db.clone(),
        clock: clock.clone(),
        root: config.account_id.clone(),
        service_secret: service_secret.clone(),
    };
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
