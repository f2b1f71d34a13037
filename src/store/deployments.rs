//! Table `model_deployments`: custom models that are asked on demand, under a name of their own that
//! stays while the model behind it changes.

use super::db::{Db, run, timed_sql, transaction};
use super::page::{Cursor, Filter, Listed, Order};
use super::serving::{Placed, hold_active_model};
use super::status::{DeploymentStatus, UpdateStatus};
use super::tags::{self, Tag};
use super::text::storable;
use crate::clock::{DatabaseTime, Millis};
use crate::error::Result;

/// A deployment.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Deployment {
    /// The twelve characters that end the ARN.
    pub id: String,
    /// Whose it is.
    pub account_id: String,
    /// `arn:aws:bedrock:<region>:<account>:custom-model-deployment/<id>`
    pub arn: String,
    /// Its name, unique in the account while the deployment exists.
    pub name: String,
    /// The token of the request that made it.
    pub request_token: Option<String>,
    /// SHA-256 of that request without its token.
    pub request_digest: String,
    /// What its owner wrote about it.
    pub description: Option<String>,
    /// The custom model that answers.
    pub model_arn: String,
    /// Where it stands.
    pub status: DeploymentStatus,
    /// The model of the last update.
    pub update_model_arn: Option<String>,
    /// How the last update went.
    pub update_status: Option<UpdateStatus>,
    /// Why it could not be made.
    pub failure_message: Option<String>,
    /// When it was made.
    pub creation_time: Millis,
    /// When it last changed.
    pub last_updated_time: Millis,
}

macro_rules! columns {
    () => {
        "id, account_id, arn, name, request_token, request_digest, description, model_arn, status, update_model_arn,
         update_status, failure_message, creation_time, last_updated_time"
    };
}

/// Adds a deployment with its tags, unless its token, its name or its model stands against it.
pub async fn insert(db: &Db, deployment: &Deployment, tags: &[Tag]) -> Result<Placed<Deployment>> {
    const INSERT: &str = concat!(
        "INSERT INTO model_deployments (",
        columns!(),
        ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT DO NOTHING"
    );
    let earlier = by_token(db, &deployment.account_id, deployment.request_token.as_deref()).await?;
    if let Some(earlier) = earlier {
        return Ok(repeated(earlier, deployment));
    }
    let placed = transaction!(db, |tx| {
        hold_active_model!(tx, &deployment.account_id, &deployment.model_arn);
        let rows = sqlx::query(INSERT)
            .bind(&deployment.id)
            .bind(&deployment.account_id)
            .bind(&deployment.arn)
            .bind(&deployment.name)
            .bind(&deployment.request_token)
            .bind(&deployment.request_digest)
            .bind(&deployment.description)
            .bind(&deployment.model_arn)
            .bind(deployment.status)
            .bind(&deployment.update_model_arn)
            .bind(deployment.update_status)
            .bind(&deployment.failure_message)
            .bind(deployment.creation_time)
            .bind(deployment.last_updated_time)
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if rows == 1 {
            for tag in tags {
                sqlx::query(tags::INSERT)
                    .bind(&deployment.account_id)
                    .bind(&deployment.arn)
                    .bind(&tag.key)
                    .bind(&tag.value)
                    .execute(&mut *tx)
                    .await?;
            }
        }
        if rows == 1 { Placed::Done(deployment.clone()) } else { Placed::NameTaken }
    });
    if placed != Placed::NameTaken {
        return Ok(placed);
    }
    // Another request was faster: with the same token, or only with the same name.
    let earlier = by_token(db, &deployment.account_id, deployment.request_token.as_deref()).await?;
    Ok(earlier.map_or(Placed::NameTaken, |earlier| repeated(earlier, deployment)))
}

fn repeated(earlier: Deployment, now: &Deployment) -> Placed<Deployment> {
    if earlier.request_digest == now.request_digest { Placed::Already(earlier) } else { Placed::TokenConflict }
}

async fn by_token(db: &Db, account_id: &str, token: Option<&str>) -> Result<Option<Deployment>> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM model_deployments WHERE account_id = $1 AND request_token = $2");
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(token).fetch_optional(on).await)?)
}

/// The account's deployment with this ARN or name.
pub async fn find(db: &Db, account_id: &str, identifier: &str) -> Result<Option<Deployment>> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM model_deployments WHERE account_id = $1 AND (arn = $2 OR name = $2)");
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(identifier).fetch_optional(on).await)?)
}

