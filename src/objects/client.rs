//! The S3 client: one set of timeouts, retries and checksum settings that AWS, MinIO, Ceph and our
//! own server all accept. Reading, writing and listing are in the files of those names.

use std::fmt;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
use futures::{TryStreamExt, stream};

use super::failure::{WRITE_PROBE, explain, unreadable, unwritable};
use super::wall::{Access, Scope};
use super::{Put, Uri};
use crate::clock::Millis;
use crate::error::{Error, Kind, Result};

/// Deletions under way at a time.
const DELETES: usize = 16;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest silence of a server. It may be silent while it makes 16 MiB durable on a slow disk.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for an operation's answer, retries included, while a caller waits for the service's own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the object store is and who we are to it.
#[derive(Clone)]
pub struct Endpoint {
    /// `http://127.0.0.1:9000`, `https://s3.eu-central-1.amazonaws.com`, …
    pub url: String,
    /// Access key.
    pub access_key: String,
    /// Secret key; never shown by `Debug`.
    pub secret_key: String,
    /// Region that goes into signatures.
    pub region: String,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("url", &self.url).field("region", &self.region).finish_non_exhaustive()
    }
}

/// A client of one object store; clones share its connections.
#[derive(Debug, Clone)]
pub struct Objects {
    pub(super) s3: Client,
    pub(super) region: String,
    /// The account on whose behalf it asks; `None` is the service itself.
    pub(super) scope: Option<Scope>,
}

/// What is known about an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Bytes.
    pub size: u64,
    /// As S3 gives it, quotes removed; the MD5 for objects written in one piece.
    pub etag: String,
    /// When it was last written.
    pub modified: Millis,
    /// As its writer declared it.
    pub content_type: Option<String>,
}

impl Objects {
    /// A client of the store at `endpoint`. Nothing is sent yet.
    pub fn new(endpoint: &Endpoint) -> Self {
        let credentials = Credentials::new(&endpoint.access_key, &endpoint.secret_key, None, None, "tunesmith");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(&endpoint.url)
            .region(Region::new(endpoint.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(true)
            // Servers that are not AWS refuse the SDK's default trailing checksums. Every body we send is
            // in memory, so it is signed by its SHA-256 and checked by the server all the same.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // Short waits: a caller hears within two seconds that a store refuses connections.
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(4)
                    .with_initial_backoff(Duration::from_millis(100))
                    .with_max_backoff(Duration::from_secs(1)),
            )
            .timeout_config(timeouts().build())
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled().grace_period(Duration::from_secs(30)).build(),
            )
            .build();
        Self { s3: Client::from_conf(config), region: endpoint.region.clone(), scope: None }
    }

    /// The same store, over the same connections, for a request whose caller waits: an operation that has no answer
    /// within two seconds is `Unavailable`, whether the store refuses connections or swallows them.
    #[must_use]
    pub fn for_requests(&self) -> Self {
        let timeouts = timeouts().operation_timeout(REQUEST_TIMEOUT).build();
        let config = self.s3.config().to_builder().timeout_config(timeouts).build();
        Self { s3: Client::from_conf(config), ..self.clone() }
    }

    /// Size, ETag and type of an object.
    ///
    /// # Errors
    /// `NotFound`, `AccessDenied`, `Unavailable`.
    pub async fn head(&self, uri: &Uri) -> Result<Head> {
        self.enter(uri, Access::Read).await?;
        let found = self.s3.head_object().bucket(uri.bucket()).key(uri.key()).send().await;
        Ok(Head::from(found.map_err(|error| explain("HeadObject", uri, error))?))
    }

    /// Removes an object. Removing what is not there succeeds.
    pub async fn delete(&self, uri: &Uri) -> Result<()> {
        self.enter(uri, Access::Write).await?;
        let removed = self.s3.delete_object().bucket(uri.bucket()).key(uri.key()).send().await;
        removed.map_err(|error| explain("DeleteObject", uri, error)).map(drop)
    }

    /// Removes every object whose key begins with `prefix` and says how many there were. An empty
    /// prefix is refused: nothing of ours ever empties a caller's bucket.
    pub async fn delete_prefix(&self, prefix: &Uri) -> Result<u64> {
        if prefix.key().is_empty() {
            return Err(Error::internal(anyhow::anyhow!("refused to empty the bucket of {prefix}")));
        }
        let mut removed = 0;
        let mut pages = self.list(prefix);
        while let Some(page) = pages.next().await? {
            removed += page.len() as u64;
            // Not the bulk call: it needs a checksum header that servers disagree about.
            let deletes = stream::iter(page.into_iter().map(Ok));
            deletes.try_for_each_concurrent(DELETES, |object| async move { self.delete(&object.uri).await }).await?;
        }
        Ok(removed)
    }

