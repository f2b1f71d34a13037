//! Table `tags`: key-value pairs on jobs and custom models, at most fifty each.

use serde::{Deserialize, Serialize};

use super::db::{Db, run, transaction};
use crate::error::Result;

/// The most tags one resource can carry.
pub const LIMIT: usize = 50;

/// One tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
pub struct Tag {
    /// Its key, unique on the resource.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What became of a request to tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tagged {
    /// The tags are there.
    Done,
    /// The account has no such job or model.
    NoSuchResource,
    /// The resource would carry more than [`LIMIT`]; nothing was changed.
    TooMany,
}

pub(super) const INSERT: &str = "INSERT INTO tags (account_id, resource_arn, key, value) VALUES ($1, $2, $3, $4)
    ON CONFLICT (resource_arn, key) DO UPDATE SET value = excluded.value";

// A write that changes nothing: it tells whether the row is there and, on Postgres, holds it, so that two
// callers cannot both add the fiftieth tag.
const HOLD_JOB: &str = "UPDATE customization_jobs SET arn = arn WHERE account_id = $1 AND arn = $2";
const HOLD_MODEL: &str = "UPDATE custom_models SET arn = arn WHERE account_id = $1 AND arn = $2";

/// Adds tags, replacing the values of keys that are there already.
pub async fn put(db: &Db, account_id: &str, arn: &str, tags: &[Tag]) -> Result<Tagged> {
    const COUNT: &str = "SELECT COUNT(*) FROM tags WHERE account_id = $1 AND resource_arn = $2";
    Ok(transaction!(db, |tx| {
        let jobs = sqlx::query(HOLD_JOB).bind(account_id).bind(arn).execute(&mut *tx).await?.rows_affected();
        let models = sqlx::query(HOLD_MODEL).bind(account_id).bind(arn).execute(&mut *tx).await?.rows_affected();
        if jobs + models == 0 {
            return Ok(Tagged::NoSuchResource);
        }
        for tag in tags {
            sqlx::query(INSERT).bind(account_id).bind(arn).bind(&tag.key).bind(&tag.value).execute(&mut *tx).await?;
        }
        let count: i64 = sqlx::query_scalar(COUNT).bind(account_id).bind(arn).fetch_one(&mut *tx).await?;
        if usize::try_from(count).unwrap_or(usize::MAX) > LIMIT {
            return Ok(Tagged::TooMany);
        }
        Tagged::Done
    }))
}

/// Removes tags by key; keys that are not there are no error. `false`: no such job or model.
pub async fn remove(db: &Db, account_id: &str, arn: &str, keys: &[String]) -> Result<bool> {
    const SQL: &str = "DELETE FROM tags WHERE account_id = $1 AND resource_arn = $2 AND key = $3";
    Ok(transaction!(db, |tx| {
        let jobs = sqlx::query(HOLD_JOB).bind(account_id).bind(arn).execute(&mut *tx).await?.rows_affected();
        let models = sqlx::query(HOLD_MODEL).bind(account_id).bind(arn).execute(&mut *tx).await?.rows_affected();
        if jobs + models == 0 {
            return Ok(false);
        }
        for key in keys {
            sqlx::query(SQL).bind(account_id).bind(arn).bind(key).execute(&mut *tx).await?;
        }
        true
    }))
}

/// The resource's tags by key, or `None` when the account has no such job or model.
pub async fn list(db: &Db, account_id: &str, arn: &str) -> Result<Option<Vec<Tag>>> {
    const EXISTS: &str = "SELECT COUNT(*) FROM (
            SELECT arn FROM customization_jobs WHERE account_id = $1 AND arn = $2
            UNION ALL SELECT arn FROM custom_models WHERE account_id = $1 AND arn = $2) AS resources";
    const SQL: &str = "SELECT key, value FROM tags WHERE account_id = $1 AND resource_arn = $2 ORDER BY key";
    let count: i64 = run!(db, |on| sqlx::query_scalar(EXISTS).bind(account_id).bind(arn).fetch_one(on).await)?;
    if count == 0 {
        return Ok(None);
    }
    Ok(Some(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(arn).fetch_all(on).await)?))
}
