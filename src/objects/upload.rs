//! Uploads in parts. The parts of one that does not come to its end are given up, because they cost space until then:
//! by whoever fails or stops waiting at once, and by prefix for processes that were killed.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tracing::debug;

use super::failure::explain;
use super::wall::Access;
use super::{Fetched, Objects, Precondition, Put, Uri};
use crate::error::{Error, Kind, Result};

/// From this size on a file goes up in parts of at least this size.
pub(super) const PART: u64 = 16 << 20;
/// S3 takes no more parts than this.
const MAX_PARTS: u64 = 10_000;
/// Parts on their way at a time; with the one being read they bound the memory of an upload.
const IN_FLIGHT: usize = 4;

impl Objects {
    pub(super) async fn put_parts(
        &self,
        precondition: &Precondition,
        uri: &Uri,
        file: tokio::fs::File,
        size: u64,
        put: &Put<'_>,
    ) -> Result<Option<Fetched>> {
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
        let id = upload.upload_id().unwrap_or_default().to_string();
        let mut upload = Upload { objects: self.clone(), uri: uri.clone(), id, ended: false };
        let outcome = self.send_parts(precondition, uri, &upload.id, file, size).await;
        upload.ended = true;
        if !matches!(outcome, Ok(Some(_))) {
            self.abort_upload(uri, &upload.id).await;
        }
        outcome
    }

    /// Parts cost space until they are given up; the store may be away, and the cause matters more.
    async fn abort_upload(&self, uri: &Uri, id: &str) {
        let aborted = self.s3.abort_multipart_upload().bucket(uri.bucket()).key(uri.key()).upload_id(id).send().await;
        match aborted.map_err(|error| explain("AbortMultipartUpload", uri, error)) {
            Err(error) if error.kind() != Kind::NotFound => tracing::warn!("{}", error.log()),
            _ => {}
        }
    }

    /// Gives up every upload in parts of a key that begins with `prefix`, and says how many there were.
    ///
    /// # Errors
    /// As the other operations. A server that cannot list uploads has none for us.
    pub async fn abort_uploads(&self, prefix: &Uri) -> Result<u64> {
        if prefix.key().is_empty() {
            return Err(Error::internal(anyhow::anyhow!("refused to give up all uploads of {prefix}")));
        }
        self.enter(prefix, Access::Write).await?;
        let (mut aborted, mut key, mut id) = (0, None, None);
        loop {
            let from: (Option<String>, Option<String>) = (key.clone(), id.clone());
            let listed = self
                .s3
                .list_multipart_uploads()
                .bucket(prefix.bucket())
                .prefix(prefix.key())
                .set_key_marker(key.take())
                .set_upload_id_marker(id.take())
                .send()
                .await
                .map_err(|error| explain("ListMultipartUploads", prefix, error));
            let page = match listed {
                Ok(page) => page,
                // Not every server has the operation (501, 405); those expire uploads by themselves.
                Err(error) if matches!(error.kind(), Kind::Internal | Kind::Validation) => {
                    debug!("uploads are not listed: {}", error.log());
                    return Ok(aborted);
                }
                Err(error) => return Err(error),
            };
            for upload in page.uploads() {
                if let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) {
                    self.abort_upload(&Uri::new(prefix.bucket(), key), id).await;
                    aborted += 1;
                }
            }
            (key, id) = (page.next_key_marker.clone(), page.next_upload_id_marker.clone());
            if page.is_truncated() != Some(true) || key.is_none() {
                return Ok(aborted);
            }
            if (&key, &id) == (&from.0, &from.1) {
                return Err(Error::unavailable(anyhow::anyhow!("the uploads under {prefix} are listed without end")));
            }
        }
    }

    async fn send_parts(
        &self,
        precondition: &Precondition,
        uri: &Uri,
        id: &str,
        file: tokio::fs::File,
        size: u64,
    ) -> Result<Option<Fetched>> {
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
            .set_if_match(precondition.etag())
            .set_if_none_match(precondition.nothing())
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .send()
            .await;
        if let Err(error) = completed {
            // The answer may have been lost, so that the next try found no such upload; and some servers report success
            // in a document that the SDK cannot read. The object itself tells.
            let stands = match &etag {
                Some(etag) => self.head(uri).await.is_ok_and(|head| head.etag == *etag),
                None => false,
            };
            if !stands {
                let another = precondition.is_another(&error);
                return if another { Ok(None) } else { Err(explain("CompleteMultipartUpload", uri, error)) };
            }
        }
        Ok(Some(Fetched { size, sha256: hex::encode(digest.finalize()) }))
    }
}

/// An upload in parts under way. Whoever stops waiting for it leaves no parts behind.
struct Upload {
    objects: Objects,
    uri: Uri,
    id: String,
    ended: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (false, Ok(runtime)) = (self.ended, tokio::runtime::Handle::try_current()) {
            let (objects, uri, id) = (self.objects.clone(), self.uri.clone(), std::mem::take(&mut self.id));
            runtime.spawn(async move { objects.abort_upload(&uri, &id).await });
        }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use axum::body::Body;
    use axum::http::Response;

