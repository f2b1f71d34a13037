//! What the service stands on, checked at the start and by `tunesmith doctor`: settings that go together, folders,
//! devices, memory, the database with its schema, and the object store. Each check says what was found and what to do;
//! URLs are shown without their secrets.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::clock::Clock;
use crate::config::{Budgets, ByteSize, Config, Role};
use crate::durable::disk;
use crate::error::{Error, Kind, Result, is_full};
use crate::models::Registry;
use crate::objects::{Endpoint, Objects, Put, Uri};
use crate::store::{Db, Schema};
use crate::worker;

/// Less free space than this is worth a warning; with less than the second nothing can be trained or uploaded.
const LITTLE_SPACE: u64 = 2 << 30;
const NO_SPACE: u64 = 64 << 20;
const NO_SPACE_ADVICE: &str = "Free space: nothing can be uploaded or trained";
/// An object store that has not answered by then is away; writing, reading and removing may take longer.
const PATIENCE: Duration = Duration::from_secs(5);
const PROBE_PATIENCE: Duration = Duration::from_secs(20);

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The service runs, but perhaps not as it was meant to.
    Warn,
    /// The service cannot work so.
    Fail,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Whether the service does not start with it. What may come back by itself is waited for instead.
    #[serde(skip)]
    pub lasting: bool,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), advice: None, lasting: false }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, advice: Some(advice.into()), ..Self::ok(name, found) }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, lasting: true, ..Self::warn(name, found, advice) }
    }

    /// One that fails now and may pass later, without anybody changing a setting.
    fn away(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { lasting: false, ..Self::fail(name, found, advice) }
    }

    /// The sentence of the log and of a start that is refused.
    pub fn sentence(&self) -> String {
        let advice = self.advice.as_deref().map_or_else(String::new, |advice| format!(". {advice}"));
        format!("{}: {}{advice}", self.name, self.found)
    }
}

/// What can be seen on this machine alone, before anything is opened.
pub fn local(config: &Config, role: Role) -> Vec<Check> {
    let mut checks = vec![topology(config, role), data_folder(&config.data_dir)];
    if role != Role::Api {
        checks.push(devices(config));
    }
    checks.push(memory(config, role));
    checks
}

/// Everything, for a table: also what the start itself would say.
pub async fn all(config: &Config, role: Role) -> Vec<Check> {
    let mut checks = local(config, role);
    // The start reads the models itself, and says what it finds.
    checks.extend(models_folder(config));
    checks.push(database(config).await);
    checks.push(match configured(config) {
        Some(endpoint) => object_store(&Objects::new(&endpoint), &endpoint.url, config.probe_bucket.as_deref()).await,
        None if role == Role::Worker => Check::ok("object store", embedded_elsewhere(config)),
        None => embedded(config),
    });
    if role != Role::Worker {
        checks.push(address("API address", config.listen, "TUNESMITH_LISTEN"));
    }
    checks
}

/// Which processes belong together, and whether they can reach one another.
fn topology(config: &Config, role: Role) -> Check {
    const NAME: &str = "topology";
    let url = config.database();
    let file = url.expose().strip_prefix("sqlite://").map(Path::new);
    let in_memory = url.expose() == "sqlite::memory:";
    let (sqlite, remote_store) = (file.is_some() || in_memory, config.s3_endpoint.is_some());
    match role {
        Role::Worker if in_memory || file.is_some_and(|file| !file.exists()) => Check {
            // A file that was named may be the one that an API process is about to make.
            verdict: if in_memory || config.database_url.is_none() { Verdict::Fail } else { Verdict::Warn },
            ..Check::fail(
                NAME,
                format!("this worker would wait for jobs in a database of its own ({})", config.shown_database()),
                "Set DATABASE_URL to the Postgres of the API, or TUNESMITH_DATA_DIR to the data folder of an API \
                 process on this machine that was started before",
            )
        },
        Role::Worker if sqlite => {
            Check::ok(NAME, format!("a worker beside an API process of this machine, in {}", config.shown_database()))
        }
        Role::Worker if !remote_store => Check::warn(
            NAME,
            format!("a worker without S3_ENDPOINT: {}", embedded_elsewhere(config)),
            "On any other machine set S3_ENDPOINT to a store that the API uses as well",
        ),
        Role::Worker => Check::ok(NAME, "a worker with a shared database and a shared object store"),
        Role::Api if sqlite => Check::warn(
            NAME,
            "an API process with SQLite: jobs wait until a worker of this machine runs in the same data folder",
            "For workers on other machines set DATABASE_URL to a Postgres and S3_ENDPOINT to a store that all reach",
        ),
        Role::Api if !remote_store => Check::warn(
            NAME,
            format!("an API process with Postgres and the embedded object store on {}", config.s3_listen),
            "Workers on other machines do not reach it: set S3_ENDPOINT, the same for all processes",
        ),
        Role::Api => Check::ok(NAME, "an API process with a shared database and a shared object store"),
        Role::All if !sqlite && !remote_store => Check::ok(
            NAME,
            format!(
                "API and trainer with Postgres and the embedded object store on {}: further processes on other \
                 machines would need S3_ENDPOINT",
                config.s3_listen
            ),
        ),
        Role::All => Check::ok(NAME, "API and trainer in one process"),
    }
}

