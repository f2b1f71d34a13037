//! Every setting of the service: its flag, its environment variable, its default and what it
//! means. The doc comments are the `--help` text. Read once by clap, checked once by
//! [`Config::checked`]; nothing else in the crate looks at the environment.

mod accounts;
mod budgets;
mod data_dir;
mod inspection;
mod memory;
mod prefix;
mod redact;
mod roles;
mod serving;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use accounts::{Accounts, ListedAccount, is_account_id};
pub use budgets::Budgets;
pub use inspection::InspectionSettings;
pub use memory::{ByteSize, MemorySettings};
pub use prefix::Prefix;
pub use roles::{Grant, Roles};
pub use serving::ServingSettings;

use crate::durable::disk;
use crate::error::{Error, Result};

/// Which halves of the service this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// The HTTP API only.
    Api,
    /// The trainer only.
    Worker,
    /// Both.
    All,
}

/// A secret that never shows in logs, errors or `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself; say why you need it where you call this.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(value))
    }
}

/// Tenths of the disk that the cache may take when no setting says.
const CACHE_SHARE: u64 = 3;

/// The items of a list without the spaces around them; what a comma too many leaves is none.
fn items(list: Vec<String>) -> Vec<String> {
    list.iter().map(|item| item.trim()).filter(|item| !item.is_empty()).map(ToString::to_string).collect()
}

