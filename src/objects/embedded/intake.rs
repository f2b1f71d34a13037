//! Takes a request body into a new file: written, compared with its announced digests, and durable
//! before anything points at it.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use futures::StreamExt;
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3Result, StdError, s3_error};

use super::digest::{Announced, Checksums, Hasher};
use super::files::{Files, Fresh, Step};
use super::index::{custom, fault};

/// S3's limit for an object in one piece, and for a part.
const MAX_PIECE: u64 = 5 << 30;
/// Bytes gathered before they are hashed and written, off the async threads.
const BUFFER: usize = 1 << 20;

/// A body on the disk.
pub(super) struct Taken {
    /// The file; removed when this is dropped, unless kept.
    pub(super) fresh: Fresh,
    /// Bytes.
    pub(super) size: u64,
    /// Of the whole body.
    pub(super) md5: [u8; 16],
    /// The ones the client asked for.
    pub(super) checksums: Checksums,
}

/// Reads `body` to its end.
///
/// # Errors
/// `BadDigest`, `IncompleteBody`, `EntityTooLarge`, `XAmzContentSHA256Mismatch`, `SignatureDoesNotMatch`,
/// or 507 when the disk is full. Nothing is left behind.
pub(super) async fn take(files: &Arc<Files>, body: Option<StreamingBlob>, announced: Announced) -> S3Result<Taken> {
    let too_large = || s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size of 5 GiB");
    if announced.length.is_some_and(|length| length > MAX_PIECE) {
        return Err(too_large());
    }
    let (file, fresh) = files.create().map_err(fault)?;
    let mut sink = Sink { file, hasher: announced.hasher(), size: 0 };
    if let Some(mut body) = body {
        let mut buffer = Vec::with_capacity(BUFFER);
        while let Some(chunk) = body.next().await {
            buffer.extend_from_slice(&chunk.map_err(broken)?);
            if sink.size + buffer.len() as u64 > MAX_PIECE {
                return Err(too_large());
            }
            if buffer.len() >= BUFFER {
                (sink, buffer) = sink.write(files, buffer).await?;
            }
        }
        (sink, _) = sink.write(files, buffer).await?;
    }
    if announced.length.is_some_and(|length| length != sink.size) {
        return Err(incomplete());
    }
    let Sink { file, hasher, size } = sink;
    let (md5, checksums) = announced.check(hasher)?;
    let durable = Arc::clone(files);
    blocking(move || {
        durable.pass(Step::SyncFile)?;
        file.sync_all()?;
        durable.sync_folder()
    })
    .await?;
    Ok(Taken { fresh, size, md5, checksums })
}

/// A file being written and hashed.
struct Sink {
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Sink {
    /// Appends `buffer` on a thread that may block, and gives it back empty.
    async fn write(mut self, files: &Arc<Files>, mut buffer: Vec<u8>) -> S3Result<(Self, Vec<u8>)> {
        let files = Arc::clone(files);
        blocking(move || {
            files.pass(Step::Write)?;
            self.hasher.update(&buffer);
            self.file.write_all(&buffer)?;
            self.size += buffer.len() as u64;
            buffer.clear();
            Ok((self, buffer))
        })
        .await
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> S3Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(fault)?.map_err(fault)
}

/// Why a body broke off. `s3s` keeps its stream errors private, so their texts tell them apart.
fn broken(error: StdError) -> S3Error {
    let text = error.to_string();
    tracing::debug!("a body broke off: {text}");
    if text.contains("Sha256Mismatch") {
        return custom(
            "XAmzContentSHA256Mismatch",
            hyper::StatusCode::BAD_REQUEST,
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
        );
    }
    if text.contains("SignatureMismatch") {
        return s3_error!(SignatureDoesNotMatch, "The signature of a chunk does not match.");
    }
    incomplete()
}

fn incomplete() -> S3Error {
    s3_error!(IncompleteBody, "You did not provide the number of bytes specified by the Content-Length HTTP header")
}
