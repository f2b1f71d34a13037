//! Table `customization_jobs`, as workers see it. A claim raises `attempt`; every later statement of
//! that worker names the attempt and the status it expects, and reports whether a row changed. These
//! statements name no account: they act on rows that a claim handed out, by id.

use serde_json::Value;

use super::custom_models::{self, CustomModel};
use super::db::{Db, run, transaction};
use super::job_events;
use super::jobs::{Job, Progress, columns};
use super::status::{Status, Tasks};
use super::tags::{self, Tag};
use super::text::Json;
use crate::clock::Millis;
use crate::error::Result;

/// Which job, and in which attempt: what every write of a worker carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Whose job it is.
    pub account_id: String,
    /// The job.
    pub job_id: String,
    /// The attempt that the claim began.
    pub attempt: i64,
}

/// Writes an event inside the open transaction `$tx`.
macro_rules! event {
    ($tx:ident, $account:expr, $job:expr, $attempt:expr, $at:expr, $kind:expr, $detail:expr) => {
        sqlx::query(job_events::INSERT)
            .bind($account)
            .bind($job)
            .bind($attempt)
            .bind($at)
            .bind($kind)
            .bind($detail)
            .execute(&mut *$tx)
            .await?
    };
}

macro_rules! claim_sql {
    ($lock:literal) => {
        concat!(
            "UPDATE customization_jobs SET
                attempt = attempt + 1, worker = $1, lease_until = $2, scratch = 1,
                strikes = strikes + CASE WHEN lease_until IS NULL THEN 0 ELSE 1 END
             WHERE id = (
                SELECT id FROM customization_jobs
                WHERE status = 'InProgress' AND (lease_until IS NULL OR lease_until <= $3)
                    AND strikes + CASE WHEN lease_until IS NULL THEN 0 ELSE 1 END < $4
                ORDER BY creation_time, id LIMIT 1 ",
            $lock,
            ")
             RETURNING ",
            columns!()
        )
    };
}

/// Takes the oldest job that nobody holds: one never begun, released, or whose lease ran out. A lease
/// that ran out costs a strike; a job with `strike_limit` strikes is left for [`sweep`].
pub async fn claim(db: &Db, worker: &str, now: Millis, lease_until: Millis, strike_limit: i64) -> Result<Option<Job>> {
    let sql = match db {
        Db::Postgres(_) => claim_sql!("FOR UPDATE SKIP LOCKED"),
        // One writer at a time: there is no rival row lock to skip.
        Db::Sqlite(_) => claim_sql!(""),
    };
    Ok(transaction!(db, |tx| {
        let job: Option<Job> = sqlx::query_as(sql)
            .bind(worker)
            .bind(lease_until)
            .bind(now)
            .bind(strike_limit)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(job) = &job {
            event!(tx, &job.spec.account_id, &job.spec.id, job.attempt, now, "Claimed", worker);
        }
        job
    }))
}

/// Prolongs the lease. Returns the job's status, in which the worker sees a request to stop, or `None`
/// when the job is no longer the worker's.
pub async fn renew(db: &Db, fence: &Fence, lease_until: Millis) -> Result<Option<Status>> {
    const SQL: &str = "UPDATE customization_jobs SET lease_until = $3
        WHERE id = $1 AND attempt = $2 AND status IN ('InProgress', 'Stopping') AND lease_until IS NOT NULL
        RETURNING status";
    Ok(run!(db, |on| sqlx::query_scalar(SQL)
        .bind(&fence.job_id)
        .bind(fence.attempt)
        .bind(lease_until)
        .fetch_optional(on)
        .await)?)
}

/// The job's status if the attempt still holds it, without touching it.
pub async fn status(db: &Db, fence: &Fence) -> Result<Option<Status>> {
    const SQL: &str = "SELECT status FROM customization_jobs
        WHERE id = $1 AND attempt = $2 AND status IN ('InProgress', 'Stopping') AND lease_until IS NOT NULL";
    Ok(run!(db, |on| sqlx::query_scalar(SQL).bind(&fence.job_id).bind(fence.attempt).fetch_optional(on).await)?)
}

/// Records how far the job is. `checkpointed` clears its strikes: attempts that get somewhere may go on.
pub async fn progress(db: &Db, fence: &Fence, progress: &Progress, checkpointed: bool) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET progress = $3, strikes = CASE WHEN $4 = 1 THEN 0 ELSE strikes END
        WHERE id = $1 AND attempt = $2 AND status IN ('InProgress', 'Stopping') AND lease_until IS NOT NULL";
    let rows = run!(db, |on| sqlx::query(SQL)
        .bind(&fence.job_id)
        .bind(fence.attempt)
        .bind(Json(progress))
        .bind(i64::from(checkpointed))
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

/// Records where the sub-tasks stand.
pub async fn tasks(db: &Db, fence: &Fence, tasks: &Tasks, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET tasks = $3, last_modified_time = $4
        WHERE id = $1 AND attempt = $2 AND status IN ('InProgress', 'Stopping') AND lease_until IS NOT NULL";
    let rows = run!(db, |on| sqlx::query(SQL)
        .bind(&fence.job_id)
        .bind(fence.attempt)
        .bind(Json(tasks))
        .bind(now)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

/// Decides, once per job, that the outputs this attempt uploaded are the result. `false`: the job is
/// no longer the worker's, or is being stopped, or was decided before.
pub async fn publish(db: &Db, fence: &Fence, published: &Value, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET published_attempt = $2, published = $3
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL
            AND published_attempt IS NULL";
    Ok(transaction!(db, |tx| {
        let rows = sqlx::query(SQL)
            .bind(&fence.job_id)
            .bind(fence.attempt)
            .bind(Json(published))
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if rows == 1 {
            event!(tx, &fence.account_id, &fence.job_id, fence.attempt, now, "Published", "");
        }
        rows == 1
    }))
}

/// Ends the job with its model, in one transaction. `false`: the job is no longer the worker's, or is
/// being stopped; nothing was written.
pub async fn complete(db: &Db, fence: &Fence, model: &CustomModel, model_tags: &[Tag], tasks: &Tasks) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET status = 'Completed', end_time = $3, last_modified_time = $3,
            worker = NULL, lease_until = NULL, tasks = $4, output_model_arn = $5, training_loss = $6,
            validation_losses = $7
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL";
    Ok(transaction!(db, |tx| {
        let rows = sqlx::query(SQL)
            .bind(&fence.job_id)
            .bind(fence.attempt)
            .bind(model.creation_time)
            .bind(Json(tasks))
            .bind(&model.arn)
            .bind(model.training_loss)
            .bind(&model.validation_losses)
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if rows == 0 {
            return Ok(false);
        }
        custom_models::insert!(tx, model, custom_models::INSERT);
        for tag in model_tags {
            sqlx::query(tags::INSERT)
                .bind(&model.account_id)
                .bind(&model.arn)
                .bind(&tag.key)
                .bind(&tag.value)
                .execute(&mut *tx)
                .await?;
        }
        let at = model.creation_time;
        event!(tx, &fence.account_id, &fence.job_id, fence.attempt, at, "Completed", &model.arn);
        true
    }))
}

/// Ends the job as failed. `false`: the job is no longer the worker's, or is being stopped.
pub async fn fail(db: &Db, fence: &Fence, message: &str, tasks: &Tasks, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET status = 'Failed', failure_message = $3, end_time = $4,
            last_modified_time = $4, worker = NULL, lease_until = NULL, tasks = $5
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL";
    Ok(transaction!(db, |tx| {
        let rows = sqlx::query(SQL)
            .bind(&fence.job_id)
            .bind(fence.attempt)
            .bind(message)
            .bind(now)
            .bind(Json(tasks))
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if rows == 1 {
            event!(tx, &fence.account_id, &fence.job_id, fence.attempt, now, "Failed", message);
        }
        rows == 1
    }))
}

/// Confirms a request to stop. `false`: the job is no longer the worker's, or nobody asked.
pub async fn stopped(db: &Db, fence: &Fence, tasks: &Tasks, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET status = 'Stopped', end_time = $3, last_modified_time = $3,
            worker = NULL, lease_until = NULL, tasks = $4
        WHERE id = $1 AND attempt = $2 AND status = 'Stopping' AND lease_until IS NOT NULL";
    Ok(transaction!(db, |tx| {
        let rows = sqlx::query(SQL)
            .bind(&fence.job_id)
            .bind(fence.attempt)
            .bind(now)
            .bind(Json(tasks))
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if rows == 1 {
            event!(tx, &fence.account_id, &fence.job_id, fence.attempt, now, "Stopped", "");
        }
        rows == 1
    }))
}

/// Gives the job back unfinished, so that the next claim takes it at once. `strikes` says how much the
/// end of this attempt counts against the job: 0 for a drain. `false`: it is no longer the worker's, or
/// is being stopped.
pub async fn release(db: &Db, fence: &Fence, strikes: i64, why: &str, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET worker = NULL, lease_until = NULL, strikes = strikes + $3
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL";
    Ok(transaction!(db, |tx| {
        let rows = sqlx::query(SQL)
            .bind(&fence.job_id)
            .bind(fence.attempt)
            .bind(strikes)
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if rows == 1 {
            event!(tx, &fence.account_id, &fence.job_id, fence.attempt, now, "Released", why);
        }
        rows == 1
    }))
}

/// Frees what a worker held that is known to be dead, so that nobody waits for its leases to run out.
/// Each counts as a lease that ran out.
pub async fn bury(db: &Db, worker: &str, now: Millis) -> Result<u64> {
    const SQL: &str = "UPDATE customization_jobs SET lease_until = $2 WHERE worker = $1 AND lease_until > $2";
    Ok(run!(db, |on| sqlx::query(SQL).bind(worker).bind(now).execute(on).await.map(|done| done.rows_affected()))?)
}

/// Ends what no worker will end: jobs being stopped whose worker is gone, and jobs that have used up
/// their strikes. Returns how many it ended.
pub async fn sweep(db: &Db, now: Millis, strike_limit: i64, failure_message: &str) -> Result<u64> {
    const STOP: &str = "UPDATE customization_jobs SET status = 'Stopped', end_time = $1, last_modified_time = $1,
            worker = NULL, lease_until = NULL
        WHERE status = 'Stopping' AND (lease_until IS NULL OR lease_until <= $1)
        RETURNING account_id, id, attempt";
    const FAIL: &str = "UPDATE customization_jobs SET status = 'Failed', failure_message = $3, end_time = $1,
            last_modified_time = $1, worker = NULL, lease_until = NULL
        WHERE status = 'InProgress' AND (lease_until IS NULL OR lease_until <= $1)
            AND strikes + CASE WHEN lease_until IS NULL THEN 0 ELSE 1 END >= $2
        RETURNING account_id, id, attempt";
    Ok(transaction!(db, |tx| {
        let stopped: Vec<(String, String, i64)> = sqlx::query_as(STOP).bind(now).fetch_all(&mut *tx).await?;
        for (account, job, attempt) in &stopped {
            event!(tx, account, job, attempt, now, "Stopped", "");
        }
        let failed: Vec<(String, String, i64)> =
            sqlx::query_as(FAIL).bind(now).bind(strike_limit).bind(failure_message).fetch_all(&mut *tx).await?;
        for (account, job, attempt) in &failed {
            event!(tx, account, job, attempt, now, "Failed", failure_message);
        }
        (stopped.len() + failed.len()) as u64
    }))
}

/// Jobs that ended before `ended_before` and whose working objects may still lie in S3, oldest first.
pub async fn scratch(db: &Db, ended_before: Millis, limit: i64) -> Result<Vec<Job>> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM customization_jobs WHERE scratch = 1 AND end_time < $1 ORDER BY end_time LIMIT $2"
    );
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(ended_before).bind(limit).fetch_all(on).await)?)
}