/// Asks for another model behind the deployment, which answers with the one before until [`settle`] says that the new
/// one is ready. The last of several wishes counts, and why an earlier one failed is no longer of interest.
pub async fn update(
    db: &Db,
    account_id: &str,
    identifier: &str,
    model_arn: &str,
    now: Millis,
) -> Result<Placed<Deployment>> {
    const SQL: &str = concat!(
        "UPDATE model_deployments SET update_model_arn = $3, update_status = 'Updating', failure_message = NULL,
            last_updated_time = $4, strikes = 0, loading_until = NULL, failing_since = NULL
         WHERE account_id = $1 AND (arn = $2 OR name = $2) AND status = 'Active' RETURNING ",
        columns!()
    );
    const STATUS: &str = "SELECT status FROM model_deployments WHERE account_id = $1 AND (arn = $2 OR name = $2)";
    Ok(transaction!(db, |tx| {
        hold_active_model!(tx, account_id, model_arn);
        let updated: Option<Deployment> = sqlx::query_as(SQL)
            .bind(account_id)
            .bind(identifier)
            .bind(model_arn)
            .bind(now)
            .fetch_optional(&mut *tx)
            .await?;
        match updated {
            Some(updated) => Placed::Done(updated),
            None => {
                let status: Option<DeploymentStatus> =
                    sqlx::query_scalar(STATUS).bind(account_id).bind(identifier).fetch_optional(&mut *tx).await?;
                status.map_or(Placed::NotFound, Placed::DeploymentIs)
            }
        }
    }))
}

impl Deployment {
    /// The model that is to answer: of the update under way, or its own.
    pub fn wanted_model(&self) -> &str {
        match (&self.update_model_arn, self.update_status) {
            (Some(model), Some(UpdateStatus::Updating)) => model,
            _ => &self.model_arn,
        }
    }
}

/// How making a deployment ready ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its model is loaded.
    Ready,
    /// It cannot be served, for this reason.
    Failed(String),
}

impl Outcome {
    /// In a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Failed(_) => "failed",
        }
    }
}

/// Deployments of any account whose model is to be made ready: all of them, so that those which have to be tried again
/// and again hide no others. Those that no attempt was broken off of come first, the oldest before the others.
pub async fn unready(db: &Db) -> Result<Vec<Deployment>> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM model_deployments WHERE status = 'Creating' OR update_status = 'Updating'
         ORDER BY strikes, last_updated_time, id"
    );
    Ok(run!(db, |on| sqlx::query_as(SQL).fetch_all(on).await)?)
}

/// An attempt to make a deployment ready, counted before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Attempt {
    /// Attempts that came to no end, this one included.
    pub strikes: i64,
    /// Since when attempts end because a dependency is away.
    pub failing_since: Option<Millis>,
}

/// The condition that a deployment still waits for the model it waited for.
macro_rules! still_wanted {
    () => {
        "id = $1 AND ((status = 'Creating' AND model_arn = $2) OR (update_status = 'Updating' AND update_model_arn = $2))"
    };
}

/// The condition that an attempt is still the caller's.
macro_rules! held {
    () => {
        concat!(still_wanted!(), " AND strikes = $3 AND loading_until IS NOT NULL")
    };
}

macro_rules! strikes_sql {
    ($now:literal) => {
        concat!(
            "SELECT CASE WHEN loading_until > ",
            $now,
            " + $2 THEN 0 ELSE strikes END FROM model_deployments WHERE id = $1"
        )
    };
}

/// Attempts to make a deployment ready that came to no end. One that somebody is making at this moment is none yet.
pub async fn strikes(db: &Db, seen: &Deployment, at: DatabaseTime) -> Result<i64> {
    let sql = timed_sql!(db, strikes_sql);
    let found: Option<i64> =
        run!(db, |on| sqlx::query_scalar(sql).bind(&seen.id).bind(at.shift_ms()).fetch_optional(on).await)?;
    Ok(found.unwrap_or_default())
}

macro_rules! begin_sql {
    ($now:literal) => {
        concat!(
            "UPDATE model_deployments SET strikes = strikes + 1, loading_until = ",
            $now,
            " + $3 + $4 WHERE ",
            still_wanted!(),
            " AND (loading_until IS NULL OR loading_until <= ",
            $now,
            " + $3) RETURNING strikes, failing_since"
        )
    };
}

/// Begins to make `seen` ready. `None`: somebody else is at it until their time ends, or it waits for another model.
pub async fn begin(db: &Db, seen: &Deployment, lease_ms: Millis, at: DatabaseTime) -> Result<Option<Attempt>> {
    let sql = timed_sql!(db, begin_sql);
    Ok(run!(db, |on| sqlx::query_as(sql)
        .bind(&seen.id)
        .bind(seen.wanted_model())
        .bind(at.shift_ms())
        .bind(lease_ms)
        .fetch_optional(on)
        .await)?)
}

