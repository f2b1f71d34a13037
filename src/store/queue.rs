//! Table `customization_jobs`, as workers see it. A claim raises `attempt`; every later statement of
//! that worker names the attempt and the status it expects, and reports whether a row changed. These
//! statements name no account: they act on rows that a claim handed out, by id.

use serde_json::Value;

use super::custom_models::{self, CustomModel};
use super::db::{Db, end_time, run, timed_sql, transaction};
use super::job_events;
use super::jobs::{Job, Progress, columns};
use super::status::{Status, Tasks};
use super::tags::{self, Tag};
use super::text::{Json, storable};
use crate::clock::{DatabaseTime, Millis};
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
            .bind(storable($detail))
            .execute(&mut *$tx)
            .await?
    };
}

/// 1 when the attempt that holds the row has come to nothing: its lease was not given back, and it kept nothing
/// that the next one goes on from.
macro_rules! lost {
    () => {
        "(CASE WHEN lease_until IS NULL OR progress_attempt = attempt THEN 0 ELSE 1 END)"
    };
}

macro_rules! claim_sql {
    ($now:literal, $lock:literal) => {
        concat!(
            "UPDATE customization_jobs SET
                attempt = attempt + 1, worker = $1, lease_until = ",
            $now,
            " + $2 + $3, scratch = 1, strikes = strikes + ",
            lost!(),
            " WHERE id = (
                SELECT id FROM customization_jobs
                WHERE status = 'InProgress' AND (lease_until IS NULL OR lease_until <= ",
            $now,
            " + $5) AND strikes + ",
            lost!(),
            " < $4
                ORDER BY creation_time, id LIMIT 1 ",
            $lock,
            ")
             RETURNING ",
            columns!()
        )
    };
}

macro_rules! claim_skipping_rivals {
    ($now:literal) => {
        claim_sql!($now, "FOR UPDATE SKIP LOCKED")
    };
}

macro_rules! claim_alone {
    ($now:literal) => {
        claim_sql!($now, "")
    };
}

/// How a worker takes a job.
#[derive(Debug, Clone, Copy)]
pub struct Taking<'a> {
    /// The name of the worker.
    pub worker: &'a str,
    /// How long the lease lasts.
    pub lease_ms: Millis,
    /// A job with as many strikes is left for [`sweep`].
    pub strike_limit: i64,
    /// What the event says of the time.
    pub now: Millis,
}

/// Takes the oldest job that nobody holds: one never begun, released, or whose lease ran out by the database's
/// clock. A lease that ran out costs a strike, unless the attempt had got somewhere.
pub async fn claim(db: &Db, taking: Taking<'_>, at: DatabaseTime) -> Result<Option<Job>> {
    let sql = match db {
        Db::Postgres(_) => timed_sql!(db, claim_skipping_rivals),
        // One writer at a time: there is no rival row lock to skip.
        Db::Sqlite(_) => timed_sql!(db, claim_alone),
    };
    Ok(transaction!(db, |tx| {
        let job: Option<Job> = sqlx::query_as(sql)
            .bind(taking.worker)
            .bind(at.shift_ms())
            .bind(taking.lease_ms)
            .bind(taking.strike_limit)
            .bind(at.expiry_shift_ms())
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(job) = &job {
            event!(tx, &job.spec.account_id, &job.spec.id, job.attempt, taking.now, "Claimed", taking.worker);
        }
        job
    }))
}

macro_rules! renew_sql {
    ($now:literal) => {
        concat!(
            "UPDATE customization_jobs SET lease_until = ",
            $now,
            " + $3 + $4
             WHERE id = $1 AND attempt = $2 AND status IN ('InProgress', 'Stopping') AND lease_until IS NOT NULL
             RETURNING status"
        )
    };
}

/// Prolongs the lease, also one that has run out, as long as no other attempt has taken the job. Returns the
/// job's status, in which the worker sees a request to stop, or `None` when the job is no longer the worker's.
pub async fn renew(db: &Db, fence: &Fence, lease_ms: Millis, at: DatabaseTime) -> Result<Option<Status>> {
    let sql = timed_sql!(db, renew_sql);
    Ok(run!(db, |on| sqlx::query_scalar(sql)
        .bind(&fence.job_id)
        .bind(fence.attempt)
        .bind(at.shift_ms())
        .bind(lease_ms)
        .fetch_optional(on)
        .await)?)
}

/// The job's status if the attempt still holds it, without touching it.
pub async fn status(db: &Db, fence: &Fence) -> Result<Option<Status>> {
    const SQL: &str = "SELECT status FROM customization_jobs
        WHERE id = $1 AND attempt = $2 AND status IN ('InProgress', 'Stopping') AND lease_until IS NOT NULL";
    Ok(run!(db, |on| sqlx::query_scalar(SQL).bind(&fence.job_id).bind(fence.attempt).fetch_optional(on).await)?)
}

