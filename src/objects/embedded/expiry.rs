//! Expiry of uploads in parts: one that nobody has touched for a day is given up with its parts, as its client would
//! have done. It is looked for when the store is opened, and then once an hour when something is written.

use std::sync::atomic::{AtomicI64, Ordering};

use s3s::S3Result;

use super::index::{Index, fault, remove_pieces};
use crate::clock::Millis;

/// How long an upload lives after its last part.
const LIFETIME: Millis = 24 * 60 * 60 * 1000;
/// How often uploads are looked for that have expired.
const ROUND: Millis = 60 * 60 * 1000;

/// When expired uploads were last looked for.
#[derive(Debug, Default)]
pub(super) struct LastExpiry(AtomicI64);

impl LastExpiry {
    /// Whether it is time to look again; `true` to one who asks, and then not for an hour.
    fn is_due(&self, now: Millis) -> bool {
        let last = self.0.load(Ordering::Relaxed);
        // A clock that was set back is no reason to stop looking.
        (now - last).abs() >= ROUND && self.0.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Index {
    /// Looks for expired uploads, before anything else is done.
    pub(super) async fn expire_at_start(&self) {
        if self.last_expiry.is_due(self.clock.now()) {
            self.expire().await;
        }
    }

    /// Looks for expired uploads beside what is being done, if it is time.
    pub(super) fn expire_when_due(&self) {
        if self.last_expiry.is_due(self.clock.now()) {
            let index = self.clone();
            tokio::spawn(async move { index.expire().await });
        }
    }

    async fn expire(&self) {
        match self.expire_uploads().await {
            Ok(0) => {}
            Ok(expired) => tracing::info!(expired, "uploads in parts were given up after a day"),
            // It was logged as a failure of the store; the next round tries again.
            Err(error) => tracing::debug!("expired uploads stay: {error}"),
        }
    }

    /// Gives up the uploads that nobody has touched for a day; how many there were.
    pub(super) async fn expire_uploads(&self) -> S3Result<usize> {
        const SQL: &str = "DELETE FROM uploads WHERE initiated < ?1
            AND NOT EXISTS (SELECT 1 FROM pieces WHERE owner = uploads.id AND modified >= ?1) RETURNING id";
        let before = self.clock.now() - LIFETIME;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(fault)?;
        let expired: Vec<String> = sqlx::query_scalar(SQL).bind(before).fetch_all(&mut *tx).await.map_err(fault)?;
        let mut gone = Vec::with_capacity(expired.len());
        for id in expired {
            gone.push(remove_pieces(&mut tx, id).await?);
        }
        let count = gone.len();
        self.commit(tx, gone).await?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use s3s::dto::{CreateMultipartUploadInput, StreamingBlob, UploadPartInput};

    use super::super::faults::request;
    use super::*;
    use crate::clock::Clock;

    async fn begin(index: &Index, key: &str) -> String {
        let input = CreateMultipartUploadInput::builder().bucket("data".into()).key(key.into()).build().unwrap();
        index.create_upload(input).await.unwrap().upload_id.unwrap()
    }

    async fn part(index: &Index, key: &str, id: &str) {
        let body = futures::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"part"))]);
        let input = UploadPartInput::builder()
            .bucket("data".into())
            .key(key.into())
            .upload_id(id.into())
            .part_number(1)
            .body(Some(StreamingBlob::wrap(body)))
            .build()
            .unwrap();
        index.upload_part(request(input)).await.unwrap();
    }

    #[tokio::test]
    async fn an_upload_that_nobody_touches_for_a_day_is_given_up_with_its_parts() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let index = Index::open(folder.path(), "000000000000", clock.clone()).await.unwrap();
        index.create_bucket("data", "000000000000").await.unwrap();
        let (left, slow) = (begin(&index, "left").await, begin(&index, "slow").await);
        part(&index, "left", &left).await;
        clock.jump(Duration::from_secs(23 * 3600), false);
        part(&index, "slow", &slow).await;
        assert_eq!(index.expire_uploads().await.unwrap(), 0);
        clock.jump(Duration::from_secs(2 * 3600), false);
        assert_eq!(index.expire_uploads().await.unwrap(), 1);
        let files = || std::fs::read_dir(folder.path().join("files")).unwrap().count();
        assert_eq!(files(), 1, "the part of the slow one");
        part(&index, "slow", &slow).await;
        clock.jump(Duration::from_secs(25 * 3600), false);
        // Whoever writes something has it looked for.
        begin(&index, "next").await;
        while files() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
