//! Table `provisioned_throughputs`: capacity kept for a model, foundation or custom. A model unit is a place among the
//! answers under way of every API process (`app/door.rs`), so the units of all together are limited.

use super::db::{Db, run, transaction};
use super::page::{Cursor, Filter, Listed, Order};
use super::serving::{Placed, hold_active_model};
use super::status::{Commitment, ThroughputStatus};
use super::tags::{self, Tag};
use crate::clock::Millis;
use crate::error::Result;

/// Provisioned throughput.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Throughput {
    /// The twelve characters that end the ARN.
    pub id: String,
    /// Whose it is.
    pub account_id: String,
    /// `arn:aws:bedrock:<region>:<account>:provisioned-model/<id>`
    pub arn: String,
    /// Its name, unique in the account while it exists.
    pub name: String,
    /// The token of the request that made it.
    pub request_token: Option<String>,
    /// SHA-256 of that request without its token.
    pub request_digest: String,
    /// How many units were asked for: places that are its own.
    pub model_units: i64,
    /// The model that answers.
    pub model_arn: String,
    /// The foundation model that it goes back to.
    pub foundation_model_arn: String,
    /// Where it stands.
    pub status: ThroughputStatus,
    /// Why it could not be made.
    pub failure_message: Option<String>,
    /// For how long it was bought, if it was.
    pub commitment: Option<Commitment>,
    /// Until when it cannot be deleted.
    pub commitment_expiration_time: Option<Millis>,
    /// When it was made.
    pub creation_time: Millis,
    /// When it last changed.
    pub last_modified_time: Millis,
}

macro_rules! columns {
    () => {
        "id, account_id, arn, name, request_token, request_digest, model_units, model_arn, foundation_model_arn, status,
         failure_message, commitment, commitment_expiration_time, creation_time, last_modified_time"
    };
}

/// Adds provisioned throughput with its tags, unless its token, its name or its model stands against it, or all units
/// together would be more than `most_units`. One at a time: two that each fit could be too much together.
pub async fn insert(db: &Db, throughput: &Throughput, tags: &[Tag], most_units: i64) -> Result<Placed<Throughput>> {
    const INSERT: &str = concat!(
        "INSERT INTO provisioned_throughputs (",
        columns!(),
        ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT DO NOTHING"
    );
    let turn = match db {
        // Held until the transaction ends. The number is this statement's own.
        Db::Postgres(_) => "SELECT pg_advisory_xact_lock(7205759403)",
        // The transaction is the only writer already.
        Db::Sqlite(_) => "SELECT 1",
    };
    Ok(transaction!(db, |tx| {
        sqlx::query(turn).execute(&mut *tx).await?;
        let earlier: Option<Throughput> = sqlx::query_as(BY_TOKEN)
            .bind(&throughput.account_id)
            .bind(throughput.request_token.as_deref())
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(earlier) = earlier {
            return Ok(match earlier.request_digest == throughput.request_digest {
                true => Placed::Already(earlier),
                false => Placed::TokenConflict,
            });
        }
        if throughput.is_custom() {
            hold_active_model!(tx, &throughput.account_id, &throughput.model_arn);
        }
        let reserved: i64 = sqlx::query_scalar(RESERVED).fetch_one(&mut *tx).await?;
        if reserved.saturating_add(throughput.model_units) > most_units {
            return Ok(Placed::NoUnits { left: (most_units - reserved).max(0) });
        }
        let rows = sqlx::query(INSERT)
            .bind(&throughput.id)
            .bind(&throughput.account_id)
            .bind(&throughput.arn)
            .bind(&throughput.name)
            .bind(&throughput.request_token)
            .bind(&throughput.request_digest)
            .bind(throughput.model_units)
            .bind(&throughput.model_arn)
            .bind(&throughput.foundation_model_arn)
            .bind(throughput.status)
            .bind(&throughput.failure_message)
            .bind(throughput.commitment)
            .bind(throughput.commitment_expiration_time)
            .bind(throughput.creation_time)
            .bind(throughput.last_modified_time)
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if rows == 1 {
            for tag in tags {
                sqlx::query(tags::INSERT)
                    .bind(&throughput.account_id)
                    .bind(&throughput.arn)
                    .bind(&tag.key)
                    .bind(&tag.value)
                    .execute(&mut *tx)
                    .await?;
            }
        }
        // Of a request with the same token nothing can have come in between.
        if rows == 1 { Placed::Done(throughput.clone()) } else { Placed::NameTaken }
    }))
}

/// The model units of all accounts.
const RESERVED: &str = "SELECT CAST(COALESCE(SUM(model_units), 0) AS BIGINT) FROM provisioned_throughputs";

/// How many model units are kept, of all accounts.
pub async fn reserved(db: &Db) -> Result<i64> {
    Ok(run!(db, |on| sqlx::query_scalar(RESERVED).fetch_one(on).await)?)
}

impl Throughput {
    /// Whether a custom model answers, rather than a foundation model.
    pub fn is_custom(&self) -> bool {
        self.model_arn != self.foundation_model_arn
    }
}

const BY_TOKEN: &str =
    concat!("SELECT ", columns!(), " FROM provisioned_throughputs WHERE account_id = $1 AND request_token = $2");