/// The settings of `serve`, `worker`, `migrate`, `keys` and `demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Address of the control plane and the runtime (HTTP/1.1 and h2c on one listener)
    #[arg(long, env = "TUNESMITH_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Folder of the embedded database, the embedded objects, the model cache and the first keys
    #[arg(long, env = "TUNESMITH_DATA_DIR", default_value = "./data")]
    pub data_dir: PathBuf,

    /// postgres://user:password@host/database, or sqlite://path; an SQLite file in the data folder when absent
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<Secret>,

    /// Endpoint of an S3-compatible store (MinIO, Ceph, AWS); the embedded S3 server when absent
    #[arg(long, env = "S3_ENDPOINT")]
    pub s3_endpoint: Option<String>,

    /// Access key for the S3 endpoint
    #[arg(long, env = "AWS_ACCESS_KEY_ID", hide_env_values = true)]
    pub s3_access_key: Option<String>,

    /// Secret key for the S3 endpoint
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub s3_secret_key: Option<Secret>,

    /// The most bytes of fetched models, quantised bases and asked checkpoints that are kept in the data folder, such as
    /// 100GiB; three tenths of its disk when absent
    #[arg(long, env = "TUNESMITH_CACHE_SIZE", value_name = "SIZE")]
    pub cache_size: Option<ByteSize>,

    /// Bucket in which the start and `doctor` write, read and remove an object below `.tunesmith/probe/`; without one
    /// they only ask whether the object store knows the key
    #[arg(long, env = "TUNESMITH_PROBE_BUCKET")]
    pub probe_bucket: Option<String>,

    /// Address of the embedded S3 server
    #[arg(long, env = "TUNESMITH_S3_LISTEN", default_value = "127.0.0.1:9000")]
    pub s3_listen: SocketAddr,

    /// Domains of the embedded S3 server, separated by commas: `bucket.s3.example.com` names a bucket where
    /// `s3.example.com` is one of them; `bucket.localhost` always does
    #[arg(long, env = "TUNESMITH_S3_DOMAIN", value_delimiter = ',')]
    pub s3_domain: Vec<String>,

    /// Trainer slots: `auto` (every GPU, or the CPU where there is none), `cpu`, or `cuda:0,cuda:1`; one job at a
    /// time on each
    #[arg(long, env = "TUNESMITH_DEVICES", default_value = "auto")]
    pub devices: String,

    /// What training may take.
    #[command(flatten)]
    pub memory: MemorySettings,

    /// What answering may take.
    #[command(flatten)]
    pub serving: ServingSettings,

    /// What inspecting imported models may take.
    #[command(flatten)]
    pub inspection: InspectionSettings,

    /// Folder of Hugging Face model directories; a directory's name is the model's id (one dot only)
    #[arg(long, env = "TUNESMITH_MODELS")]
    pub models: Option<String>,

    /// Access key made known at first start; drawn at random when absent
    #[arg(long, env = "TUNESMITH_ROOT_ACCESS_KEY", hide_env_values = true)]
    pub root_access_key: Option<String>,

    /// Secret key that belongs to the root access key
    #[arg(long, env = "TUNESMITH_ROOT_SECRET_KEY", hide_env_values = true)]
    pub root_secret_key: Option<Secret>,

    /// Bearer key made known at first start; drawn at random when absent
    #[arg(long, env = "TUNESMITH_ROOT_BEARER_KEY", hide_env_values = true)]
    pub root_bearer_key: Option<Secret>,

    /// Twelve-digit account id that goes into ARNs
    #[arg(long, env = "TUNESMITH_ACCOUNT_ID", default_value = "000000000000")]
    pub account_id: String,

    /// Region that goes into ARNs and signatures
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    pub region: String,

    /// Endpoint of the Lambda invocation API that graders of reinforcement jobs answer at (AWS, LocalStack), or a whole
    /// address that ends with `/invocations` (the Lambda runtime emulator); such jobs are refused when absent
    #[arg(long, env = "TUNESMITH_LAMBDA_ENDPOINT")]
    pub lambda_endpoint: Option<String>,

    /// How long one invocation of a grader may take before it is tried again, in seconds
    #[arg(long, env = "TUNESMITH_LAMBDA_TIMEOUT_SECONDS", default_value_t = 120)]
    pub lambda_timeout_seconds: u64,

    /// File (TOML or JSON) that says which parts of object storage each IAM role may read and write; every role
    /// passes when absent
    #[arg(long, env = "TUNESMITH_ROLES", value_parser = Roles::load)]
    pub roles: Option<Roles>,

    /// File (TOML or JSON) that assigns parts of object storage to accounts; the same for every API process of a
    /// database. `tunesmith accounts` does so one by one
    #[arg(long, env = "TUNESMITH_ACCOUNTS", value_parser = Accounts::load)]
    pub accounts: Option<Accounts>,

    /// Origins, separated by commas, whose web pages may call the API from a browser, such as
    /// `https://console.example.com`; `*` for every origin; none when absent
    #[arg(long, env = "TUNESMITH_CORS_ORIGINS", value_delimiter = ',')]
    pub cors_origins: Vec<String>,

    /// How many requests a key may send per second in the long run, fractions too; no limit when absent
    #[arg(long, env = "TUNESMITH_RATE_LIMIT")]
    pub rate_limit: Option<f64>,

    /// How many requests a key may send at once; twice the rate when absent
    #[arg(long, env = "TUNESMITH_RATE_BURST")]
    pub rate_burst: Option<u32>,

    /// How long a worker may go without renewing before its job is given to another, in seconds
    #[arg(long, env = "TUNESMITH_LEASE_SECONDS", default_value_t = 60)]
    pub lease_seconds: u64,

    /// Folder whose files order faults at named steps of a job: for tests alone
    #[cfg(feature = "fault-points")]
    #[arg(long, env = "TUNESMITH_FAULT_POINTS", hide = true)]
    pub fault_points: Option<PathBuf>,

    /// How long a stopping process waits for a checkpoint and for requests in flight, in seconds
    #[arg(long, env = "TUNESMITH_GRACE_SECONDS", default_value_t = 30)]
    pub grace_seconds: u64,

    /// How long a client may take nothing of a reply that waits for it before the reply is cut off, in seconds
    #[arg(long, env = "TUNESMITH_STALL_SECONDS", default_value_t = 30)]
    pub stall_seconds: u64,
}

