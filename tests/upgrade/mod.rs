//! What an earlier version left running is finished by this one. `make.py` says how the folders here were made: a
//! database, and the checkpoint of a job whose process was killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sha2::Digest;
use tunesmith::clock::Clock;
use tunesmith::objects::{Endpoint, Objects, Put, Uri};
use tunesmith::store::jobs::{self, Job, JobSpec};
use tunesmith::store::{Db, Status, job_events};

use crate::jobs::database::{Schema, block_on, postgres};

const ACCESS_KEY: &str = "AKIAUPGRADETESTS";
const SECRET_KEY: &str = "a-secret-for-upgrade-tests";
const ACCOUNT: &str = "000000000000";
/// The job that was left, and how far.
const LEFT: &str = "left-running";
const STEP: usize = 120;
const ADAPTER: &str = "adapter/adapter_model.safetensors";
const METRICS: &str = "training_artifacts/step_wise_training_metrics.csv";

fn left_by(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upgrade").join(version)
}

#[test]
fn a_job_that_0_1_0_left_running_is_finished_from_its_checkpoint_on_sqlite() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let db = sqlite(folder.path()).await;
        finished("0.1.0", folder.path(), &db, None).await;
    });
}

/// The database that was left, where a service of this data folder looks for it.
async fn sqlite(folder: &Path) -> Db {
    let url = format!("sqlite://{}", folder.join("tunesmith.db").display());
    let db = Db::connect(&url).await.unwrap();
    let Db::Sqlite(pool) = &db else { panic!("{url}") };
    let dump = std::fs::read_to_string(left_by("0.1.0").join("sqlite.sql")).unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(dump)).execute(pool).await.unwrap();
    db
}

#[test]
fn a_job_that_0_1_0_left_running_is_finished_from_its_checkpoint_on_postgres() {
    let Some(url) = postgres() else { return };
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let schema = Schema::create(url).await;
        let db = Db::connect(&schema.url).await.unwrap();
        let Db::Postgres(pool) = &db else { panic!("{url}") };
        let dump = std::fs::read_to_string(left_by("0.1.0").join("postgres.sql")).unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(dump)).execute(pool).await.unwrap();
        finished("0.1.0", folder.path(), &db, Some(&schema.url)).await;
        db.close().await;
        schema.remove().await;
    });
}

/// Migrates, starts this version on the database and the checkpoint, and compares what comes out with a run that
/// nobody interrupted.
async fn finished(version: &str, folder: &Path, db: &Db, url: Option<&str>) {
    let left = left_by(version);
    db.migrate().await.unwrap();
    let job = jobs::find(db, ACCOUNT, LEFT).await.unwrap().unwrap();
    assert_eq!((job.status, job.attempt), (Status::InProgress, 1));

    let checkpoint = left.join("checkpoint/checkpoints/step-00000120");
    let mut service = take_up(folder, &left, db, url, &checkpoint).await;
    let objects = service.objects();
    let resumed = service.completed(db, &job.spec).await;
    assert_eq!(resumed.attempt, 2);
    assert!(told(db, &job.spec).await.contains(&("Resumed".into(), "step 120".into())));

    // The same job, from its beginning.
    let whole = JobSpec {
        id: "wholerun0001".into(),
        arn: job.spec.arn.replace(&job.spec.id, "wholerun0001"),
        name: "whole".into(),
        request_token: None,
        output_model_name: "whole".into(),
        ..job.spec.clone()
    };
    assert_eq!(jobs::insert(db, &whole, &[]).await.unwrap(), jobs::Accepted::Inserted);
    service.completed(db, &whole).await;

    let output = async |spec: &JobSpec, name: &str| {
        let folder = Uri::parse(&spec.output_prefix().unwrap()).unwrap();
        objects.get_bytes(&folder.join(name), 64 << 20).await.unwrap().to_vec()
    };
    let text = async |spec: &JobSpec| String::from_utf8(output(spec, METRICS).await).unwrap();
    let (finished, uninterrupted) = (text(&job.spec).await, text(&whole).await);
    let kept = std::fs::read_to_string(checkpoint.join("step_wise_training_metrics.csv")).unwrap();
    assert_eq!(kept.lines().count(), 1 + STEP);
    assert!(finished.starts_with(&kept), "what was learned before the upgrade stands");
    if uninterrupted.starts_with(&kept) {
        assert_eq!(finished, uninterrupted);
        assert!(output(&job.spec, ADAPTER).await == output(&whole, ADAPTER).await, "the adapter's bits differ");
    } else {
        // This processor does not add as the one did that the checkpoint was made on: the bits are not to be had.
        eprintln!("the checkpoint was made on another kind of processor: losses are compared within 2 %");
        let loss = |csv: &str| csv.lines().last().unwrap().split(',').nth(2).unwrap().parse::<f64>().unwrap();
        let (ours, theirs) = (loss(&finished), loss(&uninterrupted));
        assert!((ours - theirs).abs() <= 0.02 * theirs, "{ours} and {theirs}");
    }
}

