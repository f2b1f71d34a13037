//! Reading objects: whole and capped into memory, streamed into a file with resumption, or as a
//! stream for whoever parses on the way.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::Bytes;
use tokio::io::AsyncBufRead;

use super::client::{bare, size};
use super::failure::{broken_off, explain};
use super::wall::Access;
use super::{Head, Objects, Uri};
use crate::clock::Clock;
use crate::durable::{self, Digest, Writer};
use crate::error::{Error, Kind, Result, is_full};

/// What was moved between a file and the store.
pub type Fetched = Digest;

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

    /// Streams an object into `file`, which appears only when it is whole and on the disk; the digest is of what lies
    /// there. A connection that breaks is taken up where it broke; if the object was replaced meanwhile that is an
    /// error, never a mixture.
    ///
    /// # Errors
    /// `NotFound`, `AccessDenied`, `Unavailable`, also when the disk is full; `Conflict` when it was replaced while it
    /// was read; `Internal` when the file cannot be written.
    pub async fn get_to_file(&self, uri: &Uri, file: &Path) -> Result<Fetched> {
        // A short name of its own: the file's may be as long as a name can be, and another may download the same.
        let partial = Partial(file.with_file_name(format!(".{}.partial", Clock::system().id())));
        let fetched = self.download(uri, &partial.0).await?;
        let (from, to) = (partial.0.clone(), file.to_path_buf());
        blocking(file, move || durable::rename(&from, &to)).await?;
        Ok(fetched)
    }

    async fn download(&self, uri: &Uri, partial: &Path) -> Result<Fetched> {
        let mut found = self.get(uri, 0, None).await?;
        let etag = bare(found.e_tag());
        // A store that announces nothing ends the body where the object does, or breaks it off.
        let announced = found.content_length().map(|length| size(Some(length)));
        let mut sink = Sink::create(partial).await?;
        let mut done = 0_u64;
        let mut fruitless = 0;
        while announced.is_none_or(|total| done < total) {
            match found.body.try_next().await {
                Ok(None) if announced.is_none() => break,
                Ok(Some(chunk)) => {
                    done += chunk.len() as u64;
                    sink = sink.write(&chunk).await?;
                    fruitless = 0;
                }
                broken => {
                    fruitless += 1;
                    if fruitless > FRUITLESS {
                        return Err(match broken {
                            Err(error) => broken_off(uri, error),
                            Ok(_) => Error::unavailable(anyhow::anyhow!("{uri} ends at {done} of {announced:?} bytes")),
                        });
                    }
                    found = self.get(uri, done, Some(&etag)).await?;
                    let rest = format!("bytes {done}-");
                    if done > 0 && !found.content_range().is_some_and(|range| range.starts_with(&rest)) {
                        let cause =
                            anyhow::anyhow!("{uri}: asked for what comes after byte {done}, the store sent all");
                        return Err(Error::unavailable(cause));
                    }
                }
            }
        }
        let written = sink.finish().await?;
        if written.size != done || announced.is_some_and(|total| total != done) {
            let Digest { size, .. } = written;
            let cause = anyhow::anyhow!("{uri} has {announced:?} bytes, {done} came, {size} were kept");
            return Err(Error::unavailable(cause));
        }
        Ok(written)
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

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// A file being downloaded; its left-over goes with it, also when nobody waits for the download any more.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // It was moved to its place, as a rule.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file written off the async threads.
struct Sink {
    path: PathBuf,
    file: Writer,
    buffer: Vec<u8>,
}

impl Sink {
    async fn create(path: &Path) -> Result<Self> {
        let place = path.to_path_buf();
        let file = blocking(path, move || Writer::create(&place)).await?;
        Ok(Self { path: path.to_path_buf(), file, buffer: Vec::with_capacity(BUFFER) })
    }

    async fn write(mut self, bytes: &[u8]) -> Result<Self> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < BUFFER {
            return Ok(self);
        }
        let path = self.path.clone();
        blocking(&path, move || {
            self.file.write_all(&self.buffer)?;
            self.buffer.clear();
            Ok(self)
        })
        .await
    }

    /// What lies on the disk.
    async fn finish(self) -> Result<Digest> {
        let Self { path, mut file, buffer } = self;
        let place = path.clone();
        blocking(&path, move || {
            file.write_all(&buffer)?;
            file.finish()?;
            durable::digest(&place)
        })
        .await
    }
}

