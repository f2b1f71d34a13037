//! The real service on real sockets, in a folder that goes away: API, embedded object store, database.

pub(crate) mod client;
pub(crate) mod fault_proxy;
pub(crate) mod http;
pub(crate) mod process;
pub(crate) mod promise;
mod proxy;
pub(crate) mod recorder;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::{Value, json};
use tunesmith::config::{Config, Role};
use tunesmith::jobs::{Held, Queue};
use tunesmith::objects::{Put, Uri};
use tunesmith::service::Service;
use tunesmith::store::custom_models::CustomModel;
use tunesmith::store::keys::{self, Key, KeyKind};

use http::Reply;

/// A base model small enough to answer in milliseconds; it has learned nothing.
pub(crate) const TINY: &str = "tunesmith.tiny-v1:0";
pub(crate) const ACCOUNT: &str = "000000000000";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: Config,
}

/// A pair that signs requests.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    /// What a temporary pair sends beside its signature.
    pub(crate) session_token: Option<String>,
}

/// A running service.
pub(crate) struct TestApp {
    pub(crate) service: Service,
    pub(crate) address: SocketAddr,
    pub(crate) root: Pair,
    folder: tempfile::TempDir,
}

/// Runs a test against a service of its own, and stops it.
pub(crate) fn with_app<F: Future<Output = TestApp>>(test: impl FnOnce(TestApp) -> F) {
    with_settings(&[], test);
}

/// The same with further settings.
pub(crate) fn with_settings<F: Future<Output = TestApp>>(more: &[&str], test: impl FnOnce(TestApp) -> F) {
    run(Role::Api, more, test);
}

/// The same with a worker, which runs what is created.
pub(crate) fn with_worker<F: Future<Output = TestApp>>(more: &[&str], test: impl FnOnce(TestApp) -> F) {
    run(Role::All, more, test);
}

fn run<F: Future<Output = TestApp>>(role: Role, more: &[&str], test: impl FnOnce(TestApp) -> F) {
    crate::jobs::database::block_on(async {
        let app = test(TestApp::start(role, more).await).await;
        app.service.stop().await;
        recorder::nothing_told();
    });
}

/// Something that the golden tests are made from.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures").join(name)
}

/// Asks until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < http::PATIENCE, "waited {:?} until {what}", http::PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// A folder of models with [`TINY`] in it.
pub(crate) fn models(folder: &Path) -> PathBuf {
    let fixture = fixture("models/llama");
    let root = folder.join("models");
    let model = root.join(TINY);
    std::fs::create_dir_all(&model).unwrap();
    for entry in std::fs::read_dir(fixture).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().starts_with("expected") {
            std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
    }
    root
}

impl TestApp {
    async fn start(role: Role, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (data, models) = (folder.path().join("data"), models(folder.path()));
        let arguments = [
            "test",
            "--listen=127.0.0.1:0",
            "--s3-listen=127.0.0.1:0",
            "--data-dir",
            data.to_str().unwrap(),
            "--models",
            models.to_str().unwrap(),
        ];
        // This process is a test, and no program that inspects models.
        let inspector = ["--inspector", env!("CARGO_BIN_EXE_tunesmith")];
        let inspector = inspector.iter().filter(|_| !more.contains(&inspector[0]));
        let config = Line::parse_from(arguments.iter().chain(inspector).chain(more)).config;
        recorder::listen();
        let service = Service::start(config, role).await.unwrap();
        // A worker has none; a test of one makes no calls.
        let keys = service.keys.as_ref();
        let root = Pair {
            access_key: keys.map(|keys| keys.access_key.clone()).unwrap_or_default(),
            secret_key: keys.map(|keys| keys.secret_key.expose().to_string()).unwrap_or_default(),
            session_token: None,
        };
        for secret in keys.into_iter().flat_map(|keys| [Some(&keys.secret_key), keys.bearer_key.as_ref()]).flatten() {
            recorder::plant(secret.expose());
        }
        let address = service.api.unwrap();
        service.app.objects.ensure_bucket("tuning").await.unwrap();
        Self { service, address, root, folder }
    }

    /// Puts an object where jobs can read it.
    pub(crate) async fn upload(&self, uri: &str, text: &str) {
        let uri = Uri::parse(uri).unwrap();
        self.service.app.objects.put_bytes(&uri, text.as_bytes().to_vec(), &Put::default()).await.unwrap();
    }

    /// A key pair of another account.
    pub(crate) async fn stranger(&self) -> Pair {
        self.stranger_called("AKIASTRANGER").await
    }

    /// A key pair of another account, with this access key id.
    pub(crate) async fn stranger_called(&self, access_key: &str) -> Pair {
        let secret_key = "a-stranger's-secret".into();
        let pair = Pair { access_key: access_key.into(), secret_key, session_token: None };
        let key = Key {
            id: pair.access_key.clone(),
            account_id: "222222222222".into(),
            kind: KeyKind::SigV4,
            note: String::new(),
            created_at: self.service.app.clock.now(),
            expires_at: None,
            revoked_at: None,
            policy: None,
        };
        // The second call for the same id finds the key there.
        keys::insert_signing(&self.service.app.db, &key, &pair.secret_key).await.unwrap();
        pair
    }

    /// The `Authorization` of the root bearer key.
    pub(crate) fn root_bearer(&self) -> Vec<(String, String)> {
        let key = self.service.keys.as_ref().and_then(|keys| keys.bearer_key.clone()).unwrap();
        vec![("authorization".into(), format!("Bearer {}", key.expose()))]
    }

    /// `tunesmith keys` on the service's database: whether it went well, and what it printed.
    pub(crate) fn keys(&self, arguments: &[&str]) -> (bool, String) {
        self.command("keys", arguments)
    }