/// The account's provisioned throughput that was made by a request with this token.
pub async fn by_token(db: &Db, account_id: &str, token: Option<&str>) -> Result<Option<Throughput>> {
    Ok(run!(db, |on| sqlx::query_as(BY_TOKEN).bind(account_id).bind(token).fetch_optional(on).await)?)
}

/// The account's provisioned throughput with this ARN or name.
pub async fn find(db: &Db, account_id: &str, identifier: &str) -> Result<Option<Throughput>> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM provisioned_throughputs WHERE account_id = $1 AND (arn = $2 OR name = $2)"
    );
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(identifier).fetch_optional(on).await)?)
}

/// Gives the throughput its new name and model. The caller has checked that the model may follow the
/// one before; the foundation model never changes.
pub async fn update(db: &Db, wanted: &Throughput) -> Result<Placed<Throughput>> {
    const NAME_TAKEN: &str =
        "SELECT COUNT(*) FROM provisioned_throughputs WHERE account_id = $1 AND name = $2 AND id <> $3";
    const SQL: &str = concat!(
        "UPDATE provisioned_throughputs SET name = $3, model_arn = $4, last_modified_time = $5
         WHERE account_id = $1 AND id = $2 RETURNING ",
        columns!()
    );
    Ok(transaction!(db, |tx| {
        if wanted.is_custom() {
            hold_active_model!(tx, &wanted.account_id, &wanted.model_arn);
        }
        let taken: i64 = sqlx::query_scalar(NAME_TAKEN)
            .bind(&wanted.account_id)
            .bind(&wanted.name)
            .bind(&wanted.id)
            .fetch_one(&mut *tx)
            .await?;
        if taken > 0 {
            return Ok(Placed::NameTaken);
        }
        let updated: Option<Throughput> = sqlx::query_as(SQL)
            .bind(&wanted.account_id)
            .bind(&wanted.id)
            .bind(&wanted.name)
            .bind(&wanted.model_arn)
            .bind(wanted.last_modified_time)
            .fetch_optional(&mut *tx)
            .await?;
        updated.map_or(Placed::NotFound, Placed::Done)
    }))
}

/// What became of a request to delete provisioned throughput.
#[derive(Debug, Clone, PartialEq)]
pub enum Deleted {
    /// It is gone, and its tags.
    Done,
    /// The account has none of that ARN or name.
    NotFound,
    /// It was bought until then.
    CommittedUntil(Millis),
}

/// Removes provisioned throughput and its tags, unless it is bought for longer; the model stays.
pub async fn delete(db: &Db, account_id: &str, identifier: &str, now: Millis) -> Result<Deleted> {
    const SQL: &str = "DELETE FROM provisioned_throughputs
        WHERE account_id = $1 AND (arn = $2 OR name = $2)
            AND (commitment_expiration_time IS NULL OR commitment_expiration_time <= $3)
        RETURNING arn";
    let gone = transaction!(db, |tx| {
        let gone: Option<String> =
            sqlx::query_scalar(SQL).bind(account_id).bind(identifier).bind(now).fetch_optional(&mut *tx).await?;
        if let Some(arn) = &gone {
            sqlx::query(tags::CLEAR).bind(account_id).bind(arn).execute(&mut *tx).await?;
        }
        gone
    });
    if gone.is_some() {
        return Ok(Deleted::Done);
    }
    let there = find(db, account_id, identifier).await?;
    let until = there.and_then(|throughput| throughput.commitment_expiration_time);
    Ok(until.map_or(Deleted::NotFound, Deleted::CommittedUntil))
}

/// What only a listing of provisioned throughput can be narrowed by.
#[derive(Debug, Clone, Default)]
pub struct ThroughputFilter {
    /// Where it stands.
    pub status: Option<ThroughputStatus>,
    /// The model that answers.
    pub model_arn: Option<String>,
}

macro_rules! page_sql {
    ($comparison:literal, $direction:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM provisioned_throughputs
             WHERE account_id = $1 AND (creation_time, id) ",
            $comparison,
            " ($2, $3)
                AND creation_time > $4 AND creation_time < $5
                AND lower(name) LIKE $6 ESCAPE '\\'
                AND ($7 IS NULL OR status = $7)
                AND ($8 IS NULL OR model_arn = $8)
             ORDER BY creation_time ",
            $direction,
            ", id ",
            $direction,
            " LIMIT $9"
        )
    };
}

/// One page of the account's provisioned throughput.
pub async fn list(db: &Db, account_id: &str, only: &ThroughputFilter, filter: &Filter) -> Result<Listed<Throughput>> {
    let sql = match filter.order {
        Order::Ascending => page_sql!(">", "ASC"),
        Order::Descending => page_sql!("<", "DESC"),
    };
    let (time, id) = filter.bounds();
    let rows = run!(db, |on| sqlx::query_as(sql)
        .bind(account_id)
        .bind(time)
        .bind(&id)
        .bind(filter.created_after.unwrap_or(Millis::MIN))
        .bind(filter.created_before.unwrap_or(Millis::MAX))
        .bind(filter.pattern())
        .bind(only.status)
        .bind(&only.model_arn)
        .bind(filter.rows())
        .fetch_all(on)
        .await)?;
    Ok(filter.page(rows, |row: &Throughput| Cursor { creation_time: row.creation_time, id: row.id.clone() }))
}
