//! What is kept with a bucket, one JSON document of a kind: its CORS rules and its tags.

use s3s::S3Result;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::index::{Index, expect_bucket, fault};

/// A kind of document.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Cors,
    Tags,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Cors => "cors",
            Self::Tags => "tags",
        }
    }
}

impl Index {
    /// # Errors
    /// `NoSuchBucket`.
    pub(super) async fn put_setting(&self, bucket: &str, kind: Kind, document: &impl Serialize) -> S3Result<()> {
        let document = serde_json::to_string(document).map_err(fault)?;
        let mut tx = self.begin().await?;
        expect_bucket(&mut tx, bucket).await?;
        sqlx::query(
            "INSERT INTO bucket_settings (bucket, kind, document) VALUES (?, ?, ?) \
             ON CONFLICT (bucket, kind) DO UPDATE SET document = excluded.document",
        )
        .bind(bucket)
        .bind(kind.name())
        .bind(document)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
        self.commit(tx, Vec::new()).await
    }

    /// # Errors
    /// `NoSuchBucket`.
    pub(super) async fn setting<T: DeserializeOwned>(&self, bucket: &str, kind: Kind) -> S3Result<Option<T>> {
        let mut tx = self.pool.begin().await.map_err(fault)?;
        expect_bucket(&mut tx, bucket).await?;
        let document: Option<String> =
            sqlx::query_scalar("SELECT document FROM bucket_settings WHERE bucket = ? AND kind = ?")
                .bind(bucket)
                .bind(kind.name())
                .fetch_optional(&mut *tx)
                .await
                .map_err(fault)?;
        document.map(|document| serde_json::from_str(&document).map_err(fault)).transpose()
    }

    /// # Errors
    /// `NoSuchBucket`.
    pub(super) async fn delete_setting(&self, bucket: &str, kind: Kind) -> S3Result<()> {
        let mut tx = self.begin().await?;
        expect_bucket(&mut tx, bucket).await?;
        sqlx::query("DELETE FROM bucket_settings WHERE bucket = ? AND kind = ?")
            .bind(bucket)
            .bind(kind.name())
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
        self.commit(tx, Vec::new()).await
    }
}
