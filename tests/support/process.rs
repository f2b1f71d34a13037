//! `tunesmith serve` as a child process on ports of its own, for clients that are programs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::proxy::{Exchange, Proxy};
use super::recorder;

/// A running service, killed when dropped.
pub(crate) struct Serve {
    child: Child,
    folder: tempfile::TempDir,
    /// In front of the API: it sees every reply.
    proxy: Proxy,
    /// `http://…` of the embedded object store.
    s3: String,
}

pub(crate) const ACCESS_KEY: &str = "AKIACLIENTTESTS";
pub(crate) const SECRET_KEY: &str = "a-secret-for-client-tests";
pub(crate) const BEARER_KEY: &str = "a-bearer-key-for-client-tests";

impl Serve {
    /// Starts the service and waits until it is ready.
    pub(crate) fn start() -> Self {
        recorder::plant(SECRET_KEY);
        recorder::plant(BEARER_KEY);
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready.json");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tunesmith"))
            .args(["serve", "--listen=127.0.0.1:0", "--s3-listen=127.0.0.1:0"])
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .arg("--ready-file")
            .arg(&ready)
            .env("TUNESMITH_ROOT_ACCESS_KEY", ACCESS_KEY)
            .env("TUNESMITH_ROOT_SECRET_KEY", SECRET_KEY)
            .env("TUNESMITH_ROOT_BEARER_KEY", BEARER_KEY)
            .envs([("AWS_REGION", "us-east-1")])
            .env_remove("DATABASE_URL")
            .env_remove("S3_ENDPOINT")
            .env_remove("TUNESMITH_MODELS")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let addresses = wait_until_ready(&mut child, &ready);
        let address = |name: &str| addresses[name].as_str().unwrap_or_default().to_string();
        let proxy = Proxy::start(address("listen").parse().unwrap());
        Self { child, folder, proxy, s3: format!("http://{}", address("s3")) }
    }

    /// What the service has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The service's own folder.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Where the API listens.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.proxy.address
    }

    /// `http://…` of the embedded object store.
    pub(crate) fn s3(&self) -> &str {
        &self.s3
    }

    /// A folder that goes away with the service.
    pub(crate) fn scratch(&self) -> PathBuf {
        let path = self.folder.path().join("scratch");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Runs a client against the service and fails with its output and the service's log, or when a reply that it
    /// got is not what the document says. Gives the replies of the operations as lines of JSON.
    pub(crate) fn run(&self, command: &mut Command) -> String {
        let api = format!("http://{}", self.proxy.address);
        let output = command
            .env_remove("AWS_PROFILE")
            .env_remove("AWS_SESSION_TOKEN")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL_BEDROCK", &api)
            .env("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", &api)
            .env("AWS_ENDPOINT_URL_S3", &self.s3)
            .env("TUNESMITH_TEST_BEARER_KEY", BEARER_KEY)
            .env("TUNESMITH_TEST_SCRATCH", self.scratch())
            .output()
            .unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{stdout}\n{stderr}\n--- the service's log:\n{}", self.log());
        recorder::search_log(&self.folder.path().join("log"), |_| false);
        self.proxy.take().iter().filter_map(line).map(|line| format!("{line}\n")).collect()
    }
}

fn wait_until_ready(child: &mut Child, file: &Path) -> Value {
    for _ in 0..1200 {
        if let Ok(text) = std::fs::read_to_string(file)
            && let Ok(addresses) = serde_json::from_str(&text)
        {
            return addresses;
        }
        assert!(child.try_wait().unwrap().is_none(), "the service ended early, its log is beside {}", file.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the service is not ready after a minute, its log is beside {}", file.display());
}

/// Holds a reply against the document, and names its operation if it is one's.
fn line(Exchange { method, target, reply }: &Exchange) -> Option<Value> {
    // A reply to a HEAD has a body only in its head.
    if method != "HEAD" {
        recorder::check(method, target, reply);
    }
    let operation = recorder::operation(method, target)?;
    if reply.header("content-type") == Some(recorder::EVENT_STREAM) {
        // Frames are no text; the clients themselves have read them.
        return None;
    }
    Some(json!({
        "operation": operation,
        "status": reply.status,
        "headers": reply.headers().collect::<serde_json::Map<_, _>>(),
        "body": reply.text(),
    }))
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
