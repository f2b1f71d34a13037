//! The real binary as a child process, which can be killed, frozen and asked to end, on either pair of backends:
//! SQLite with the embedded object store, or Postgres and an S3 server of their own, each behind a proxy that breaks.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use futures::FutureExt;
use serde_json::{Value, json};
use tunesmith::clock::Clock;
use tunesmith::error::Kind;
use tunesmith::objects::{Endpoint, Objects, Put, Uri};
use tunesmith::store::jobs::{self, Accepted, Job, JobSpec};
use tunesmith::store::{Db, Status, job_events};

use super::tiny;
use crate::jobs::database::{Schema, postgres, variable};
use crate::objects::Moto;
use crate::support::client::Client;
use crate::support::fault_proxy::FaultProxy;
use crate::support::{Pair, promise, recorder};

const ACCESS_KEY: &str = "AKIAFAULTS";
const SECRET_KEY: &str = "a-secret-for-fault-tests";
const BEARER_KEY: &str = "a-bearer-key-for-fault-tests";
const DATABASE_PASSWORD: &str = "a-password-for-fault-tests";
/// The account of the root keys.
pub(crate) const ACCOUNT: &str = crate::jobs::ACCOUNT;
/// Short, so that a frozen worker's job is soon free again; long enough for a machine whose disk is busy.
pub(crate) const LEASE: Duration = Duration::from_secs(15);
/// Nothing in these tests takes longer when it works.
const PATIENCE: Duration = Duration::from_secs(180);

/// What an installation stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// SQLite and the embedded object store.
    Embedded,
    /// Postgres and an S3 server, both reached through proxies.
    Separate,
}