/// Says that the working objects of an ended job are gone.
pub async fn scratch_removed(db: &Db, job_id: &str) -> Result<()> {
    const SQL: &str = "UPDATE customization_jobs SET scratch = 0 WHERE id = $1 AND end_time IS NOT NULL";
    run!(db, |on| sqlx::query(SQL).bind(job_id).execute(on).await.map(drop))?;
    Ok(())
}

/// Whether checkpoints of the job of any account may still lie in S3. Not of one that is unknown here.
pub async fn has_checkpoints(db: &Db, job_id: &str) -> Result<bool> {
    const SQL: &str = "SELECT COUNT(*) FROM customization_jobs WHERE id = $1 AND scratch = 1";
    let jobs: i64 = run!(db, |on| sqlx::query_scalar(SQL).bind(job_id).fetch_one(on).await)?;
    Ok(jobs > 0)
}

/// How many jobs wait for a worker: what a cluster scales its workers by.
pub async fn waiting(db: &Db, now: Millis) -> Result<i64> {
    const SQL: &str = "SELECT COUNT(*) FROM customization_jobs
        WHERE status = 'InProgress' AND (lease_until IS NULL OR lease_until <= $1)";
    Ok(run!(db, |on| sqlx::query_scalar(SQL).bind(now).fetch_one(on).await)?)
}
