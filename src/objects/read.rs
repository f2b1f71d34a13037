//! Reading objects: whole and capped into memory, streamed into a file with resumption, or as a
//! stream for whoever parses on the way.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufRead, AsyncWriteExt};

use super::client::{bare, size};
use super::failure::{broken_off, explain};
use super::wall::Access;
use super::{Head, Objects, Uri};
use crate::error::{Error, Kind, Result};

/// What was moved between a file and the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes, hexadecimal.
    pub sha256: String,
}

/// An object being read.
pub struct Opened {
    /// What is known about it.
    pub head: Head,
    /// Its bytes. An error means that the connection broke: what came before is not the whole.
    pub body: Pin<Box<dyn AsyncBufRead + Send>>,
}

/// A download whose connection breaks this often without a byte in between is given up.
const FRUITLESS: u32 = 4;

impl Objects {
    /// A whole object, if it has at most `cap` bytes.
    ///
    /// # Errors
    /// `NotFound`, `AccessDenied`, `Unavailable`; `Validation` when it is larger than `cap`.
    pub async fn get_bytes(&self, uri: &Uri, cap: u64) -> Result<Bytes> {
        let mut found = self.get(uri, 0, None).await?;
        let too_large = || Error::validation(format!("{uri} is larger than the {cap} bytes that are read here"));
        if size(found.content_length()) > cap {
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size(found.content_length())).unwrap_or_default());
        while let Some(chunk) = found.body.try_next().await.map_err(|error| broken_off(uri, error))? {
            // A server may send more than it announced.
            if (bytes.len() + chunk.len()) as u64 > cap {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// An object as a stream of bytes.
    pub async fn open(&self, uri: &Uri) -> Result<Opened> {
        let found = self.get(uri, 0, None).await?;
        let head = head_of(&found);
        Ok(Opened { head, body: Box::pin(found.body.into_async_read()) })
    }

    /// Streams an object into `file`, which appears only when it is whole and on the disk. A
    /// connection that breaks is taken up where it broke; if the object was replaced meanwhile that
    /// is an error, never a mixture.
    ///
    /// # Errors
    /// `NotFound`, `AccessDenied`, `Unavailable`; `Conflict` when it was replaced while it was read;
    /// `Internal` when the file cannot be written.
    pub async fn get_to_file(&self, uri: &Uri, file: &Path) -> Result<Fetched> {
        let mut partial = PathBuf::from(file).into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let outcome = self.download(uri, &partial).await;
        if outcome.is_err() {
            // The cause matters more than a left-over that the next download overwrites.
            drop(tokio::fs::remove_file(&partial).await);
            return outcome;
        }
        tokio::fs::rename(&partial, file).await.map_err(|cause| unwritable(file, cause))?;
        outcome
    }

    async fn download(&self, uri: &Uri, partial: &Path) -> Result<Fetched> {
        let mut out = tokio::fs::File::create(partial).await.map_err(|cause| unwritable(partial, cause))?;
        let mut digest = Sha256::new();
        let mut found = self.get(uri, 0, None).await?;
        let (total, etag) = (size(found.content_length()), bare(found.e_tag()));
        let mut done = 0_u64;
        let mut fruitless = 0;
        while done < total {
            match found.body.try_next().await {
                Ok(Some(chunk)) => {
                    out.write_all(&chunk).await.map_err(|cause| unwritable(partial, cause))?;
                    digest.update(&chunk);
                    done += chunk.len() as u64;
                    fruitless = 0;
                }
                broken => {
                    fruitless += 1;
                    if fruitless > FRUITLESS {
                        return Err(match broken {
                            Err(error) => broken_off(uri, error),
                            Ok(_) => Error::unavailable(anyhow::anyhow!("{uri} ends at {done} of {total} bytes")),
                        });
                    }
                    found = self.get(uri, done, Some(&etag)).await?;
                }
            }
        }
        if done != total {
            return Err(Error::unavailable(anyhow::anyhow!("{uri} gave {done} bytes but announced {total}")));
        }
        out.sync_all().await.map_err(|cause| unwritable(partial, cause))?;
        Ok(Fetched { size: done, sha256: hex::encode(digest.finalize()) })
    }

    /// The object's bytes from `from` on, provided that it still is the one with `etag`.
    async fn get(&self, uri: &Uri, from: u64, etag: Option<&str>) -> Result<GetObjectOutput> {
        self.enter(uri, Access::Read).await?;
        let mut get = self.s3.get_object().bucket(uri.bucket()).key(uri.key());
        if from > 0 {
            get = get.range(format!("bytes={from}-"));
        }
        if let Some(etag) = etag {
            get = get.if_match(format!("\"{etag}\""));
        }
        get.send().await.map_err(|error| explain("GetObject", uri, error))
    }
}

fn head_of(found: &GetObjectOutput) -> Head {
    Head {
        size: size(found.content_length()),
        etag: bare(found.e_tag()),
        modified: found.last_modified().and_then(|at| at.to_millis().ok()).unwrap_or_default(),
        content_type: found.content_type().map(str::to_string),
    }
}

/// A full disk is said plainly, because the person who runs the job can do something about it.
pub(super) fn unwritable(file: &Path, cause: std::io::Error) -> Error {
    let full = cause.kind() == std::io::ErrorKind::StorageFull;
    let cause = anyhow::Error::new(cause).context(format!("writing {}", file.display()));
    if full {
        return Error::new(Kind::Unavailable, "The service's disk has no space left").because(cause);
    }
    Error::internal(cause)
}