    /// Whether the bucket is there and belongs to the account, by S3's own question (`x-amz-expected-bucket-owner`).
    ///
    /// # Errors
    /// `Unavailable` when the store is away.
    pub async fn is_owner(&self, account: &str, bucket: &str) -> Result<bool> {
        match self.s3.head_bucket().bucket(bucket).expected_bucket_owner(account).send().await {
            Ok(_) => Ok(true),
            Err(error) => match explain("HeadBucket", &Uri::new(bucket, ""), error) {
                error if matches!(error.kind(), Kind::NotFound | Kind::AccessDenied | Kind::Validation) => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Makes the bucket unless it is there and ours.
    ///
    /// # Errors
    /// `AccessDenied` when it belongs to someone else, `Validation` for a bad name, `Unavailable`.
    pub async fn ensure_bucket(&self, bucket: &str) -> Result<()> {
        let uri = Uri::new(bucket, "");
        match self.s3.head_bucket().bucket(bucket).send().await {
            Ok(_) => return Ok(()),
            Err(error) => match explain("HeadBucket", &uri, error) {
                missing if missing.kind() == Kind::NotFound => {}
                error => return Err(error),
            },
        }
        let mut create = self.s3.create_bucket().bucket(bucket);
        if self.region != "us-east-1" {
            let place = BucketLocationConstraint::from(self.region.as_str());
            create = create
                .create_bucket_configuration(CreateBucketConfiguration::builder().location_constraint(place).build());
        }
        match create.send().await {
            Ok(_) => Ok(()),
            // Another process of ours was faster.
            Err(error) if error.as_service_error().is_some_and(|e| e.is_bucket_already_owned_by_you()) => Ok(()),
            Err(error) => Err(explain("CreateBucket", &uri, error)),
        }
    }

    /// Checks before a job is accepted that its input can be read.
    ///
    /// # Errors
    /// `Validation` with Bedrock's sentence when the object is missing or refused; `Unavailable`.
    pub async fn probe_read(&self, uri: &Uri) -> Result<Head> {
        self.head(uri).await.map_err(|error| refused(error, unreadable(uri)))
    }

    /// Checks before a job is accepted that its output can be written, by writing and removing
    /// `.write_access_check_file.tmp` under `folder` as AWS does, encrypted as the job's outputs will be.
    ///
    /// # Errors
    /// `Validation` with Bedrock's sentence when the bucket is missing or refuses; `Unavailable`.
    pub async fn probe_write(&self, folder: &Uri, put: &Put<'_>) -> Result<()> {
        let probe = folder.join(WRITE_PROBE);
        if let Err(error) = self.put_bytes(&probe, Vec::new(), put).await {
            return Err(refused(error, unwritable(folder)));
        }
        // A store that lets us write but not delete keeps an empty file; the job can still run.
        if let Err(error) = self.delete(&probe).await {
            tracing::warn!("the write probe stays behind: {}", error.log());
        }
        Ok(())
    }
}

fn timeouts() -> aws_sdk_s3::config::timeout::TimeoutConfigBuilder {
    TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT)
}

/// A caller's mistake in Bedrock's words; a store that is away stays `Unavailable`.
fn refused(error: Error, message: String) -> Error {
    match error.kind() {
        Kind::NotFound | Kind::AccessDenied | Kind::Validation => {
            Error::validation(message).because(anyhow::anyhow!(error.log()))
        }
        _ => error,
    }
}

impl From<HeadObjectOutput> for Head {
    fn from(found: HeadObjectOutput) -> Self {
        Self {
            size: size(found.content_length()),
            etag: bare(found.e_tag()),
            modified: found.last_modified().and_then(|at| at.to_millis().ok()).unwrap_or_default(),
            content_type: found.content_type,
        }
    }
}

/// S3 counts in signed numbers.
pub(super) fn size(length: Option<i64>) -> u64 {
    length.and_then(|length| u64::try_from(length).ok()).unwrap_or_default()
}

/// An ETag without the quotes of its header.
pub(super) fn bare(etag: Option<&str>) -> String {
    etag.unwrap_or_default().trim_matches('"').to_string()
}
