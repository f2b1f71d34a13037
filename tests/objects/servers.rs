//! The servers under test: ours in this process, moto's as a child, any other by its address.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tunesmith::clock::Clock;
use tunesmith::objects::embedded::{self, Holder, Keys, Server, Settings};
use tunesmith::objects::{Endpoint, Objects};

pub(super) const ACCESS_KEY: &str = "AKIATUNESMITHTESTS00";
pub(super) const SECRET_KEY: &str = "a secret that only the tests know";

/// One pair of keys.
pub(super) struct OneKey;

#[async_trait::async_trait]
impl Keys for OneKey {
    async fn holder(&self, access_key: &str) -> tunesmith::error::Result<Option<Holder>> {
        Ok((access_key == ACCESS_KEY).then(holder))
    }
}

/// The account's key without limits.
pub(super) fn holder() -> Holder {
    Holder { secret: SECRET_KEY.into(), account: Some(ACCOUNT.into()), token_digest: None, limits: None }
}

/// Our server on a free port, its objects in `folder`.
pub(super) async fn start(folder: &Path) -> Server {
    embedded::start(&settings(folder), Arc::new(OneKey), Clock::system()).await.unwrap()
}

/// The account that owns what is in our server.
pub(super) const ACCOUNT: &str = "111122223333";

/// Settings of our server on a free port.
pub(super) fn settings(folder: &Path) -> Settings {
    Settings {
        listen: "127.0.0.1:0".parse().unwrap(),
        folder: folder.to_path_buf(),
        region: "us-east-1".into(),
        account: ACCOUNT.into(),
        domains: vec!["s3.example.com".into()],
    }
}

/// The tests' credentials at `url`.
pub(super) fn endpoint(url: &str) -> Endpoint {
    Endpoint {
        url: url.to_string(),
        access_key: ACCESS_KEY.into(),
        secret_key: SECRET_KEY.into(),
        region: "us-east-1".into(),
    }
}

/// The SDK itself, for what `Objects` does not offer.
pub(crate) fn sdk(endpoint: &Endpoint) -> aws_sdk_s3::Client {
    let credentials =
        aws_sdk_s3::config::Credentials::new(&endpoint.access_key, &endpoint.secret_key, None, None, "tests");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .endpoint_url(&endpoint.url)
        .region(aws_sdk_s3::config::Region::new(endpoint.region.clone()))
        .credentials_provider(credentials)
        .force_path_style(true)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// A store to check, with a bucket of its own.
pub(super) struct Store {
    pub(super) objects: Objects,
    pub(super) s3: aws_sdk_s3::Client,
    pub(super) bucket: String,
}

impl Store {
    pub(super) async fn new(endpoint: &Endpoint) -> Self {
        let bucket = format!("tunesmith-{}", Clock::system().id());
        let objects = Objects::new(endpoint);
        objects.ensure_bucket(&bucket).await.unwrap();
        Self { objects, s3: sdk(endpoint), bucket }
    }

    pub(super) fn at(&self, key: &str) -> tunesmith::objects::Uri {
        tunesmith::objects::Uri::new(&self.bucket, key)
    }
}

/// moto's S3 server in a process of its own.
pub(crate) struct Moto {
    child: Child,
    pub(crate) url: String,
}

impl Moto {
    /// Starts it, or says why it cannot be had here.
    pub(crate) fn start() -> Result<Self, String> {
        let command = setting("TEST_MOTO_SERVER").unwrap_or_else(|| "moto_server".to_string());
        let mut words = command.split_whitespace();
        let program = words.next().ok_or("TEST_MOTO_SERVER is empty")?;
        let mut child = Command::new(program)
            .args(words)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|cause| format!("{command}: {cause}"))?;
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            if let Some((_, url)) = line.split_once("Running on ") {
                let url = url.trim().to_string();
                // Keep reading, or moto blocks on a full pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { child, url });
            }
            said.push_str(&line);
            said.push('\n');
        }
        let _ = child.wait();
        Err(format!("{command} ended before it listened:\n{said}"))
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A setting of the test run.
#[expect(clippy::disallowed_methods, reason = "tests are told by their environment what they may use")]
pub(super) fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A test that lacks what it needs fails in the full run and steps aside, loudly, elsewhere.
pub(crate) fn not_run(why: &str) {
    assert!(setting("TEST_REQUIRE_ALL").as_deref() != Some("1"), "{why}");
    println!("NOT RUN: {why}");
}