impl Config {
    /// Refuses settings that cannot work, with a sentence that says what to change.
    pub fn checked(mut self) -> Result<Self> {
        let wrong = |what: String| Err(Error::validation(what));
        self.s3_domain = items(self.s3_domain);
        self.cors_origins = items(self.cors_origins);
        if !is_account_id(&self.account_id) {
            return wrong(format!("TUNESMITH_ACCOUNT_ID must be 12 digits, not {:?}", self.account_id));
        }
        if self.region.is_empty()
            || self.region.len() > 20
            || !self.region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return wrong(format!(
                "AWS_REGION must be 1 to 20 lower-case letters, digits and '-', not {:?}",
                self.region
            ));
        }
        if self.root_access_key.is_some() != self.root_secret_key.is_some() {
            return wrong("TUNESMITH_ROOT_ACCESS_KEY and TUNESMITH_ROOT_SECRET_KEY must be set together".into());
        }
        if self.s3_endpoint.is_some() && (self.s3_access_key.is_none() || self.s3_secret_key.is_none()) {
            return wrong("S3_ENDPOINT needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".into());
        }
        if self.rate_limit.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return wrong("TUNESMITH_RATE_LIMIT must be greater than 0; leave it out for no limit".into());
        }
        if self.rate_burst == Some(0) {
            return wrong("TUNESMITH_RATE_BURST must be at least 1: a key could never call".into());
        }
        let lambda = self.lambda_endpoint.as_deref();
        if lambda.is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            return wrong("TUNESMITH_LAMBDA_ENDPOINT must begin with http:// or https://".into());
        }
        let is_origin = |origin: &str| {
            let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            host.is_some_and(|host| {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@*,\"".contains(&b))
            })
        };
        if let Some(wrong_origin) = self.cors_origins.iter().find(|origin| *origin != "*" && !is_origin(origin)) {
            return wrong(format!(
                "TUNESMITH_CORS_ORIGINS must be origins without a path, such as https://console.example.com, or *, not \
                 {wrong_origin:?}"
            ));
        }
        if self.lambda_timeout_seconds == 0 {
            return wrong("TUNESMITH_LAMBDA_TIMEOUT_SECONDS must be at least 1".into());
        }
        self.serving.check()?;
        if self.stall_seconds == 0 {
            return wrong("TUNESMITH_STALL_SECONDS must be at least 1: no reply could be read".into());
        }
        if self.lease_seconds < 4 {
            return wrong("TUNESMITH_LEASE_SECONDS must be at least 4".into());
        }
        Ok(self)
    }

    /// The database's URL, the embedded default filled in.
    pub fn database(&self) -> Secret {
        match &self.database_url {
            Some(url) => url.clone(),
            None => Secret::new(format!("sqlite://{}", self.data_dir.join("tunesmith.db").display())),
        }
    }

    /// The database's URL without its secrets, for messages.
    pub fn shown_database(&self) -> String {
        redact::redacted(&self.database())
    }

    /// Trainer slots, each of which works on one job at a time.
    pub fn slots(&self) -> u64 {
        self.devices.split(',').count().max(1) as u64
    }

    /// Where everything is kept that can be fetched or made again.
    pub fn cache(&self) -> PathBuf {
        self.data_dir.join("cache")
    }

    /// Bytes that the cache may take: what is set, or else [`CACHE_SHARE`] of its disk.
    pub fn cache_bytes(&self) -> u64 {
        // No bound where the system does not tell.
        let share = || disk::space(&self.data_dir).map_or(u64::MAX, |space| space.total / 10 * CACHE_SHARE);
        self.cache_size.map_or_else(share, |ByteSize(bytes)| bytes)
    }

    /// Where base models that were quantised are kept.
    pub fn quantized(&self) -> PathBuf {
        self.cache().join("quantized")
    }

    /// Where checkpoints of running jobs are brought to be asked.
    pub fn previews(&self) -> PathBuf {
        self.cache().join("previews")
    }

    /// How many requests a key may send at once.
    pub fn rate_burst(&self) -> u32 {
        self.rate_burst.unwrap_or_else(|| (2.0 * self.rate_limit.unwrap_or_default()).ceil().max(1.0) as u32)
    }

    /// The lease a worker holds on a job.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }

    /// How long a client may take nothing of a reply.
    pub fn stall(&self) -> Duration {
        Duration::from_secs(self.stall_seconds)
    }

    /// How long a stopping process waits.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }
}

#[cfg(test)]
impl Config {
    /// The settings of a command line; for tests.
    pub(crate) fn of(arguments: &[&str]) -> Self {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            config: Config,
        }
        <Line as clap::Parser>::parse_from(["test"].iter().chain(arguments)).config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_may_have_spaces_and_commas_too_many() {
        let checked = |arguments: &[&str]| Config::of(arguments).checked().unwrap();
        let config = checked(&["--cors-origins= https://a.example , ,http://b.example,", "--s3-domain=s3.a.example, "]);
        assert_eq!(config.cors_origins, ["https://a.example", "http://b.example"]);
        assert_eq!(config.s3_domain, ["s3.a.example"]);
        let none = checked(&["--cors-origins=", "--s3-domain= ,"]);
        assert!(none.cors_origins.is_empty() && none.s3_domain.is_empty(), "{none:?}");
    }
}
