//! Tests from inside the store: it fails at each step of a put, objects are replaced under their
//! readers, and strays are swept.

use std::path::Path;

use futures::TryStreamExt;
use s3s::S3Request;
use s3s::dto::{GetObjectInput, PutObjectInput, StreamingBlob};

use super::conditions::Writing;
use super::files::Step;
use super::index::Index;
use crate::clock::Clock;

const STEPS: [Step; 7] =
    [Step::Create, Step::Write, Step::SyncFile, Step::SyncFolder, Step::Begin, Step::Commit, Step::Discard];

async fn open(folder: &Path) -> Index {
    let index = Index::open(folder, "000000000000", Clock::system()).await.unwrap();
    if index.expect_bucket("data").await.is_err() {
        index.create_bucket("data", "000000000000").await.unwrap();
    }
    index
}

/// Closes what `open` opened, so that the folder can be opened again.
async fn close(index: Index) {
    index.pool.close().await;
}

async fn put(index: &Index, bytes: &'static [u8]) -> s3s::S3Result<()> {
    let body = futures::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from_static(bytes))]);
    let input = PutObjectInput::builder()
        .bucket("data".into())
        .key("key".into())
        .body(Some(StreamingBlob::wrap(body)))
        .build()
        .unwrap();
    index.put_object(request(input)).await.map(drop)
}

async fn get(index: &Index) -> s3s::S3Result<Vec<u8>> {
    Ok(read(stream(index).await?).await)
}

async fn stream(index: &Index) -> s3s::S3Result<StreamingBlob> {
    let input = GetObjectInput::builder().bucket("data".into()).key("key".into()).build().unwrap();
    Ok(index.get_object(input).await?.body.unwrap())
}

async fn read(body: StreamingBlob) -> Vec<u8> {
    let chunks: Vec<bytes::Bytes> = body.try_collect().await.unwrap();
    chunks.concat()
}

pub(super) fn request<T>(input: T) -> S3Request<T> {
    S3Request {
        input,
        method: hyper::Method::PUT,
        uri: hyper::Uri::from_static("/data/key"),
        headers: hyper::HeaderMap::new(),
        extensions: hyper::http::Extensions::new(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("files")).unwrap().count()
}

#[tokio::test]
async fn a_put_that_fails_at_any_step_leaves_the_old_object_or_the_new_one() {
    for step in STEPS {
        let folder = tempfile::tempdir().unwrap();
        let index = open(folder.path()).await;
        put(&index, b"old").await.unwrap();
        *index.files.fail_at.lock().unwrap() = Some(step);
        let outcome = put(&index, b"new").await;
        *index.files.fail_at.lock().unwrap() = None;
        // Once committed it counts, whatever happens to the old file.
        let expected: &[u8] = if step == Step::Discard { b"new" } else { b"old" };
        match &outcome {
            Ok(()) => assert_eq!(step, Step::Discard),
            Err(error) => assert_eq!(error.code().as_str(), "StorageFull", "{step:?}"),
        }
        assert_eq!(get(&index).await.unwrap(), expected, "after a failure at {step:?}");
        close(index).await;

        let index = open(folder.path()).await;
        assert_eq!(get(&index).await.unwrap(), expected, "after a failure at {step:?} and a restart");
        assert_eq!(files(folder.path()), 1, "the strays of a failure at {step:?} are swept");
        put(&index, b"next").await.unwrap();
        assert_eq!(get(&index).await.unwrap(), b"next", "the store works on after a failure at {step:?}");
        assert_eq!(files(folder.path()), 1);
    }
}

#[tokio::test]
async fn who_has_begun_to_read_reads_the_object_it_found_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(folder.path()).await;
    put(&index, b"old").await.unwrap();
    let (first, second) = (stream(&index).await.unwrap(), stream(&index).await.unwrap());
    put(&index, b"new").await.unwrap();
    index.delete_object("data".into(), "key".into(), Writing::default()).await.unwrap();
    assert_eq!(get(&index).await.unwrap_err().code().as_str(), "NoSuchKey");
    assert_eq!(read(first).await, b"old");
    assert_eq!(files(folder.path()), 1, "the second reader still needs it");
    drop(second);
    assert_eq!(files(folder.path()), 0, "the last reader, also one that gave up, lets it go");
}

#[tokio::test]
async fn a_start_sweeps_what_no_row_knows_and_keeps_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(folder.path()).await;
    put(&index, b"kept").await.unwrap();
    close(index).await;
    std::fs::write(folder.path().join("files/0123456789abcdef0123456789abcdef"), "half an obj").unwrap();
    let index = open(folder.path()).await;
    assert_eq!(files(folder.path()), 1);
    assert_eq!(get(&index).await.unwrap(), b"kept");
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_shorter_than_announced_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(folder.path()).await;
    let broken = futures::stream::iter([
        Ok(bytes::Bytes::from_static(b"half")),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ]);
    let short = futures::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"half"))]);
    for body in [StreamingBlob::wrap(broken), StreamingBlob::wrap(short)] {
        let input = PutObjectInput::builder()
            .bucket("data".into())
            .key("key".into())
            .content_length(Some(8))
            .body(Some(body))
            .build()
            .unwrap();
        let error = index.put_object(request(input)).await.map(drop).unwrap_err();
        assert_eq!(error.code().as_str(), "IncompleteBody");
    }
    assert_eq!(get(&index).await.unwrap_err().code().as_str(), "NoSuchKey");
    assert_eq!(files(folder.path()), 0);
}