/// Records how far the job is. `checkpointed` clears its strikes, and the loss of this attempt will be none:
/// attempts that get somewhere may go on.
pub async fn progress(db: &Db, fence: &Fence, progress: &Progress, checkpointed: bool) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET progress = $3,
            strikes = CASE WHEN $4 = 1 THEN 0 ELSE strikes END,
            progress_attempt = CASE WHEN $4 = 1 THEN attempt ELSE progress_attempt END
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

/// Decides, once per job, that the outputs this attempt uploaded are the result. Deciding the same again is
/// no second decision: the answer to the first may have been lost. `false`: the job is no longer the worker's,
/// or is being stopped, or was decided otherwise.
pub async fn publish(db: &Db, fence: &Fence, published: &Value, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET published_attempt = $2, published = $3
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL
            AND published_attempt IS NULL";
    const SAME: &str = "SELECT COUNT(*) FROM customization_jobs
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL
            AND published_attempt = $2 AND published = $3";
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
            true
        } else {
            let same: i64 = sqlx::query_scalar(SAME)
                .bind(&fence.job_id)
                .bind(fence.attempt)
                .bind(Json(published))
                .fetch_one(&mut *tx)
                .await?;
            same == 1
        }
    }))
}

/// Ends the job with its model, in one transaction. `false`: the job is no longer the worker's, or is
/// being stopped; nothing was written.
pub async fn complete(db: &Db, fence: &Fence, model: &CustomModel, model_tags: &[Tag], tasks: &Tasks) -> Result<bool> {
    const SQL: &str = concat!(
        "UPDATE customization_jobs SET status = 'Completed', end_time = ",
        end_time!("$3"),
        ", last_modified_time = ",
        end_time!("$3"),
        ",
            worker = NULL, lease_until = NULL, tasks = $4, output_model_arn = $5, training_loss = $6,
            validation_losses = $7
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL"
    );
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
    const SQL: &str = concat!(
        "UPDATE customization_jobs SET status = 'Failed', failure_message = $3, end_time = ",
        end_time!("$4"),
        ", last_modified_time = ",
        end_time!("$4"),
        ", worker = NULL, lease_until = NULL, tasks = $5
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL"
    );
    Ok(transaction!(db, |tx| {
        let rows = sqlx::query(SQL)
            .bind(&fence.job_id)
            .bind(fence.attempt)
            .bind(storable(message))
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
    const SQL: &str = concat!(
        "UPDATE customization_jobs SET status = 'Stopped', end_time = ",
        end_time!("$3"),
        ", last_modified_time = ",
        end_time!("$3"),
        ", worker = NULL, lease_until = NULL, tasks = $4
        WHERE id = $1 AND attempt = $2 AND status = 'Stopping' AND lease_until IS NOT NULL"
    );
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

/// Why an attempt ended without an end of its job.
#[derive(Debug, Clone, Copy)]
pub enum GivenBack<'a> {
    /// The process drains: nobody's fault.
    Released(&'a str),
    /// The trainer crashed with this message, which counts against the job by so many strikes unless the attempt
    /// had got somewhere.
    Crashed(&'a str, i64),
}

/// Gives the job back unfinished, so that the next claim takes it at once. `false`: it is no longer the
/// worker's, or is being stopped.
pub async fn release(db: &Db, fence: &Fence, why: GivenBack<'_>, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET worker = NULL, lease_until = NULL,
            strikes = strikes + CASE WHEN progress_attempt = attempt THEN 0 ELSE $3 END
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL";
    let (kind, detail, strikes) = match why {
        GivenBack::Released(why) => ("Released", why, 0),
        GivenBack::Crashed(panic, strikes) => ("Crashed", panic, strikes),
    };
    Ok(transaction!(db, |tx| {
        let rows = sqlx::query(SQL)
            .bind(&fence.job_id)
            .bind(fence.attempt)
            .bind(strikes)
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if rows == 1 {
            event!(tx, &fence.account_id, &fence.job_id, fence.attempt, now, kind, detail);
        }
        rows == 1
    }))
}

/// Writes down something that happened in this attempt. `false`: the job is no longer the worker's.
pub async fn tell(db: &Db, fence: &Fence, kind: &str, detail: &str, now: Millis) -> Result<bool> {
    // A write that changes nothing: it holds the row until the event is in.
    const HOLD: &str = "UPDATE customization_jobs SET attempt = attempt
        WHERE id = $1 AND attempt = $2 AND status IN ('InProgress', 'Stopping') AND lease_until IS NOT NULL";
    Ok(transaction!(db, |tx| {
        let rows = sqlx::query(HOLD).bind(&fence.job_id).bind(fence.attempt).execute(&mut *tx).await?.rows_affected();
        if rows == 1 {
            event!(tx, &fence.account_id, &fence.job_id, fence.attempt, now, kind, detail);
        }
        rows == 1
    }))
}

macro_rules! bury_sql {
    ($now:literal) => {
        concat!(
            "UPDATE customization_jobs SET lease_until = ",
            $now,
            " + $2 WHERE worker = $1 AND lease_until > ",
            $now,
            " + $2"
        )
    };
}

/// Frees what a worker held that is known to be dead, so that nobody waits for its leases to run out.
/// Each counts as a lease that ran out.
pub async fn bury(db: &Db, worker: &str, at: DatabaseTime) -> Result<u64> {
    let sql = timed_sql!(db, bury_sql);
    Ok(run!(db, |on| sqlx::query(sql)
        .bind(worker)
        .bind(at.shift_ms())
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?)
}

/// How the attempts of a job ended since it last got somewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    /// The trainer crashed.
    pub crashed: i64,
    /// The worker was gone when the lease ran out.
    pub lost: i64,
}

macro_rules! sweep_stopping_sql {
    ($now:literal) => {
        concat!(
            "UPDATE customization_jobs SET status = 'Stopped', end_time = ",
            end_time!("$1"),
            ", last_modified_time = ",
            end_time!("$1"),
            ", worker = NULL, lease_until = NULL
             WHERE status = 'Stopping' AND (lease_until IS NULL OR lease_until <= ",
            $now,
            " + $2) RETURNING account_id, id, attempt"
        )
    };
}

macro_rules! worn_out_sql {
    ($now:literal, $lock:literal) => {
        concat!(
            "SELECT account_id, id, attempt, COALESCE(progress_attempt, 0) FROM customization_jobs
             WHERE status = 'InProgress' AND (lease_until IS NULL OR lease_until <= ",
            $now,
            " + $1) AND strikes + ",
            lost!(),
            " >= $2 ",
            $lock
        )
    };
}

macro_rules! worn_out_skipping_rivals {
    ($now:literal) => {
        worn_out_sql!($now, "FOR UPDATE SKIP LOCKED")
    };
}

macro_rules! worn_out_alone {
    ($now:literal) => {
        worn_out_sql!($now, "")
    };
}

/// Ends what no worker will end: jobs being stopped whose worker is gone, and jobs that have used up
/// their strikes, with a message made of how their attempts ended. Returns how many it ended.
pub async fn sweep(
    db: &Db,
    strike_limit: i64,
    failure_message: impl Fn(Ends) -> String,
    now: Millis,
    at: DatabaseTime,
) -> Result<u64> {
    const CRASHED: &str = "SELECT COUNT(*) FROM job_events WHERE job_id = $1 AND attempt > $2 AND kind = 'Crashed'";
    const RELEASED: &str = "SELECT COUNT(*) FROM job_events WHERE job_id = $1 AND attempt > $2 AND kind = 'Released'";
    const FAIL: &str = concat!(
        "UPDATE customization_jobs SET status = 'Failed', failure_message = $2, end_time = ",
        end_time!("$3"),
        ", last_modified_time = ",
        end_time!("$3"),
        ", worker = NULL, lease_until = NULL WHERE id = $1 AND status = 'InProgress'"
    );
    let stop = timed_sql!(db, sweep_stopping_sql);
    let worn_out = match db {
        Db::Postgres(_) => timed_sql!(db, worn_out_skipping_rivals),
        Db::Sqlite(_) => timed_sql!(db, worn_out_alone),
    };
    Ok(transaction!(db, |tx| {
        let stopped: Vec<(String, String, i64)> =
            sqlx::query_as(stop).bind(now).bind(at.expiry_shift_ms()).fetch_all(&mut *tx).await?;
        for (account, job, attempt) in &stopped {
            event!(tx, account, job, attempt, now, "Stopped", "");
        }
        let failed: Vec<(String, String, i64, i64)> =
            sqlx::query_as(worn_out).bind(at.expiry_shift_ms()).bind(strike_limit).fetch_all(&mut *tx).await?;
        for (account, job, attempt, progressed) in &failed {
            let crashed: i64 = sqlx::query_scalar(CRASHED).bind(job).bind(progressed).fetch_one(&mut *tx).await?;
            let released: i64 = sqlx::query_scalar(RELEASED).bind(job).bind(progressed).fetch_one(&mut *tx).await?;
            let lost = (attempt - progressed - crashed - released).max(0);
            let message = failure_message(Ends { crashed, lost });
            sqlx::query(FAIL).bind(job).bind(storable(&message)).bind(now).execute(&mut *tx).await?;
            event!(tx, account, job, attempt, now, "Failed", &message);
        }
        (stopped.len() + failed.len()) as u64
    }))
}

macro_rules! waiting_sql {
    ($now:literal) => {
        concat!(
            "SELECT COUNT(*) FROM customization_jobs
             WHERE status = 'InProgress' AND (lease_until IS NULL OR lease_until <= ",
            $now,
            " + $1)"
        )
    };
}

/// How many jobs wait for a worker: what a cluster scales its workers by.
pub async fn waiting(db: &Db, at: DatabaseTime) -> Result<i64> {
    let sql = timed_sql!(db, waiting_sql);
    Ok(run!(db, |on| sqlx::query_scalar(sql).bind(at.shift_ms()).fetch_one(on).await)?)
}