/// Starts this version on the database, with the data and this checkpoint in its store.
async fn take_up(folder: &Path, left: &Path, db: &Db, url: Option<&str>, checkpoint: &Path) -> Service {
    let job = jobs::find(db, ACCOUNT, LEFT).await.unwrap().unwrap();
    let mut service = Service::start(folder, &left.join("models"), url, ACCOUNT);
    let objects = service.objects();
    until(&mut service, "the object store answers", async || objects.ensure_bucket("tuning").await.ok()).await;
    let put = async |key: &str, path: &Path| {
        objects.put_file(&Uri::new("tuning", key), path, &Put::default()).await.unwrap();
    };
    for name in ["train.jsonl", "validation.jsonl"] {
        put(name, &left.join(name)).await;
    }
    let root = Uri::parse(&job.spec.output_prefix().unwrap()).unwrap().key().to_string();
    for entry in std::fs::read_dir(checkpoint).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        put(&format!("{root}/attempt-1/checkpoints/step-00000120/{name}"), &path).await;
    }
    // Only now is there somebody to take the job.
    service.work(url);
    service
}

/// The events of a job.
async fn told(db: &Db, spec: &JobSpec) -> Vec<(String, String)> {
    let events = job_events::list(db, &spec.account_id, &spec.id).await.unwrap();
    events.into_iter().map(|event| (event.kind, event.detail)).collect()
}

#[test]
fn a_checkpoint_of_a_format_to_come_is_refused_by_name_and_the_job_begins_again() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let left = left_by("0.1.0");
        let db = sqlite(folder.path()).await;
        db.migrate().await.unwrap();
        // The manifest names another format, and the listing knows the manifest.
        let checkpoint = folder.path().join("from-the-future");
        std::fs::create_dir(&checkpoint).unwrap();
        for entry in std::fs::read_dir(left.join("checkpoint/checkpoints/step-00000120")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, checkpoint.join(path.file_name().unwrap())).unwrap();
        }
        let read = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(checkpoint.join(name)).unwrap()).unwrap()
        };
        let (mut manifest, mut listing) = (read("manifest.json"), read("listing.json"));
        manifest["formatVersion"] = 9.into();
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let entry = serde_json::json!({ "size": bytes.len(), "sha256": hex::encode(sha2::Sha256::digest(&bytes)) });
        listing["files"]["manifest.json"] = entry;
        std::fs::write(checkpoint.join("manifest.json"), bytes).unwrap();
        std::fs::write(checkpoint.join("listing.json"), serde_json::to_vec(&listing).unwrap()).unwrap();

        let mut service = take_up(folder.path(), &left, &db, None, &checkpoint).await;
        let job = jobs::find(&db, ACCOUNT, LEFT).await.unwrap().unwrap();
        service.completed(&db, &job.spec).await;
        let told = told(&db, &job.spec).await;
        let why = "step-00000120 has format 9 and is not used: this version of the program reads formats 1 to 2";
        assert!(told.contains(&("CheckpointRefused".into(), why.into())), "{told:?}");
        assert!(told.iter().all(|(kind, _)| kind != "Resumed"), "{told:?}");
    });
}

/// The binary of this version on a data folder: first its API and object store, then a worker beside them.
pub(crate) struct Service {
    children: Vec<Child>,
    folder: PathBuf,
    models: PathBuf,
    account: String,
    listen: [String; 2],
}

impl Service {
    /// For the account whose the buckets and jobs are.
    pub(crate) fn start(folder: &Path, models: &Path, database: Option<&str>, account: &str) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut service = Self {
            children: Vec::new(),
            folder: folder.into(),
            models: models.into(),
            account: account.into(),
            listen: [free(), free()],
        };
        service.spawn(&["serve", "--role", "api"], database);
        service
    }

    /// Starts a worker, which may reach the database by a way of its own.
    pub(crate) fn work(&mut self, database: Option<&str>) {
        self.spawn(&["worker", "--lease-seconds", "4"], database);
    }

    fn spawn(&mut self, arguments: &[&str], database: Option<&str>) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        command
            .args(arguments)
            .env("TUNESMITH_LISTEN", &self.listen[0])
            .env("TUNESMITH_S3_LISTEN", &self.listen[1])
            .env("TUNESMITH_DATA_DIR", &self.folder)
            .env("TUNESMITH_MODELS", &self.models)
            .env("TUNESMITH_ACCOUNT_ID", &self.account)
            .env("TUNESMITH_ROOT_ACCESS_KEY", ACCESS_KEY)
            .env("TUNESMITH_ROOT_SECRET_KEY", SECRET_KEY)
            .env_remove("DATABASE_URL")
            .env_remove("S3_ENDPOINT")
            .envs(database.map(|url| ("DATABASE_URL", url)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.children.push(command.spawn().unwrap());
    }

    /// Sends a signal to the API and its object store.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.children[0].id().to_string()).status();
        assert!(sent.unwrap().success(), "kill -{name}");
    }

    pub(crate) fn objects(&self) -> Objects {
        Objects::new(&Endpoint {
            url: format!("http://{}", self.listen[1]),
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            region: "us-east-1".into(),
        })
    }

    pub(crate) async fn completed(&mut self, db: &Db, spec: &JobSpec) -> Job {
        until(self, "the job is completed", async || {
            let job = jobs::find(db, &spec.account_id, &spec.name).await.unwrap().unwrap();
            assert!(!matches!(job.status, Status::Failed | Status::Stopped), "{:?}", job.failure_message);
            (job.status == Status::Completed).then_some(job)
        })
        .await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
        for child in &mut self.children {
            // Both fail when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) async fn until<T>(service: &mut Service, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let clock = Clock::system();
    let begun = clock.monotonic();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        for child in &mut service.children {
            assert!(child.try_wait().unwrap().is_none(), "a process ended early");
        }
        assert!(clock.monotonic().duration_since(begun) < Duration::from_secs(180), "waited until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
