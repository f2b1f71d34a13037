//! Table `tags`: key-value pairs on everything that has an ARN of its own, at most fifty each.

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
    /// The account has no such resource.
    NoSuchResource,
    /// The resource would carry more than [`LIMIT`]; nothing was changed.
    TooMany,
}

pub(super) const INSERT: &str = "INSERT INTO tags (account_id, resource_arn, key, value) VALUES ($1, $2, $3, $4)
    ON CONFLICT (resource_arn, key) DO UPDATE SET value = excluded.value";

/// Forgets the tags of a resource that goes.
pub(super) const CLEAR: &str = "DELETE FROM tags WHERE account_id = $1 AND resource_arn = $2";

/// The tables whose rows can be tagged: each has an `account_id` and an `arn`.
macro_rules! in_each_table {
    ($before:literal, $after:literal) => {
        [
            concat!($before, "customization_jobs", $after),
            concat!($before, "custom_models", $after),
            concat!($before, "model_deployments", $after),
            concat!($before, "provisioned_throughputs", $after),
            concat!($before, "model_imports", $after),
            concat!($before, "imported_models", $after),
        ]
    };
}

// A write that changes nothing: it tells whether the row is there and, on Postgres, holds it, so that two
// callers cannot both add the fiftieth tag.
const HOLD: [&str; 6] = in_each_table!("UPDATE ", " SET arn = arn WHERE account_id = $1 AND arn = $2");
const COUNT: [&str; 6] = in_each_table!("SELECT COUNT(*) FROM ", " WHERE account_id = $1 AND arn = $2");

/// Holds the resource until the transaction ends, or leaves the transaction with `$absent`.
macro_rules! hold {
    ($tx:ident, $account:expr, $arn:expr, $absent:expr) => {
        let mut held = 0;
        for sql in HOLD {
            held += sqlx::query(sql).bind($account).bind($arn).execute(&mut *$tx).await?.rows_affected();
        }
        if held == 0 {
            return Ok($absent);
        }
    };
}

/// Adds tags, replacing the values of keys that are there already.
pub async fn put(db: &Db, account_id: &str, arn: &str, tags: &[Tag]) -> Result<Tagged> {
    const TAGS: &str = "SELECT COUNT(*) FROM tags WHERE account_id = $1 AND resource_arn = $2";
    Ok(transaction!(db, |tx| {
        hold!(tx, account_id, arn, Tagged::NoSuchResource);
        for tag in tags {
            sqlx::query(INSERT).bind(account_id).bind(arn).bind(&tag.key).bind(&tag.value).execute(&mut *tx).await?;
        }
        let count: i64 = sqlx::query_scalar(TAGS).bind(account_id).bind(arn).fetch_one(&mut *tx).await?;
        if usize::try_from(count).unwrap_or(usize::MAX) > LIMIT {
            return Ok(Tagged::TooMany);
        }
        Tagged::Done
    }))
}

/// Removes tags by key; keys that are not there are no error. `false`: no such resource.
pub async fn remove(db: &Db, account_id: &str, arn: &str, keys: &[String]) -> Result<bool> {
    const SQL: &str = "DELETE FROM tags WHERE account_id = $1 AND resource_arn = $2 AND key = $3";
    Ok(transaction!(db, |tx| {
        hold!(tx, account_id, arn, false);
        for key in keys {
            sqlx::query(SQL).bind(account_id).bind(arn).bind(key).execute(&mut *tx).await?;
        }
        true
    }))
}

/// The resource's tags by key, or `None` when the account has no such resource.
pub async fn list(db: &Db, account_id: &str, arn: &str) -> Result<Option<Vec<Tag>>> {
    const SQL: &str = "SELECT key, value FROM tags WHERE account_id = $1 AND resource_arn = $2 ORDER BY key";
    let mut rows: i64 = 0;
    for sql in COUNT {
        rows += run!(db, |on| sqlx::query_scalar::<_, i64>(sql).bind(account_id).bind(arn).fetch_one(on).await)?;
    }
    if rows == 0 {
        return Ok(None);
    }
    Ok(Some(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(arn).fetch_all(on).await)?))
}