    /// Another command on the service's database.
    pub(crate) fn command(&self, command: &str, arguments: &[&str]) -> (bool, String) {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tunesmith"))
            .arg(command)
            .args(arguments)
            .arg("--data-dir")
            .arg(self.data_dir())
            .env_remove("DATABASE_URL")
            .env_remove("S3_ENDPOINT")
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// The service's own folder.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A pair made by `tunesmith keys create`.
    pub(crate) fn create_pair(&self, arguments: &[&str]) -> Pair {
        let (made, text) = self.keys(&[&["create"], arguments].concat());
        assert!(made, "{text}");
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(ToString::to_string);
        for name in ["AWS_SECRET_ACCESS_KEY=", "AWS_SESSION_TOKEN="] {
            value(name).iter().for_each(|secret| recorder::plant(secret));
        }
        Pair {
            access_key: value("AWS_ACCESS_KEY_ID=").unwrap(),
            secret_key: value("AWS_SECRET_ACCESS_KEY=").unwrap(),
            session_token: value("AWS_SESSION_TOKEN="),
        }
    }

    /// The `Authorization` of a bearer key made by `tunesmith keys create --bearer`.
    pub(crate) fn create_bearer(&self, arguments: &[&str]) -> Vec<(String, String)> {
        let (made, text) = self.keys(&[&["create", "--bearer"], arguments].concat());
        assert!(made, "{text}");
        let key = text.lines().find_map(|line| line.strip_prefix("AWS_BEARER_TOKEN_BEDROCK=")).unwrap();
        recorder::plant(key);
        vec![("authorization".into(), format!("Bearer {key}"))]
    }

    /// The SDK's client of the embedded object store.
    pub(crate) fn s3(&self, pair: &Pair) -> aws_sdk_s3::Client {
        let credentials = aws_sdk_s3::config::Credentials::new(
            &pair.access_key,
            &pair.secret_key,
            pair.session_token.clone(),
            None,
            "tests",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
            .endpoint_url(self.service.s3_endpoint().unwrap())
            .region(aws_sdk_s3::config::Region::new("us-east-1"))
            .credentials_provider(credentials)
            .force_path_style(true)
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }

    /// A request signed by the root pair; `target` is the raw path and query.
    pub(crate) async fn call(&self, method: &str, target: &str, body: Option<&Value>) -> Reply {
        self.call_as(&self.root, method, target, body).await
    }

    /// A request signed by `pair`.
    pub(crate) async fn call_as(&self, pair: &Pair, method: &str, target: &str, body: Option<&Value>) -> Reply {
        let body = body.map(Value::to_string).unwrap_or_default();
        let headers = self.signed(pair, method, target, &body, 0);
        http::send(self.address, method, target, &headers, body.as_bytes()).await
    }

    /// The headers that sign a request, as of `shift_s` seconds from now.
    pub(crate) fn signed(
        &self,
        pair: &Pair,
        method: &str,
        target: &str,
        body: &str,
        shift_s: i64,
    ) -> Vec<(String, String)> {
        let now = self.service.app.clock.now() + shift_s * 1000;
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(now.unsigned_abs());
        client::signed(self.address, pair, (method, target), body, time)
    }

    /// A request for a job that nothing stands in the way of; names derive from `name`.
    pub(crate) fn job(&self, name: &str) -> Value {
        json!({
            "jobName": name,
            "customModelName": format!("model-{name}"),
            "roleArn": "arn:aws:iam::000000000000:role/tuner",
            "baseModelIdentifier": TINY,
            "clientRequestToken": format!("token-{name}"),
            "trainingDataConfig": { "s3Uri": "s3://tuning/train.jsonl" },
            "outputDataConfig": { "s3Uri": "s3://tuning/out/" },
            "hyperParameters": { "epochCount": "1.0", "learningRate": "1e-5" },
        })
    }

    /// An active custom model, made by a job whose training is skipped: its adapter is one of the golden tests'.
    pub(crate) async fn model(&self, name: &str) -> CustomModel {
        self.model_of(name, Some("models/lora/after")).await
    }

    /// The same with another adapter of [`TINY`] among the fixtures; with `None` its files were never written.
    pub(crate) async fn model_of(&self, name: &str, adapter: Option<&str>) -> CustomModel {
        let arn = self.create(name).await;
        let app = &self.service.app;
        let queue = Queue::new(app.db.clone(), app.clock.clone(), std::time::Duration::from_secs(60));
        let claim = queue.claim("test").await.unwrap().unwrap();
        assert_eq!(claim.job.spec.arn, arn);
        assert_eq!(claim.publish(&json!({})).await.unwrap(), Held::Yes);
        let mut model = crate::jobs::model_of(&claim.job, app.clock.now());
        if let Some(adapter) = adapter {
            let (folder, root) = (fixture(adapter), Uri::parse(&model.artifact_uri).unwrap());
            model.artifact_digests.0.clear();
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                let put = app.objects.put_file(&root.join(file), &folder.join(file), &Put::default()).await.unwrap();
                model.artifact_digests.0.insert(file.into(), put.sha256);
            }
        }
        assert_eq!(claim.complete(&model).await.unwrap(), Held::Yes);
        model
    }

    /// Uploads a data set and creates a job; gives its ARN.
    pub(crate) async fn create(&self, name: &str) -> String {
        self.upload("s3://tuning/train.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n").await;
        let reply = self.call("POST", "/model-customization-jobs", Some(&self.job(name))).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()["jobArn"].as_str().unwrap().to_string()
    }
}

/// A path segment as SDKs send it.
pub(crate) fn segment(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