/// Does what blocks, about `file`, on a thread that may.
async fn blocking<T: Send + 'static>(file: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?.map_err(|cause| unwritable(file, cause))
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
    let full = is_full(&cause);
    let cause = anyhow::Error::new(cause).context(format!("writing {}", file.display()));
    if full {
        const FULL: &str =
            "There is no space left on the service's disk: free space in its data folder, then try again";
        return Error::new(Kind::Unavailable, FULL).because(cause);
    }
    Error::internal(cause)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, object};
    use super::*;
    use crate::durable::faults;

    #[tokio::test]
    async fn a_download_onto_a_disk_that_fills_fails_by_name_at_every_step_and_leaves_no_short_file() {
        // One chunk that fits into every buffer, and several that do not.
        for size in [100, 3_000_000_usize] {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            let sent = bytes.clone();
            let server = Fake::start(move |_| object(&sent)).await;
            let (objects, uri) = (server.objects(), Uri::new("data", "a"));
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("file");
            let mut steps = 0;
            loop {
                let full = faults::fail_nth(folder.path(), steps + 1);
                let outcome = objects.get_to_file(&uri, &file).await;
                let fired = full.fired();
                drop(full);
                let names = std::fs::read_dir(folder.path()).unwrap().count();
                match outcome {
                    Ok(fetched) => {
                        assert!(!fired, "step {} failed and nobody heard of it", steps + 1);
                        assert_eq!(fetched.size, size as u64);
                        assert!(std::fs::read(&file).unwrap() == bytes);
                        assert_eq!(names, 1);
                        break;
                    }
                    Err(error) => {
                        assert!(fired && error.is_storage_full(), "{}", error.log());
                        assert!(error.message().contains("no space left"), "{error}");
                        // The file may be there already when only its folder could not be synced; then it is whole.
                        if file.exists() {
                            assert!(std::fs::read(&file).unwrap() == bytes, "a short file after step {}", steps + 1);
                            std::fs::remove_file(&file).unwrap();
                        } else {
                            assert_eq!(names, 0, "a left-over of step {}", steps + 1);
                        }
                    }
                }
                steps += 1;
            }
            assert!(steps >= 5, "{steps}");
        }
    }

    #[tokio::test]
    async fn an_object_of_unannounced_length_is_read_to_its_end() {
        let server = Fake::start(|_| {
            let chunks = (0..3).map(|n| Ok::<_, io::Error>(Bytes::from(vec![n; 1 << 20])));
            let body = axum::body::Body::from_stream(futures::stream::iter(chunks));
            axum::http::Response::builder().header("etag", "\"0123\"").body(body).unwrap()
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let fetched = server.objects().get_to_file(&Uri::new("data", "a"), &file).await.unwrap();
        assert_eq!((fetched.size, std::fs::metadata(&file).unwrap().len()), (3 << 20, 3 << 20));
    }

    #[tokio::test]
    async fn a_store_that_sends_all_when_asked_for_the_rest_makes_no_mixture() {
        let whole: Vec<u8> = (0..3 << 20).map(|i: u32| (i * 7 % 251) as u8).collect();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let server = Fake::start(move |_| {
            if asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0 {
                return object(&whole);
            }
            let begun = Ok(Bytes::copy_from_slice(&whole[..2 << 20]));
            let broken = futures::stream::iter([begun, Err(io::Error::other("broken off"))]);
            let body = axum::body::Body::from_stream(broken);
            axum::http::Response::builder()
                .header("etag", "\"0123\"")
                .header("content-length", 3 << 20)
                .body(body)
                .unwrap()
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let outcome = server.objects().get_to_file(&Uri::new("data", "a"), &file).await;
        assert_eq!(outcome.unwrap_err().kind(), Kind::Unavailable);
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn an_object_is_downloaded_whatever_the_length_of_its_name() {
        let server = Fake::start(|_| object(b"content")).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("n".repeat(255));
        server.objects().get_to_file(&Uri::new("data", "a"), &file).await.unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"content");
    }

    #[tokio::test]
    async fn nothing_stays_of_a_download_that_nobody_waits_for_any_more() {
        // Two thirds come at once, the rest never.
        let server = Fake::start(|_| {
            let first = futures::stream::iter([Ok::<_, io::Error>(Bytes::from(vec![1; 2 << 20]))]);
            let body = axum::body::Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending()));
            axum::http::Response::builder().header("content-length", 3 << 20).body(body).unwrap()
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let (objects, file) = (server.objects(), folder.path().join("file"));
        let download = tokio::spawn(async move { objects.get_to_file(&Uri::new("data", "a"), &file).await });
        while std::fs::read_dir(folder.path()).unwrap().count() == 0 {
            tokio::task::yield_now().await;
        }
        download.abort();
        drop(download.await);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