fn embedded_elsewhere(config: &Config) -> String {
    format!("objects are those of the API process of this machine, at http://{}", config.s3_listen)
}

/// Whether the folder can be written, and how much space is left.
fn data_folder(folder: &Path) -> Check {
    const NAME: &str = "data folder";
    let shown = folder.display();
    if let Err(cause) = disk::probe(folder) {
        if is_full(&cause) {
            return Check::away(NAME, format!("{shown} is full: {cause}"), NO_SPACE_ADVICE);
        }
        return Check::fail(
            NAME,
            format!("{shown} cannot be written: {cause}"),
            "Give the service's user the right to write there, or set TUNESMITH_DATA_DIR to another folder",
        );
    }
    let free = match disk::space(folder) {
        Ok(space) => space.free,
        Err(cause) => return Check::warn(NAME, format!("{shown}: {cause}"), "Look how much space is free there"),
    };
    let found = format!("{shown} can be written, {} are free", ByteSize(free));
    match free {
        _ if free < NO_SPACE => Check::away(NAME, found, NO_SPACE_ADVICE),
        _ if free < LITTLE_SPACE => {
            Check::warn(NAME, found, "Free space: data sets, models and checkpoints lie there while a job runs")
        }
        _ => Check::ok(NAME, found),
    }
}

fn models_folder(config: &Config) -> Option<Check> {
    const NAME: &str = "models folder";
    let folder = PathBuf::from(config.models.as_ref()?);
    let advice = "Set TUNESMITH_MODELS to a folder of Hugging Face model directories";
    Some(match Registry::open(std::slice::from_ref(&folder)) {
        Err(error) => Check::fail(NAME, error.message(), advice),
        Ok(registry) => {
            let (usable, unusable) = (registry.all().count(), registry.unreadable());
            let found = format!("{} holds {usable} models that can be used", folder.display());
            match unusable.first() {
                Some(first) => Check::warn(
                    NAME,
                    format!("{found} and {} that cannot, such as {}", unusable.len(), first.dir.display()),
                    format!("The reason is: {}", first.reason),
                ),
                None if usable == 0 => Check::warn(NAME, found, advice),
                None => Check::ok(NAME, found),
            }
        }
    })
}

fn devices(config: &Config) -> Check {
    match worker::devices(&config.devices) {
        Ok(devices) => Check::ok("devices", format!("one slot each on {}", devices.join(", "))),
        Err(error) => Check::fail("devices", error.message(), "Set TUNESMITH_DEVICES to cpu, auto or cuda:0,cuda:1"),
    }
}

fn memory(config: &Config, role: Role) -> Check {
    const NAME: &str = "memory";
    match Budgets::of(config, role) {
        Err(error) => Check::fail(NAME, error.message(), "Set TUNESMITH_MEMORY"),
        Ok(budgets) => {
            let Budgets { training, bases, adapters, cache, machine } = budgets;
            let size = |bytes: u64| if bytes == u64::MAX { "any size".into() } else { ByteSize(bytes).to_string() };
            let found = format!(
                "{} for training, {} for bases, {} for adapters, {} for keys and values, of {}",
                size(training),
                size(bases),
                size(adapters),
                size(cache),
                machine.map_or_else(|| "an unknown total".to_string(), size)
            );
            match budgets.excess() {
                Some(excess) => Check::warn(
                    NAME,
                    format!("{found}: {} more than there are", ByteSize(excess)),
                    "Lower TUNESMITH_MEMORY, TUNESMITH_BASE_MEMORY, TUNESMITH_ADAPTER_MEMORY or \
                     TUNESMITH_CACHE_MEMORY, or leave them out",
                ),
                None => Check::ok(NAME, found),
            }
        }
    }
}

/// Whether the database answers and has a schema that this binary can use. Nothing is made and nothing migrated.
async fn database(config: &Config) -> Check {
    let url = config.database();
    if url.expose().strip_prefix("sqlite://").is_some_and(|file| !Path::new(file).exists()) {
        return Check::ok("database", format!("{} is made at the first start", config.shown_database()));
    }
    match Db::connect(url.expose()).await {
        Ok(db) => {
            let found = schema(config, &db).await;
            db.close().await;
            found
        }
        Err(error) => unreachable(config, &error),
    }
}

/// Whether the schema is one that this binary can use.
pub async fn schema(config: &Config, db: &Db) -> Check {
    const NAME: &str = "database";
    let shown = config.shown_database();
    match db.schema().await {
        Ok(Schema::Current) => Check::ok(NAME, format!("{shown} answers, its schema is this version's")),
        Ok(Schema::Empty) => Check::ok(NAME, format!("{shown} answers and is empty: the start makes its tables")),
        Ok(Schema::Behind(missing)) => {
            Check::ok(NAME, format!("{shown} answers; the next start makes {missing} migrations"))
        }
        Ok(Schema::Ahead(version)) => Check::fail(
            NAME,
            format!("{shown} was used by a newer version of this program (migration {version})"),
            "Run that version again, or restore a copy of the database from before it",
        ),
        Err(error) => unreachable(config, &error),
    }
}

