//! The S3 client: path style, any endpoint, and errors that tell the three cases a caller can act on
//! apart: not there, not allowed, not reachable.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::uri::Uri;
use crate::config::Secret;
use crate::error::{Error, Kind, Result};

/// Files from this size on are sent in parts of [`PART_BYTES`].
const MULTIPART_FROM: u64 = 16 << 20;
/// The size of a part: S3 asks for at least 5 MiB and at most 10,000 parts.
const PART_BYTES: u64 = 16 << 20;
const MAX_PARTS: u64 = 10_000;

/// Where the S3 server is and who we are there.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `http://host:port`
    pub url: String,
    /// The region that requests are signed for.
    pub region: String,
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: Secret,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its size in bytes.
    pub size: u64,
    /// Its ETag, quotes removed.
    pub etag: String,
}

/// What was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes written.
    pub size: u64,
    /// SHA-256 of them, in hex.
    pub sha256: String,
}

/// One row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The object.
    pub uri: Uri,
    /// Its size in bytes.
    pub size: u64,
}

/// A client of one S3 server. Clones share connections.
#[derive(Debug, Clone)]
pub struct Objects {
    client: aws_sdk_s3::Client,
    kms_key: Option<Arc<str>>,
}

impl Objects {
    /// A client for `endpoint`. Nothing is sent yet.
    pub fn new(endpoint: &Endpoint) -> Self {
        let credentials = Credentials::new(
            endpoint.access_key.clone(),
            endpoint.secret_key.expose().to_string(),
            None,
            None,
            "tunesmith",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(&endpoint.url)
            .region(Region::new(endpoint.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(true)
            // Servers that are not AWS's do not all know the newer checksum trailers.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(3))
                    .read_timeout(Duration::from_secs(30))
                    .build(),
            )
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled().grace_period(Duration::from_secs(30)).build(),
            )
            .build();
        Self { client: aws_sdk_s3::Client::from_conf(config), kms_key: None }
    }

    /// The same client, asking the server to encrypt what it writes under this KMS key (SSE-KMS).
    #[must_use]
    pub fn with_kms_key(&self, key: Option<&str>) -> Self {
        Self { client: self.client.clone(), kms_key: key.map(Arc::from) }
    }

    /// The SDK's own client, for what has no method here.
    pub fn sdk(&self) -> &aws_sdk_s3::Client {
        &self.client
    }

    /// Size and ETag of an object.
    pub async fn head(&self, uri: &Uri) -> Result<Head> {
        let sent = self.client.head_object().bucket(uri.bucket()).key(uri.key()).send().await;
        let reply = sent.map_err(|cause| failure("read", uri, cause))?;
        Ok(Head {
            size: u64::try_from(reply.content_length().unwrap_or_default()).unwrap_or_default(),
            etag: reply.e_tag().unwrap_or_default().trim_matches('"').to_string(),
        })
    }

    /// A whole object in memory.
    ///
    /// # Errors
    /// `Validation` when it is larger than `cap` bytes; `NotFound`, `AccessDenied`, `Unavailable`.
    pub async fn get_bytes(&self, uri: &Uri, cap: u64) -> Result<Bytes> {
        let mut body = self.get(uri).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = body.try_next().await.map_err(|cause| broken(uri, cause))? {
            if bytes.len() as u64 + chunk.len() as u64 > cap {
                return Err(Error::validation(format!("{uri} is larger than the {cap} bytes that are read of it")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// Downloads an object into a file; what was there is replaced.
    pub async fn get_file(&self, uri: &Uri, path: &Path) -> Result<Fetched> {
        let mut body = self.get(uri).await?;
        let mut file = tokio::fs::File::create(path).await?;
        let (mut size, mut digest) = (0, Sha256::new());
        while let Some(chunk) = body.try_next().await.map_err(|cause| broken(uri, cause))? {
            digest.update(&chunk);
            size += chunk.len() as u64;
            file.write_all(&chunk).await?;
        }
        file.flush().await?;
        Ok(Fetched { size, sha256: hex::encode(digest.finalize()) })
    }

    async fn get(&self, uri: &Uri) -> Result<ByteStream> {
        let sent = self.client.get_object().bucket(uri.bucket()).key(uri.key()).send().await;
        Ok(sent.map_err(|cause| failure("read", uri, cause))?.body)
    }

    /// Stores bytes under a key.
    pub async fn put_bytes(&self, uri: &Uri, bytes: impl Into<Bytes>) -> Result<()> {
        self.put(uri, ByteStream::from(bytes.into())).await
    }

    /// Uploads a file, in parts when it is large: an object of many parts appears whole or not at all.
    pub async fn put_file(&self, uri: &Uri, path: &Path) -> Result<()> {
        let size = tokio::fs::metadata(path).await?.len();
        if size >= MULTIPART_FROM {
            return self.put_parts(uri, path, size).await;
        }
        self.put(uri, ByteStream::from(tokio::fs::read(path).await?)).await
    }

    async fn put(&self, uri: &Uri, body: ByteStream) -> Result<()> {
        let mut request = self.client.put_object().bucket(uri.bucket()).key(uri.key()).body(body);
        if let Some(content_type) = content_type(uri.key()) {
            request = request.content_type(content_type);
        }
        if let Some(key) = &self.kms_key {
            request = request.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(key.to_string());
        }
        request.send().await.map_err(|cause| failure("write", uri, cause))?;
        Ok(())
    }

    async fn put_parts(&self, uri: &Uri, path: &Path, size: u64) -> Result<()> {
        let mut request = self.client.create_multipart_upload().bucket(uri.bucket()).key(uri.key());
        if let Some(key) = &self.kms_key {
            request = request.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(key.to_string());
        }
        let begun = request.send().await.map_err(|cause| failure("write", uri, cause))?;
        let Some(upload) = begun.upload_id() else {
            return Err(Error::internal(anyhow::anyhow!("{uri}: the server began an upload without naming it")));
        };
        let sent = self.send_parts(uri, path, size, upload).await;
        if sent.is_err() {
            // Parts nobody will complete would be kept, and billed, for good.
            let aborted =
                self.client.abort_multipart_upload().bucket(uri.bucket()).key(uri.key()).upload_id(upload).send().await;
            if let Err(cause) = aborted {
                tracing::warn!(object.uri = %uri, error = %failure("write", uri, cause).log(), "an upload could not be aborted");
            }
        }
        sent
    }

    async fn send_parts(&self, uri: &Uri, path: &Path, size: u64, upload: &str) -> Result<()> {
        let part_bytes = PART_BYTES.max(size.div_ceil(MAX_PARTS));
        let mut file = tokio::fs::File::open(path).await?;
        let mut parts = Vec::new();
        for number in 1.. {
            let mut bytes = Vec::new();
            (&mut file).take(part_bytes).read_to_end(&mut bytes).await?;
            if bytes.is_empty() {
                break;
            }
            let part =
                self.client.upload_part().bucket(uri.bucket()).key(uri.key()).upload_id(upload).part_number(number);
            let sent = part.body(bytes.into()).send().await.map_err(|cause| failure("write", uri, cause))?;
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build());
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = self.client.complete_multipart_upload().bucket(uri.bucket()).key(uri.key());
        let sent = complete.upload_id(upload).multipart_upload(parts).send().await;
        sent.map_err(|cause| failure("write", uri, cause))?;
        Ok(())
    }

    /// Removes an object; one that is not there is fine.
    pub async fn delete(&self, uri: &Uri) -> Result<()> {
        let sent = self.client.delete_object().bucket(uri.bucket()).key(uri.key()).send().await;
        match sent.map_err(|cause| failure("delete", uri, cause)) {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            done => done.map(drop),
        }
    }

    /// Every object whose key begins with the key of `prefix`, in the order of their keys.
    pub async fn list(&self, prefix: &Uri) -> Result<Vec<Listed>> {
        let mut pages =
            self.client.list_objects_v2().bucket(prefix.bucket()).prefix(prefix.key()).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|cause| failure("list", prefix, cause))?;
            found.extend(page.contents().iter().filter_map(|object| {
                Some(Listed {
                    uri: Uri::new(prefix.bucket(), object.key()?),
                    size: u64::try_from(object.size()?).ok()?,
                })
            }));
        }
        Ok(found)
    }

    /// Makes the bucket unless it is there.
    pub async fn ensure_bucket(&self, bucket: &str) -> Result<()> {
        let place = Uri::new(bucket, "");
        match self.client.head_bucket().bucket(bucket).send().await.map_err(|cause| failure("read", &place, cause)) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        match self.client.create_bucket().bucket(bucket).send().await {
            Ok(_) => Ok(()),
            // Somebody else was quicker.
            Err(cause) if cause.code() == Some("BucketAlreadyOwnedByYou") => Ok(()),
            Err(cause) => Err(failure("create", &place, cause)),
        }
    }

    /// Whether something may be written under `folder`: writes and removes the probe that AWS uses.
    pub async fn probe_write(&self, folder: &Uri) -> Result<()> {
        let probe = folder.join(".write_access_check_file.tmp")?;
        self.put_bytes(&probe, Bytes::new()).await?;
        self.delete(&probe).await
    }
}

/// What a browser or `aws s3 cp` should make of the files we write.
fn content_type(key: &str) -> Option<&'static str> {
    Some(match key.rsplit_once('.')?.1 {
        "csv" => "text/csv",
        "json" => "application/json",
        "jsonl" => "application/jsonl",
        "svg" => "image/svg+xml",
        _ => return None,
    })
}

/// A body that ended early or did not match its checksum: worth another try.
fn broken(uri: &Uri, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::unavailable(anyhow::Error::new(cause).context(format!("reading {uri}")))
}

/// Sorts an SDK error into what the caller can act on.
fn failure<E>(verb: &str, uri: &Uri, cause: SdkError<E>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = cause.raw_response().map(|reply| reply.status().as_u16());
    let code = cause.code().map(str::to_string);
    let kind = match (status, code.as_deref()) {
        (_, Some("NoSuchKey" | "NoSuchBucket" | "NoSuchUpload" | "NotFound")) | (Some(404), _) => Kind::NotFound,
        (_, Some("AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch")) | (Some(401 | 403), _) => {
            Kind::AccessDenied
        }
        (Some(status), _) if status == 429 || status >= 500 => Kind::Unavailable,
        (None, _) if !matches!(cause, SdkError::ConstructionFailure(_)) => Kind::Unavailable,
        _ => Kind::Validation,
    };
    let said = cause.message().map(|message| format!(": {message}")).unwrap_or_default();
    let message = match kind {
        Kind::NotFound => format!("Could not {verb} {uri}: there is no such object or bucket"),
        Kind::AccessDenied => format!("Could not {verb} {uri}: the S3 server denied access"),
        Kind::Unavailable => format!("Could not {verb} {uri}: the S3 server cannot be reached or is failing"),
        _ => format!("Could not {verb} {uri}: the S3 server refused{said}"),
    };
    let detail = format!("{verb} {uri}: status {status:?}, code {code:?}{said}");
    Error::new(kind, message).because(anyhow::Error::new(cause).context(detail))
}