/// Makes two tests of one promise: `name::embedded` and `name::separate`.
macro_rules! on_each {
    ($(#[$meta:meta])* async fn $name:ident($house:ident: House) $body:block) => {
        $(#[$meta])*
        mod $name {
            use super::*;

            async fn check($house: House) $body

            #[test]
            fn embedded() {
                super::super::process::with(super::super::process::Backend::Embedded, check);
            }

            #[test]
            fn separate() {
                super::super::process::with(super::super::process::Backend::Separate, check);
            }
        }
    };
}
pub(crate) use on_each;

/// Runs `check` in a house of its own, where there is what it stands on.
pub(crate) fn with<F: Future<Output = ()>>(backend: Backend, check: impl FnOnce(House) -> F) {
    crate::jobs::database::block_on(async {
        let Some(mut house) = House::on(backend).await else { return };
        let schema = house.take_schema();
        let outcome = AssertUnwindSafe(check(house)).catch_unwind().await;
        if let Some(schema) = schema {
            schema.remove().await;
        }
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The servers of [`Backend::Separate`].
struct Servers {
    /// Removed when the test has ended.
    schema: Option<Schema>,
    url: String,
    database: FaultProxy,
    store: FaultProxy,
    /// Past its proxy.
    store_url: String,
    /// `None` for the server that the environment names.
    moto: Option<Moto>,
    keys: (String, String),
    name: String,
}

impl Servers {
    async fn start() -> Option<Self> {
        let url = postgres()?;
        let schema = Schema::create(url).await;
        let (host, _) = url.rsplit_once('/').unwrap();
        let address = host.rsplit_once('@').unwrap().1.to_socket_addrs().unwrap().next().unwrap();
        let seed = Clock::system().seed();
        let database = FaultProxy::start(address, seed);
        let (moto, store_url, name) = match variable("TEST_S3_ENDPOINT") {
            Some(url) => (None, url, variable("TEST_S3_NAME").unwrap_or_else(|| "the S3 server of the run".into())),
            None => match Moto::start() {
                Ok(moto) => {
                    let url = moto.url.clone();
                    (Some(moto), url, "moto".into())
                }
                Err(why) => {
                    crate::objects::not_run(&why);
                    return None;
                }
            },
        };
        let address = store_url.trim_start_matches("http://").trim_end_matches('/');
        let store = FaultProxy::start(address.to_socket_addrs().unwrap().next().unwrap(), seed);
        let keys = match (variable("TEST_S3_ACCESS_KEY"), variable("TEST_S3_SECRET_KEY")) {
            (Some(access), Some(secret)) => (access, secret),
            _ => (ACCESS_KEY.into(), SECRET_KEY.into()),
        };
        recorder::plant(&keys.1);
        recorder::plant(DATABASE_PASSWORD);
        let url = schema.url.clone();
        Some(Self { schema: Some(schema), url, database, store, store_url, moto, keys, name })
    }

    /// Where the service finds its database: through the proxy, with a password that must not be told.
    fn database_url(&self) -> String {
        let (_, path) = self.url.split_once("://").unwrap().1.split_once('/').unwrap();
        format!("postgres://postgres:{DATABASE_PASSWORD}@{}/{path}", self.database.address)
    }
}

/// One installation: a data folder, and the addresses of its servers.
pub(crate) struct House {
    folder: tempfile::TempDir,
    models: PathBuf,
    api: SocketAddr,
    s3: SocketAddr,
    servers: Option<Servers>,
    /// What its child processes are told beside the usual.
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) bucket: String,
    /// The object store past its proxy.
    endpoint: Endpoint,
    pub(crate) db: Db,
    pub(crate) objects: Objects,
}

impl House {
    pub(crate) async fn new() -> Self {
        Self::on(Backend::Embedded).await.unwrap()
    }

    /// An installation on `backend`, or `None` where there are no such servers and the run does not insist.
    pub(crate) async fn on(backend: Backend) -> Option<Self> {
        Self::in_folder(tempfile::tempdir().unwrap(), backend).await
    }

    /// The same with this data folder.
    pub(crate) async fn in_folder(folder: tempfile::TempDir, backend: Backend) -> Option<Self> {
        recorder::plant(SECRET_KEY);
        recorder::plant(BEARER_KEY);
        let servers = match backend {
            Backend::Embedded => None,
            Backend::Separate => Some(Servers::start().await?),
        };
        let sqlite = format!("sqlite://{}", folder.path().join("tunesmith.db").display());
        let db = Db::connect(servers.as_ref().map_or(&sqlite, |servers| &servers.url)).await.unwrap();
        db.migrate().await.unwrap();
        let (api, s3) = (free_port(), free_port());
        // The test itself looks at the database and the objects past the proxies.
        let (url, access_key, secret_key) = match &servers {
            None => (format!("http://{s3}"), ACCESS_KEY.to_string(), SECRET_KEY.to_string()),
            Some(servers) => (servers.store_url.clone(), servers.keys.0.clone(), servers.keys.1.clone()),
        };
        let endpoint = Endpoint { url, access_key, secret_key, region: "us-east-1".into() };
        let objects = Objects::new(&endpoint);
        let bucket = match servers.as_ref().is_some_and(|servers| servers.moto.is_none()) {
            // Others use that server too.
            true => format!("tuning-{}", Clock::system().id()),
            false => "tuning".into(),
        };
        let models = tiny::models(folder.path());
        Some(Self { models, folder, api, s3, servers, settings: Vec::new(), bucket, endpoint, db, objects })
    }

    /// The schema of its Postgres, to be removed when the house is gone.
    pub(crate) fn take_schema(&mut self) -> Option<Schema> {
        self.servers.as_mut().and_then(|servers| servers.schema.take())
    }

    /// What it stands on, for the ledger.
    pub(crate) fn on_what(&self) -> String {
        match &self.servers {
            None => "SQLite, embedded S3".into(),
            Some(servers) => format!("Postgres, {}", servers.name),
        }
    }

    pub(crate) fn backend(&self) -> Backend {
        if self.servers.is_some() { Backend::Separate } else { Backend::Embedded }
    }

    /// The proxy before Postgres.
    pub(crate) fn database(&self) -> &FaultProxy {
        &self.servers.as_ref().expect("only a separate database is behind a proxy").database
    }

    /// The proxy before the object store.
    pub(crate) fn store(&self) -> &FaultProxy {
        &self.servers.as_ref().expect("only a separate object store is behind a proxy").store
    }

    /// The data folder of its processes.
    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Starts `tunesmith <arguments>` on this installation.
    pub(crate) fn start(&self, arguments: &[&str]) -> Process {
        self.start_in("log", arguments)
    }

    /// The same with a log of its own.
    pub(crate) fn start_in(&self, log: &str, arguments: &[&str]) -> Process {
        self.start_logging(&self.folder.path().join(log), arguments)
    }

    /// The same with its log at `path`.
    pub(crate) fn start_logging(&self, path: &std::path::Path, arguments: &[&str]) -> Process {
        let log = std::fs::File::options().create(true).append(true).open(path).unwrap();
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .env("TUNESMITH_LISTEN", self.api.to_string())
            .env("TUNESMITH_S3_LISTEN", self.s3.to_string())
            .env("TUNESMITH_DATA_DIR", self.folder.path())
            .env("TUNESMITH_MODELS", &self.models)
            .env("TUNESMITH_ROOT_ACCESS_KEY", ACCESS_KEY)
            .env("TUNESMITH_ROOT_SECRET_KEY", SECRET_KEY)
            // Whose jobs the tests put into the database: the bucket is theirs.
            .env("TUNESMITH_ACCOUNT_ID", crate::jobs::ACCOUNT)
            .env("TUNESMITH_ROOT_BEARER_KEY", BEARER_KEY)
            .env("TUNESMITH_LEASE_SECONDS", LEASE.as_secs().to_string())
            .env_remove("DATABASE_URL")
            .env_remove("S3_ENDPOINT");
        if let Some(servers) = &self.servers {
            command
                .env("DATABASE_URL", servers.database_url())
                .env("S3_ENDPOINT", format!("http://{}", servers.store.address))
                .env("AWS_ACCESS_KEY_ID", &servers.keys.0)
                .env("AWS_SECRET_ACCESS_KEY", &servers.keys.1);
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Process { child, log: path.to_path_buf() }
    }

    /// A caller of its API with the root keys.
    pub(crate) fn client(&self) -> Client {
        let pair = Pair { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into(), session_token: None };
        Client { address: self.api, pair, patience: Duration::from_secs(60) }
    }

    /// A request for the job that [`tiny::job`] is, of `steps` steps.
    pub(crate) fn request(&self, name: &str, steps: usize) -> Value {
        json!({
            "jobName": name,
            "customModelName": format!("model-{name}"),
            "roleArn": "arn:aws:iam::111111111111:role/tuner",
            "baseModelIdentifier": tiny::MODEL,
            "clientRequestToken": format!("token-{name}"),
            "trainingDataConfig": { "s3Uri": format!("s3://{}/train.jsonl", self.bucket) },
            "outputDataConfig": { "s3Uri": format!("s3://{}/out/", self.bucket) },
            // The seed too: jobs of one request but for their names learn the same bits.
            "hyperParameters": {
                "stepCount": steps.to_string(), "batchSize": "8", "learningRate": "0.01", "seed": "7",
            },
        })
    }

    /// Has a job accepted by the API, however often that is killed meanwhile.
    pub(crate) async fn create(&self, request: &Value) -> JobSpec {
        let reply = self.client().call("POST", "/model-customization-jobs", Some(request)).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        let arn = reply.json()["jobArn"].as_str().unwrap().to_string();
        jobs::find(&self.db, ACCOUNT, &arn).await.unwrap().expect("an accepted job is in the database").spec
    }

    /// Puts the data set into the object store, once that answers.
    pub(crate) async fn upload_data(&self) {
        until("the object store answers", async || self.objects.ensure_bucket(&self.bucket).await.ok()).await;
        let uri = Uri::new(&self.bucket, "train.jsonl");
        self.objects.put_bytes(&uri, tiny::data(), &Put::default()).await.unwrap();
    }

    /// Puts an object where jobs can read it.
    pub(crate) async fn put(&self, key: &str, text: &str) {
        let uri = Uri::new(&self.bucket, key);
        self.objects.put_bytes(&uri, text.as_bytes().to_vec(), &Put::default()).await.unwrap();
    }

    /// Which prompts a job's teacher has answered, once for each answer.
    pub(crate) async fn answers(&self, spec: &JobSpec) -> Vec<String> {
        let folder = Uri::parse(&spec.output_prefix().unwrap()).unwrap().folder();
        let mut keys = Vec::new();
        for object in self.objects.list(&folder).all().await.unwrap() {
            if object.uri.key().contains("/responses/") {
                let bytes = self.objects.get_bytes(&object.uri, 64 << 20).await.unwrap();
                for line in String::from_utf8(bytes.to_vec()).unwrap().lines() {
                    let line: serde_json::Value = serde_json::from_str(line).unwrap();
                    keys.push(line["key"].as_str().unwrap().to_string());
                }
            }
        }
        keys
    }

    /// Where the API listens.
    pub(crate) fn api(&self) -> SocketAddr {
        self.api
    }

    /// Where the base models lie.
    pub(crate) fn models(&self) -> &std::path::Path {
        &self.models
    }

    pub(crate) async fn submit(&self, spec: &JobSpec) {
        assert_eq!(jobs::insert(&self.db, spec, &[]).await.unwrap(), Accepted::Inserted);
    }

    pub(crate) async fn job(&self, spec: &JobSpec) -> Job {
        // The test's own pool may be late on a busy machine; that is no outage of the service.
        until("the job is looked at", async || jobs::find(&self.db, &spec.account_id, &spec.name).await.ok())
            .await
            .expect("the job is in the database")
    }

    /// Waits until the job is completed; fails at once when it ends otherwise.
    pub(crate) async fn completed(&self, spec: &JobSpec) -> Job {
        until("the job is completed", async || {
            let job = self.job(spec).await;
            assert!(!matches!(job.status, Status::Failed | Status::Stopped), "{:?}", job.failure_message);
            (job.status == Status::Completed).then_some(job)
        })
        .await
    }

    /// Waits until the job has taken this many steps.
    pub(crate) async fn at_step(&self, spec: &JobSpec, step: u64) {
        until("the job is under way", async || {
            let job = self.job(spec).await;
            assert!(!job.status.is_end(), "the job ended ({}) before step {step}", job.status);
            job.progress.is_some_and(|progress| progress.step >= step).then_some(())
        })
        .await;
    }

    /// The bytes of an output at its final key.
    pub(crate) async fn output(&self, spec: &JobSpec, name: &str) -> Vec<u8> {
        let folder = Uri::parse(&spec.output_prefix().unwrap()).unwrap();
        let bytes = answered(async || self.objects.get_bytes(&folder.join(name), 64 << 20).await).await;
        bytes.to_vec()
    }

    /// Everything under the job's folder that is not hidden.
    pub(crate) async fn visible(&self, spec: &JobSpec) -> Vec<(String, String)> {
        let folder = Uri::parse(&spec.output_prefix().unwrap()).unwrap().folder();
        let all = answered(async || self.objects.list(&folder).all().await).await;
        let named = all.into_iter().map(|object| (object.uri.key()[folder.key().len()..].to_string(), object.etag));
        named.filter(|(name, _)| !name.starts_with(".tunesmith/")).collect()
    }

    /// Multipart uploads that were begun and neither completed nor given up.
    pub(crate) async fn uploads(&self) -> Vec<String> {
        let s3 = crate::objects::sdk(&self.endpoint);
        let found = s3.list_multipart_uploads().bucket(&self.bucket).send().await.unwrap();
        found.uploads().iter().map(|upload| format!("upload {}", upload.key().unwrap_or_default())).collect()
    }

    /// The kinds of the job's events, in order.
    pub(crate) async fn events(&self, spec: &JobSpec) -> Vec<String> {
        let events = job_events::list(&self.db, &spec.account_id, &spec.id).await.unwrap();
        events.into_iter().map(|event| event.kind).collect()
    }
}

/// The program under test: what was built with this suite, or a copy that the run names.
fn binary() -> String {
    variable("TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_tunesmith").into())
}

impl Drop for House {
    fn drop(&mut self) {
        let entries = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("log")) {
            if !std::thread::panicking() {
                recorder::search_log(&entry.path(), |_| false);
            }
            // What a failed run left is worth reading.
            if let (true, Some(kept)) = (std::thread::panicking(), promise::folder()) {
                let name = format!("{}-{}", std::process::id(), entry.file_name().to_string_lossy());
                let _ = std::fs::copy(entry.path(), kept.join(name));
            }
        }
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// A child process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success(), "kill -{name}");
    }

    /// `SIGKILL`, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// `SIGSTOP`: frozen where it stands.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// `SIGCONT`.
    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    /// `SIGINT`, as Ctrl-C sends it.
    pub(crate) fn interrupt(&self) {
        self.signal("INT");
    }

    /// How it ended, once it has.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        until("the process ends", async || self.child.try_wait().unwrap()).await
    }

    /// `SIGTERM`, and how it ended.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        self.signal("TERM");
        until("the process ends", async || self.child.try_wait().unwrap()).await
    }

    /// What all processes of the installation have logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.char_indices().rev().nth(20_000).map_or(0, |(at, _)| at);
            eprintln!("--- the end of the child processes' log ---\n{}", &log[tail..]);
        }
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the object store says, once it answers: the process that serves it may have been killed just now.
async fn answered<T>(mut ask: impl AsyncFnMut() -> tunesmith::error::Result<T>) -> T {
    until("the object store answers", async || match ask().await {
        Err(error) if error.kind() == Kind::Unavailable => None,
        outcome => Some(outcome.unwrap()),
    })
    .await
}

/// Asks until there is an answer.
pub(crate) async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, ask).await
}

/// Asks until there is an answer, for so long.
pub(crate) async fn within<T>(patience: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let clock = Clock::system();
    let begun = clock.monotonic();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(clock.monotonic().duration_since(begun) < patience, "waited {patience:?} until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