/// A database that cannot be opened.
pub fn unreachable(config: &Config, error: &Error) -> Check {
    let found = format!("{} cannot be opened: {}", config.shown_database(), cause(error));
    match error.kind() {
        Kind::Unavailable => Check::away(
            "database",
            found,
            "Look whether it runs, whether this machine reaches it, and whether user and password in DATABASE_URL are \
             right",
        ),
        _ => Check::fail("database", found, "Correct DATABASE_URL"),
    }
}

/// The object store of the settings; `None` where it is the embedded one.
fn configured(config: &Config) -> Option<Endpoint> {
    let (url, access_key) = (config.s3_endpoint.clone()?, config.s3_access_key.clone()?);
    let secret_key = config.s3_secret_key.as_ref()?.expose().to_string();
    Some(Endpoint { url, access_key, secret_key, region: config.region.clone() })
}

/// Whether the store answers and knows the key; and where a bucket is given, whether an object can be written, read
/// and removed in it.
pub async fn object_store(objects: &Objects, url: &str, bucket: Option<&str>) -> Check {
    const NAME: &str = "object store";
    let late = |_| Error::unavailable(anyhow::anyhow!("no answer within {PATIENCE:?}"));
    if let Err(error) = tokio::time::timeout(PATIENCE, objects.reach()).await.map_err(late).flatten() {
        let found = format!("{url}: {}", cause(&error));
        return match error.kind() {
            Kind::AccessDenied => Check::fail(
                NAME,
                found,
                "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_REGION if the store has one",
            ),
            Kind::Validation => Check::fail(
                NAME,
                format!("{url}: {}", error.message()),
                "Set S3_ENDPOINT to an address that the store knows as its own, or tell the store this one",
            ),
            _ => Check::away(NAME, found, "Look whether it runs, and whether S3_ENDPOINT is its address"),
        };
    }
    let Some(bucket) = bucket else { return Check::ok(NAME, format!("{url} answers and knows the key")) };
    match tokio::time::timeout(PROBE_PATIENCE, write_read_remove(objects, bucket)).await.map_err(late).flatten() {
        Ok(()) => Check::ok(NAME, format!("{url}: an object was written to s3://{bucket}, read and removed")),
        Err(error) if error.kind() == Kind::Unavailable => {
            Check::away(NAME, format!("{url}, bucket {bucket}: {}", cause(&error)), "Look whether the store is healthy")
        }
        Err(error) => Check::fail(
            NAME,
            format!("{url}, bucket {bucket}: {}", cause(&error)),
            "Allow the key PutObject, GetObject and DeleteObject there, or set TUNESMITH_PROBE_BUCKET to another bucket",
        ),
    }
}

async fn write_read_remove(objects: &Objects, bucket: &str) -> Result<()> {
    let id = Clock::system().id();
    let uri = Uri::new(bucket, format!(".tunesmith/probe/{id}"));
    objects.put_bytes(&uri, id.clone().into_bytes(), &Put::default()).await?;
    let read = objects.get_bytes(&uri, 1024).await;
    objects.delete(&uri).await?;
    if read? != id.as_bytes() {
        return Err(Error::validation("what was read is not what was written"));
    }
    Ok(())
}

fn embedded(config: &Config) -> Check {
    const NAME: &str = "object store";
    let folder = config.data_dir.join("objects");
    if folder.exists()
        && let Err(cause) = disk::probe(&folder)
    {
        if is_full(&cause) {
            return Check::away(NAME, format!("{} is full: {cause}", folder.display()), NO_SPACE_ADVICE);
        }
        return Check::fail(
            NAME,
            format!("{} cannot be written: {cause}", folder.display()),
            "Give the service's user the right to write there",
        );
    }
    Check { name: NAME, ..address("object store", config.s3_listen, "TUNESMITH_S3_LISTEN") }
}

/// Whether the service could listen there.
fn address(name: &'static str, address: std::net::SocketAddr, setting: &str) -> Check {
    match TcpListener::bind(address) {
        Ok(_) => Check::ok(name, format!("{address} is free to listen on")),
        Err(cause) if cause.kind() == std::io::ErrorKind::AddrInUse => Check::warn(
            name,
            format!("{address} is in use"),
            format!("If that is not this service, running already, set {setting} to another address"),
        ),
        Err(cause) => Check::fail(name, format!("{address}: {cause}"), format!("Set {setting} to another address")),
    }
}

/// What an operator may read of an error: its sentence and what lies under it, in one line.
fn cause(error: &Error) -> String {
    let text = error.log();
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(400).collect()
}

#[cfg(test)]
mod tests;
