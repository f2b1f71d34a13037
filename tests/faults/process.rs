//! The real binary as a child process, which can be killed, frozen and asked to end.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::objects::{Endpoint, Objects, Put, Uri};
use tunesmith::store::jobs::{self, Accepted, Job, JobSpec};
use tunesmith::store::{Db, Status, job_events};

use super::tiny;

const ACCESS_KEY: &str = "AKIAFAULTS";
const SECRET_KEY: &str = "a-secret-for-fault-tests";
/// Short, so that a frozen worker's job is soon free again; long enough for a machine whose disk is busy.
pub(crate) const LEASE: Duration = Duration::from_secs(15);
/// Nothing in these tests takes longer when it works.
const PATIENCE: Duration = Duration::from_secs(180);

/// One installation: a data folder with its database, and the addresses of its servers.
pub(crate) struct House {
    folder: tempfile::TempDir,
    models: PathBuf,
    api: SocketAddr,
    s3: SocketAddr,
    pub(crate) db: Db,
    pub(crate) objects: Objects,
}

impl House {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::connect(&format!("sqlite://{}", folder.path().join("tunesmith.db").display())).await.unwrap();
        db.migrate().await.unwrap();
        let (api, s3) = (free_port(), free_port());
        let objects = Objects::new(&Endpoint {
            url: format!("http://{s3}"),
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            region: "us-east-1".into(),
        });
        Self { models: tiny::models(folder.path()), folder, api, s3, db, objects }
    }

    /// Starts `tunesmith <arguments>` on this installation.
    pub(crate) fn start(&self, arguments: &[&str]) -> Process {
        let path = self.folder.path().join("log");
        let log = std::fs::File::options().create(true).append(true).open(&path).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tunesmith"))
            .args(arguments)
            .env("TUNESMITH_LISTEN", self.api.to_string())
            .env("TUNESMITH_S3_LISTEN", self.s3.to_string())
            .env("TUNESMITH_DATA_DIR", self.folder.path())
            .env("TUNESMITH_MODELS", &self.models)
            .env("TUNESMITH_ROOT_ACCESS_KEY", ACCESS_KEY)
            .env("TUNESMITH_ROOT_SECRET_KEY", SECRET_KEY)
            // Whose jobs the tests put into the database: the bucket is theirs.
            .env("TUNESMITH_ACCOUNT_ID", crate::jobs::ACCOUNT)
            .env("TUNESMITH_LEASE_SECONDS", LEASE.as_secs().to_string())
            .env_remove("DATABASE_URL")
            .env_remove("S3_ENDPOINT")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Process { child, log: path }
    }

    /// Puts the data set into the object store, once that answers.
    pub(crate) async fn upload_data(&self) {
        until("the object store answers", async || self.objects.ensure_bucket("tuning").await.ok()).await;
        let uri = Uri::parse("s3://tuning/train.jsonl").unwrap();
        self.objects.put_bytes(&uri, tiny::data(), &Put::default()).await.unwrap();
    }

    /// Puts an object where jobs can read it.
    pub(crate) async fn put(&self, key: &str, text: &str) {
        let uri = Uri::new("tuning", key);
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

    pub(crate) async fn submit(&self, spec: &JobSpec) {
        assert_eq!(jobs::insert(&self.db, spec, &[]).await.unwrap(), Accepted::Inserted);
    }

    pub(crate) async fn job(&self, spec: &JobSpec) -> Job {
        jobs::find(&self.db, &spec.account_id, &spec.name).await.unwrap().unwrap()
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
        self.objects.get_bytes(&folder.join(name), 64 << 20).await.unwrap().to_vec()
    }

    /// Everything under the job's folder that is not an attempt's own.
    pub(crate) async fn visible(&self, spec: &JobSpec) -> Vec<(String, String)> {
        let folder = Uri::parse(&spec.output_prefix().unwrap()).unwrap().folder();
        let all = self.objects.list(&folder).all().await.unwrap();
        let named = all.into_iter().map(|object| (object.uri.key()[folder.key().len()..].to_string(), object.etag));
        named.filter(|(name, _)| !name.starts_with("attempt-")).collect()
    }

    /// The kinds of the job's events, in order.
    pub(crate) async fn events(&self, spec: &JobSpec) -> Vec<String> {
        let events = job_events::list(&self.db, &spec.account_id, &spec.id).await.unwrap();
        events.into_iter().map(|event| event.kind).collect()
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
            eprintln!("--- log of the child processes ---\n{}", self.log());
        }
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let clock = Clock::system();
    let begun = clock.monotonic();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(clock.monotonic().duration_since(begun) < PATIENCE, "waited {PATIENCE:?} until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
