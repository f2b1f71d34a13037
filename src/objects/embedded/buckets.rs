//! Buckets: made, found, listed, removed when empty.

use s3s::dto::{
    Bucket, BucketCannedACL, BucketLocationConstraint, CreateBucketInput, CreateBucketOutput, GetBucketLocationOutput,
    HeadBucketOutput, ListBucketsInput, ListBucketsOutput, ObjectOwnership,
};
use s3s::{S3Error, S3Result, s3_error};
use sqlx::Row;

use super::index::{Index, expect_bucket, fault, remove_pieces, stamp};

/// S3's most buckets in one page.
const PAGE: i64 = 10_000;

impl Index {
    /// Makes a bucket that belongs to the account `owner`.
    pub(super) async fn create_bucket(&self, name: &str, owner: &str) -> S3Result<CreateBucketOutput> {
        let mut tx = self.begin().await?;
        let made = sqlx::query("INSERT INTO buckets (name, created, owner) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(self.clock.now())
            .bind(owner)
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
        if made.rows_affected() == 0 {
            let theirs: Option<String> = sqlx::query_scalar("SELECT owner FROM buckets WHERE name = ?")
                .bind(name)
                .fetch_one(&mut *tx)
                .await
                .map_err(fault)?;
            if theirs.as_deref() != Some(owner) {
                return Err(taken());
            }
            return Err(s3_error!(BucketAlreadyOwnedByYou, "You already own this bucket."));
        }
        self.commit(tx, Vec::new()).await?;
        Ok(CreateBucketOutput { location: Some(format!("/{name}")) })
    }

    pub(super) async fn head_bucket(&self, name: &str, region: &str) -> S3Result<HeadBucketOutput> {
        self.expect_bucket(name).await?;
        Ok(HeadBucketOutput { bucket_region: Some(region.to_string()), ..HeadBucketOutput::default() })
    }

    pub(super) async fn bucket_location(&self, name: &str, region: &str) -> S3Result<GetBucketLocationOutput> {
        self.expect_bucket(name).await?;
        // AWS's oldest region has no name here.
        let place = (region != "us-east-1").then(|| BucketLocationConstraint::from(region.to_string()));
        Ok(GetBucketLocationOutput { location_constraint: place })
    }

    pub(super) async fn expect_bucket(&self, name: &str) -> S3Result<()> {
        let mut tx = self.pool.begin().await.map_err(fault)?;
        expect_bucket(&mut tx, name).await
    }

    /// Removes an empty bucket together with the uploads that were never completed in it.
    pub(super) async fn delete_bucket(&self, name: &str) -> S3Result<()> {
        let mut tx = self.begin().await?;
        expect_bucket(&mut tx, name).await?;
        let used =
            sqlx::query("SELECT 1 FROM objects WHERE bucket = ? LIMIT 1").bind(name).fetch_optional(&mut *tx).await;
        if used.map_err(fault)?.is_some() {
            return Err(s3_error!(BucketNotEmpty, "The bucket you tried to delete is not empty"));
        }
        let uploads: Vec<String> = sqlx::query_scalar("DELETE FROM uploads WHERE bucket = ? RETURNING id")
            .bind(name)
            .fetch_all(&mut *tx)
            .await
            .map_err(fault)?;
        let mut gone = Vec::with_capacity(uploads.len());
        for upload in uploads {
            gone.push(remove_pieces(&mut tx, upload).await?);
        }
        sqlx::query("DELETE FROM buckets WHERE name = ?").bind(name).execute(&mut *tx).await.map_err(fault)?;
        self.commit(tx, gone).await
    }

    /// The buckets of the account `owner`; all for `None`, the service itself.
    pub(super) async fn list_buckets(
        &self,
        input: ListBucketsInput,
        owner: Option<&str>,
        region: &str,
    ) -> S3Result<ListBucketsOutput> {
        let prefix = input.prefix.clone().unwrap_or_default();
        let limit = i64::from(input.max_buckets.unwrap_or(i32::MAX)).clamp(1, PAGE);
        let rows = sqlx::query(
            "SELECT name, created FROM buckets WHERE name > ? AND substr(name, 1, ?) = ? \
             AND (? IS NULL OR owner = ?) ORDER BY name LIMIT ?",
        )
        .bind(input.continuation_token.as_deref().unwrap_or_default())
        .bind(i64::try_from(prefix.len()).map_err(fault)?)
        .bind(&prefix)
        .bind(owner)
        .bind(owner)
        .bind(limit + 1)
        .fetch_all(&self.pool)
        .await
        .map_err(fault)?;
        let mut buckets = Vec::with_capacity(rows.len());
        for row in &rows {
            buckets.push(Bucket {
                name: Some(row.try_get("name").map_err(fault)?),
                creation_date: Some(stamp(row.try_get("created").map_err(fault)?)),
                bucket_region: Some(region.to_string()),
            });
        }
        let more = i64::try_from(buckets.len()).map_err(fault)? > limit;
        if more {
            buckets.pop();
        }
        let token = buckets.last().filter(|_| more).and_then(|bucket| bucket.name.clone());
        Ok(ListBucketsOutput { buckets: Some(buckets), continuation_token: token, prefix: input.prefix, owner: None })
    }
}

/// The answer for a name that another account has.
pub(super) fn taken() -> S3Error {
    s3_error!(
        BucketAlreadyExists,
        "The requested bucket name is not available. The bucket namespace is shared by all users of the system. \
         Please select a different name and try again."
    )
}

/// Refuses what a new bucket cannot be.
///
/// # Errors
/// `IllegalLocationConstraintException` or `InvalidLocationConstraint` for another region; `NotImplemented`.
pub(super) fn check(input: &CreateBucketInput, region: &str) -> S3Result<()> {
    let configuration = input.create_bucket_configuration.as_ref();
    if let Some(place) = configuration.and_then(|c| c.location_constraint.as_ref()).map(BucketLocationConstraint::as_str)
        && !place.is_empty()
        && place != region
        // The oldest name of that region.
        && !(place == "EU" && region == "eu-west-1")
    {
        let is_region =
            place.contains('-') && place.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        return Err(if is_region {
            s3_error!(
                IllegalLocationConstraintException,
                "The {place} location constraint is incompatible for the region specific endpoint this request was sent \
                 to: buckets here lie in {region}."
            )
        } else {
            s3_error!(InvalidLocationConstraint, "The specified location-constraint is not valid")
        });
    }
    if configuration.is_some_and(|c| c.bucket.is_some() || c.location.is_some()) {
        return Err(s3_error!(NotImplemented, "Directory buckets are not implemented"));
    }
    if input.object_lock_enabled_for_bucket == Some(true) {
        return Err(s3_error!(NotImplemented, "Object locks are not implemented"));
    }
    let granted = [
        &input.grant_full_control,
        &input.grant_read,
        &input.grant_read_acp,
        &input.grant_write,
        &input.grant_write_acp,
    ];
    let public = input.acl.as_ref().is_some_and(|acl| acl.as_str() != BucketCannedACL::PRIVATE);
    let enforced = ObjectOwnership::BUCKET_OWNER_ENFORCED;
    let shared = input.object_ownership.as_ref().is_some_and(|ownership| ownership.as_str() != enforced);
    if public || shared || granted.iter().any(|grant| grant.is_some()) {
        return Err(s3_error!(NotImplemented, "Buckets are private: access control lists are not implemented"));
    }
    Ok(())
}
