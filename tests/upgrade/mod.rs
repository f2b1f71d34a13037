//! What an earlier version left running is finished by this one. `make.py` says how the folders here were made: a
//! database, and the checkpoint of a job whose process was killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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
        let url = format!("sqlite://{}", folder.path().join("tunesmith.db").display());
        let db = Db::connect(&url).await.unwrap();
        let Db::Sqlite(pool) = &db else { panic!("{url}") };
        let dump = std::fs::read_to_string(left_by("0.1.0").join("sqlite.sql")).unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(dump)).execute(pool).await.unwrap();
        finished("0.1.0", folder.path(), &db, None).await;
    });
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

    let mut service = Service::start(folder, &left, url);
    let objects = service.objects();
    until(&mut service, "the object store answers", async || objects.ensure_bucket("tuning").await.ok()).await;
    let put = async |key: &str, path: &Path| {
        objects.put_file(&Uri::new("tuning", key), path, &Put::default()).await.unwrap();
    };
    for name in ["train.jsonl", "validation.jsonl"] {
        put(name, &left.join(name)).await;
    }
    let root = Uri::parse(&job.spec.output_prefix().unwrap()).unwrap().key().to_string();
    let checkpoint = left.join("checkpoint/checkpoints/step-00000120");
    for entry in std::fs::read_dir(&checkpoint).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        put(&format!("{root}/attempt-1/checkpoints/step-00000120/{name}"), &path).await;
    }

    // Only now is there somebody to take the job.
    service.work();
    let resumed = service.completed(db, &job.spec).await;
    assert_eq!(resumed.attempt, 2);
    let events = job_events::list(db, ACCOUNT, &job.spec.id).await.unwrap();
    let told: Vec<_> = events.iter().map(|event| (event.kind.as_str(), event.detail.as_str())).collect();
    assert!(told.contains(&("Resumed", "step 120")), "{told:?}");

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

/// The binary of this version on a data folder: first its API and object store, then a worker beside them.
struct Service {
    children: Vec<Child>,
    folder: PathBuf,
    models: PathBuf,
    database: Option<String>,
    listen: [String; 2],
}

impl Service {
    fn start(folder: &Path, left: &Path, database: Option<&str>) -> Self {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut service = Self {
            children: Vec::new(),
            folder: folder.into(),
            models: left.join("models"),
            database: database.map(str::to_string),
            listen: [free(), free()],
        };
        service.spawn(&["serve", "--role", "api"]);
        service
    }

    fn work(&mut self) {
        self.spawn(&["worker"]);
    }

    fn spawn(&mut self, arguments: &[&str]) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        command
            .args(arguments)
            .env("TUNESMITH_LISTEN", &self.listen[0])
            .env("TUNESMITH_S3_LISTEN", &self.listen[1])
            .env("TUNESMITH_DATA_DIR", &self.folder)
            .env("TUNESMITH_MODELS", &self.models)
            .env("TUNESMITH_ROOT_ACCESS_KEY", ACCESS_KEY)
            .env("TUNESMITH_ROOT_SECRET_KEY", SECRET_KEY)
            .env_remove("DATABASE_URL")
            .env_remove("S3_ENDPOINT")
            .envs(self.database.iter().map(|url| ("DATABASE_URL", url)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.children.push(command.spawn().unwrap());
    }

    fn objects(&self) -> Objects {
        Objects::new(&Endpoint {
            url: format!("http://{}", self.listen[1]),
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            region: "us-east-1".into(),
        })
    }

    async fn completed(&mut self, db: &Db, spec: &JobSpec) -> Job {
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

async fn until<T>(service: &mut Service, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
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
