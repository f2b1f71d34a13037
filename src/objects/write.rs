//! Writing objects: in one piece, or in parts when a file is large.

use std::path::Path;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::failure::explain;
use super::wall::Access;
use super::{Fetched, Objects, Uri};
use crate::error::{Error, Result};

/// From this size on a file goes up in parts of at least this size.
const PART: u64 = 16 << 20;
/// S3 takes no more parts than this.
const MAX_PARTS: u64 = 10_000;
/// Parts on their way at a time; with the one being read they bound the memory of an upload.
const IN_FLIGHT: usize = 4;

/// How an object is to be stored.
#[derive(Debug, Clone, Default)]
pub struct Put<'a> {
    /// What a reader is told that it is.
    pub content_type: Option<&'a str>,
    /// Ask the store to encrypt it with this KMS key (SSE-KMS).
    pub kms_key: Option<&'a str>,
}

impl Put<'_> {
    fn encryption(&self) -> Option<ServerSideEncryption> {
        self.kms_key.map(|_| ServerSideEncryption::AwsKms)
    }
}

impl Objects {
    /// Stores `bytes`, replacing what was there.
    ///
    /// # Errors
    /// `NotFound` when there is no such bucket, `AccessDenied`, `Unavailable`.
    pub async fn put_bytes(&self, uri: &Uri, bytes: impl Into<Bytes>, put: &Put<'_>) -> Result<()> {
        self.enter(uri, Access::Write).await?;
        self.s3
            .put_object()
            .bucket(uri.bucket())
            .key(uri.key())
            .body(ByteStream::from(bytes.into()))
            .set_content_type(put.content_type.map(str::to_string))
            .set_server_side_encryption(put.encryption())
            .set_ssekms_key_id(put.kms_key.map(str::to_string))
            .send()
            .await
            .map_err(|error| explain("PutObject", uri, error))
            .map(drop)
    }

    /// Stores a file, in parts when it has 16 MiB or more, and says what was stored. The object
    /// changes only once all of it has arrived.
    ///
    /// # Errors
    /// As [`Objects::put_bytes`]; `Internal` when the file cannot be read or shrinks meanwhile.
    pub async fn put_file(&self, uri: &Uri, file: &Path, put: &Put<'_>) -> Result<Fetched> {
        let unreadable = |cause: std::io::Error| {
            Error::internal(anyhow::Error::new(cause).context(format!("reading {}", file.display())))
        };
        let mut reader = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let size = reader.metadata().await.map_err(unreadable)?.len();
        if size >= PART {
            return self.put_parts(uri, reader, size, put).await.map_err(|error| error.at(file.display().to_string()));
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.map_err(unreadable)?;
        let stored = Fetched { size: bytes.len() as u64, sha256: hex::encode(Sha256::digest(&bytes)) };
        self.put_bytes(uri, bytes, put).await?;
        Ok(stored)
    }

    async fn put_parts(&self, uri: &Uri, file: tokio::fs::File, size: u64, put: &Put<'_>) -> Result<Fetched> {
        self.enter(uri, Access::Write).await?;
        let upload = self
            .s3
            .create_multipart_upload()
            .bucket(uri.bucket())
            .key(uri.key())
            .set_content_type(put.content_type.map(str::to_string))
            .set_server_side_encryption(put.encryption())
            .set_ssekms_key_id(put.kms_key.map(str::to_string))
            .send()
            .await
            .map_err(|error| explain("CreateMultipartUpload", uri, error))?;
        let id = upload.upload_id().unwrap_or_default();
        let outcome = self.send_parts(uri, id, file, size).await;
        if outcome.is_err() {
            // Parts cost space until they are given up; the store may be away, and the cause matters more.
            let aborted =
                self.s3.abort_multipart_upload().bucket(uri.bucket()).key(uri.key()).upload_id(id).send().await;
            if let Err(error) = aborted {
                tracing::warn!("{}", explain("AbortMultipartUpload", uri, error).log());
            }
        }
        outcome
    }

    async fn send_parts(&self, uri: &Uri, id: &str, file: tokio::fs::File, size: u64) -> Result<Fetched> {
        let part = PART.max(size.div_ceil(MAX_PARTS));
        let mut digest = Sha256::new();
        // Parts are read one after the other, which also gives the digest of the whole, and sent side by side.
        let parts = futures::stream::try_unfold((file, 0_u64, 1_i32), move |(mut file, done, number)| async move {
            if done == size {
                return Ok(None);
            }
            let length = part.min(size - done);
            let mut bytes = vec![0; usize::try_from(length).map_err(Error::internal)?];
            file.read_exact(&mut bytes).await?;
            Ok::<_, Error>(Some(((number, Bytes::from(bytes)), (file, done + length, number + 1))))
        })
        .inspect_ok(|(_, bytes)| digest.update(bytes))
        .map_ok(|(number, bytes)| async move {
            let sent = self
                .s3
                .upload_part()
                .bucket(uri.bucket())
                .key(uri.key())
                .upload_id(id)
                .part_number(number)
                .body(ByteStream::from(bytes))
                .send()
                .await
                .map_err(|error| explain("UploadPart", uri, error))?;
            Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build())
        })
        .try_buffered(IN_FLIGHT)
        .boxed()
        .try_collect::<Vec<_>>()
        .await?;
        let etag = etag_of(&parts);
        let completed = self
            .s3
            .complete_multipart_upload()
            .bucket(uri.bucket())
            .key(uri.key())
            .upload_id(id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .send()
            .await;
        if let Err(error) = completed {
            // Some servers report success in a document that the SDK cannot read; the object itself tells.
            let accepted = error.raw_response().is_some_and(|reply| reply.status().is_success());
            let error = explain("CompleteMultipartUpload", uri, error);
            if !accepted || etag.is_none() || Some(self.head(uri).await?.etag) != etag {
                return Err(error);
            }
        }
        Ok(Fetched { size, sha256: hex::encode(digest.finalize()) })
    }
}

/// The ETag that S3 gives an object of these parts: the MD5 of the parts' MD5s and their number; `None`
/// where the server's ETags are not MD5s.
fn etag_of(parts: &[CompletedPart]) -> Option<String> {
    let mut digest = Md5::new();
    for part in parts {
        digest.update(hex::decode(part.e_tag()?.trim_matches('"')).ok().filter(|md5| md5.len() == 16)?);
    }
    Some(format!("{}-{}", hex::encode(digest.finalize()), parts.len()))
}