    use super::super::fake::{Asked, Fake, reply};
    use super::*;

    const BEGUN: &str = "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>";

    /// A file that goes up in two parts.
    fn large() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(PART + 1).unwrap();
        file
    }

    fn part(asked: &Asked) -> Response<Body> {
        let etag = hex::encode(Md5::digest(&asked.body));
        Response::builder().status(200).header("etag", format!("\"{etag}\"")).body(Body::empty()).unwrap()
    }

    /// The ETag of the file in two parts.
    fn whole() -> String {
        let mut all = Md5::new();
        all.update(Md5::digest(vec![0; usize::try_from(PART).unwrap()]));
        all.update(Md5::digest([0]));
        format!("{}-2", hex::encode(all.finalize()))
    }

    #[tokio::test]
    async fn an_upload_whose_last_answer_was_lost_has_succeeded() {
        // The first request to complete is carried out and not answered; the next finds no such upload any more.
        let server = Fake::start(|asked| match (asked.method.as_str(), asked.query("uploadId")) {
            ("POST", None) => reply(200, BEGUN),
            ("PUT", Some(_)) => part(asked),
            ("POST", Some(_)) => reply(404, "NoSuchUpload"),
            ("HEAD", _) => Response::builder().header("etag", format!("\"{}\"", whole())).body(Body::empty()).unwrap(),
            other => panic!("{other:?}"),
        })
        .await;
        let stored = server.objects().put_file(&Uri::new("data", "a"), large().path(), &Put::default()).await.unwrap();
        assert_eq!(stored.size, PART + 1);
    }

    #[tokio::test]
    async fn an_upload_that_is_gone_is_tried_again_and_fails_nobody() {
        let server = Fake::start(|asked| match (asked.method.as_str(), asked.query("uploadId")) {
            ("POST", None) => reply(200, BEGUN),
            ("PUT", Some(_)) => part(asked),
            ("POST", Some(_)) => reply(404, "NoSuchUpload"),
            ("HEAD", _) => reply(404, ""),
            ("DELETE", Some(_)) => reply(404, "NoSuchUpload"),
            other => panic!("{other:?}"),
        })
        .await;
        let stored = server.objects().put_file(&Uri::new("data", "a"), large().path(), &Put::default()).await;
        assert_eq!(stored.unwrap_err().kind(), Kind::Unavailable);
    }

    #[tokio::test]
    async fn an_upload_that_nobody_waits_for_any_more_leaves_no_parts() {
        let (parts, aborted) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
        let (seen, given_up) = (Arc::clone(&parts), Arc::clone(&aborted));
        let server = Fake::start(move |asked| match (asked.method.as_str(), asked.query("uploadId")) {
            ("POST", None) => reply(200, BEGUN),
            ("PUT", Some(_)) => {
                seen.fetch_add(1, Ordering::SeqCst);
                // Its answer never ends.
                Response::builder()
                    .header("content-length", 9)
                    .body(Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()))
                    .unwrap()
            }
            ("DELETE", Some(id)) => {
                assert_eq!(id, "u1");
                given_up.notify_one();
                reply(204, "")
            }
            other => panic!("{other:?}"),
        })
        .await;
        let (objects, file) = (server.objects(), large());
        let path = file.path().to_path_buf();
        let upload =
            tokio::spawn(async move { objects.put_file(&Uri::new("data", "a"), &path, &Put::default()).await });
        while parts.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        upload.abort();
        aborted.notified().await;
    }

    #[tokio::test]
    async fn uploads_under_a_prefix_are_given_up_page_by_page() {
        let aborted = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&aborted);
        let server = Fake::start(move |asked| match (asked.method.as_str(), asked.query("key-marker")) {
            ("GET", marker) => {
                assert_eq!(asked.query("prefix").as_deref(), Some("job/"));
                let upload = |key: &str| format!("<Upload><Key>{key}</Key><UploadId>id-{key}</UploadId></Upload>");
                let (upload, more) = match marker {
                    None => (upload("job/a"), "<IsTruncated>true</IsTruncated><NextKeyMarker>job/a</NextKeyMarker>"),
                    Some(_) => (upload("job/b"), "<IsTruncated>false</IsTruncated>"),
                };
                reply(200, &format!("<ListMultipartUploadsResult>{upload}{more}</ListMultipartUploadsResult>"))
            }
            ("DELETE", _) => {
                seen.lock().unwrap().push((asked.path.clone(), asked.query("uploadId").unwrap()));
                reply(204, "")
            }
            other => panic!("{other:?}"),
        })
        .await;
        assert_eq!(server.objects().abort_uploads(&Uri::new("data", "job/")).await.unwrap(), 2);
        let expected = ["a", "b"].map(|name| (format!("/data/job/{name}"), format!("id-job/{name}")));
        assert_eq!(*aborted.lock().unwrap(), expected);
        assert!(server.objects().abort_uploads(&Uri::new("data", "")).await.is_err(), "never a whole bucket");
    }
}