macro_rules! renew_sql {
    ($now:literal) => {
        concat!("UPDATE model_deployments SET loading_until = ", $now, " + $4 + $5 WHERE ", held!())
    };
}

/// Keeps an attempt, also one whose time is over, as long as nobody else has begun one. `false`: it is no longer the
/// caller's.
pub async fn renew(db: &Db, seen: &Deployment, attempt: &Attempt, lease_ms: Millis, at: DatabaseTime) -> Result<bool> {
    let sql = timed_sql!(db, renew_sql);
    let rows = run!(db, |on| sqlx::query(sql)
        .bind(&seen.id)
        .bind(seen.wanted_model())
        .bind(attempt.strikes)
        .bind(at.shift_ms())
        .bind(lease_ms)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

/// Ends an attempt that decided nothing, at no cost to the deployment. `away` is the time when a dependency was found
/// to be away.
pub async fn give_back(db: &Db, seen: &Deployment, attempt: &Attempt, away: Option<Millis>) -> Result<bool> {
    const SQL: &str = concat!(
        "UPDATE model_deployments SET strikes = strikes - 1, loading_until = NULL,
            failing_since = COALESCE(failing_since, $4)
         WHERE ",
        held!()
    );
    let rows = run!(db, |on| sqlx::query(SQL)
        .bind(&seen.id)
        .bind(seen.wanted_model())
        .bind(attempt.strikes)
        .bind(away)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

/// Writes down how making `seen` ready ended. `false`: another process did, or it waits for another model by now;
/// nothing was changed.
pub async fn settle(db: &Db, seen: &Deployment, outcome: &Outcome, now: Millis) -> Result<bool> {
    const CREATED: &str = "UPDATE model_deployments SET last_updated_time = $3, failure_message = $4,
            strikes = 0, loading_until = NULL, failing_since = NULL,
            status = CASE WHEN $4 IS NULL THEN 'Active' ELSE 'Failed' END
        WHERE id = $1 AND model_arn = $2 AND status = 'Creating'";
    const UPDATED: &str = "UPDATE model_deployments SET last_updated_time = $3, failure_message = $4,
            strikes = 0, loading_until = NULL, failing_since = NULL,
            model_arn = CASE WHEN $4 IS NULL THEN update_model_arn ELSE model_arn END,
            update_status = CASE WHEN $4 IS NULL THEN 'UpdateCompleted' ELSE 'UpdateFailed' END
        WHERE id = $1 AND update_model_arn = $2 AND update_status = 'Updating'";
    let sql = if seen.status == DeploymentStatus::Creating { CREATED } else { UPDATED };
    let message = match outcome {
        Outcome::Ready => None,
        Outcome::Failed(message) => Some(storable(message)),
    };
    let rows = run!(db, |on| sqlx::query(sql)
        .bind(&seen.id)
        .bind(seen.wanted_model())
        .bind(now)
        .bind(message)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

/// What became of a request to delete a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone; the model stays.
    Done,
    /// The account has no such deployment.
    NotFound,
    /// It is being created or updated.
    UnderWay,
}

/// Removes a deployment that nothing is being done to, and its tags; the model stays.
pub async fn delete(db: &Db, account_id: &str, identifier: &str) -> Result<Deleted> {
    const SQL: &str = concat!(
        "DELETE FROM model_deployments WHERE account_id = $1 AND (arn = $2 OR name = $2)
            AND status <> 'Creating' AND (update_status IS NULL OR update_status <> 'Updating') RETURNING ",
        columns!()
    );
    let gone = transaction!(db, |tx| {
        let gone: Option<Deployment> =
            sqlx::query_as(SQL).bind(account_id).bind(identifier).fetch_optional(&mut *tx).await?;
        if let Some(gone) = &gone {
            sqlx::query(tags::CLEAR).bind(account_id).bind(&gone.arn).execute(&mut *tx).await?;
        }
        gone
    });
    Ok(match gone {
        Some(_) => Deleted::Done,
        None if find(db, account_id, identifier).await?.is_some() => Deleted::UnderWay,
        None => Deleted::NotFound,
    })
}

/// What only a listing of deployments can be narrowed by.
#[derive(Debug, Clone, Default)]
pub struct DeploymentFilter {
    /// Where the deployment stands.
    pub status: Option<DeploymentStatus>,
    /// The model that answers.
    pub model_arn: Option<String>,
}

macro_rules! page_sql {
    ($comparison:literal, $direction:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM model_deployments
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

/// One page of the account's deployments.
pub async fn list(db: &Db, account_id: &str, only: &DeploymentFilter, filter: &Filter) -> Result<Listed<Deployment>> {
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
    Ok(filter.page(rows, |row: &Deployment| Cursor { creation_time: row.creation_time, id: row.id.clone() }))
}
