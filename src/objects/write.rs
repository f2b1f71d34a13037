//! Writing objects: in one piece, or in parts when a file is large, and on a condition where two may write.

use std::path::Path;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ServerSideEncryption;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::client::bare;
use super::failure::explain;
use super::upload::PART;
use super::wall::Access;
use super::{Fetched, Objects, Uri};
use crate::error::{Error, Kind, Result};

/// How an object is to be stored.
#[derive(Debug, Clone, Default)]
pub struct Put<'a> {
    /// What a reader is told that it is.
    pub content_type: Option<&'a str>,
    /// Ask the store to encrypt it with this KMS key (SSE-KMS).
    pub kms_key: Option<&'a str>,
}

impl Put<'_> {
    pub(super) fn encryption(&self) -> Option<ServerSideEncryption> {
        self.kms_key.map(|_| ServerSideEncryption::AwsKms)
    }
}

impl Objects {
    /// Stores `bytes`, replacing what was there.
    ///
    /// # Errors
    /// `NotFound` when there is no such bucket, `AccessDenied`, `Unavailable`.
    pub async fn put_bytes(&self, uri: &Uri, bytes: impl Into<Bytes>, put: &Put<'_>) -> Result<()> {
        self.put_bytes_over(&Precondition::Anything, uri, bytes, put).await.map(drop)
    }

    /// Stores `bytes` in the place of what is expected there; gives the new ETag, or `None` when something else is
    /// there. Of two who expect the same, one succeeds.
    ///
    /// # Errors
    /// As [`Objects::put_bytes`]; `Internal` when the server knows no conditions.
    pub async fn put_bytes_over(
        &self,
        precondition: &Precondition,
        uri: &Uri,
        bytes: impl Into<Bytes>,
        put: &Put<'_>,
    ) -> Result<Option<String>> {
        self.enter(uri, Access::Write).await?;
        let stored = self
            .s3
            .put_object()
            .bucket(uri.bucket())
            .key(uri.key())
            .body(ByteStream::from(bytes.into()))
            .set_if_match(precondition.etag())
            .set_if_none_match(precondition.nothing())
            .set_content_type(put.content_type.map(str::to_string))
            .set_server_side_encryption(put.encryption())
            .set_ssekms_key_id(put.kms_key.map(str::to_string))
            .send()
            .await;
        match stored {
            Ok(stored) => Ok(Some(bare(stored.e_tag()))),
            Err(error) if precondition.is_another(&error) => Ok(None),
            Err(error) => Err(explain("PutObject", uri, error)),
        }
    }

    /// Stores a file, in parts when it has 16 MiB or more, and says what was stored. The object
    /// changes only once all of it has arrived.
    ///
    /// # Errors
    /// As [`Objects::put_bytes`]; `Internal` when the file cannot be read or shrinks meanwhile.
    pub async fn put_file(&self, uri: &Uri, file: &Path, put: &Put<'_>) -> Result<Fetched> {
        let stored = self.put_file_over(&Precondition::Anything, uri, file, put).await?;
        stored.ok_or_else(|| Error::internal(anyhow::anyhow!("{uri} was stored on a condition that nobody set")))
    }

    /// Stores a file in the place of what is expected there; `None` when something else is there.
    ///
    /// # Errors
    /// As [`Objects::put_file`] and [`Objects::put_bytes_over`].
    pub async fn put_file_over(
        &self,
        precondition: &Precondition,
        uri: &Uri,
        file: &Path,
        put: &Put<'_>,
    ) -> Result<Option<Fetched>> {
        let unreadable = |cause: std::io::Error| {
            Error::internal(anyhow::Error::new(cause).context(format!("reading {}", file.display())))
        };
        let mut reader = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let size = reader.metadata().await.map_err(unreadable)?.len();
        if size >= PART {
            let stored = self.put_parts(precondition, uri, reader, size, put).await;
            return stored.map_err(|error| error.at(file.display().to_string()));
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.map_err(unreadable)?;
        let stored = Fetched { size: bytes.len() as u64, sha256: hex::encode(Sha256::digest(&bytes)) };
        let etag = self.put_bytes_over(precondition, uri, bytes, put).await?;
        Ok(etag.map(|_| stored))
    }
}

/// Condition under which a put replaces what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// Whatever is there is replaced.
    Anything,
    /// Nothing may be there.
    Nothing,
    /// The object with this ETag.
    Etag(String),
}

impl Objects {
    /// Condition of a put that replaces what is at `uri` now and nothing else.
    ///
    /// # Errors
    /// As [`Objects::head`], unless nothing is there.
    pub async fn precondition(&self, uri: &Uri) -> Result<Precondition> {
        match self.head(uri).await {
            Ok(head) => Ok(Precondition::Etag(head.etag)),
            // Who may not list a bucket is refused where nothing is.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::AccessDenied) => Ok(Precondition::Nothing),
            Err(error) => Err(error),
        }
    }
}

impl Precondition {
    pub(super) fn etag(&self) -> Option<String> {
        match self {
            Self::Etag(etag) => Some(format!("\"{etag}\"")),
            _ => None,
        }
    }

    pub(super) fn nothing(&self) -> Option<String> {
        (*self == Self::Nothing).then(|| "*".to_string())
    }

    /// Whether a put failed because the condition does not hold.
    pub(super) fn is_another<E: ProvideErrorMetadata>(&self, error: &SdkError<E, HttpResponse>) -> bool {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let failed = status == Some(412) || matches!(error.code(), Some("PreconditionFailed" | "NoSuchKey"));
        *self != Self::Anything && failed
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Response;

    use super::super::fake::{Fake, reply};
    use super::*;

    #[tokio::test]
    async fn a_put_on_a_condition_says_whether_it_held() {
        let server = Fake::start(|asked| match (asked.header("if-match"), asked.header("if-none-match")) {
            (Some("\"mine\""), None) => Response::builder().header("etag", "\"next\"").body(Body::empty()).unwrap(),
            (Some("\"gone\""), None) => reply(404, "NoSuchKey"),
            (Some("\"nowhere\""), None) => reply(404, "NoSuchBucket"),
            (Some(_), None) | (None, Some("*")) => reply(412, "PreconditionFailed"),
            other => panic!("{other:?}"),
        })
        .await;
        let (objects, uri, put) = (server.objects(), Uri::new("data", "a"), Put::default());
        for (precondition, stored) in [
            (Precondition::Etag("mine".into()), Some("next".to_string())),
            (Precondition::Etag("other".into()), None),
            (Precondition::Etag("gone".into()), None),
            (Precondition::Nothing, None),
        ] {
            assert_eq!(
                objects.put_bytes_over(&precondition, &uri, "x", &put).await.unwrap(),
                stored,
                "{precondition:?}"
            );
        }
        assert!(objects.put_bytes_over(&Precondition::Etag("nowhere".into()), &uri, "x", &put).await.is_err());
    }
}
