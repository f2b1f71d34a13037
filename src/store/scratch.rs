//! Table `customization_jobs`, as those see it who remove what ended jobs left in object storage. Each job has a time of
//! its own at which it is tried next, so one that cannot be cleaned holds up no other.

use super::db::{Db, run};
use super::jobs::{Job, columns};
use crate::clock::Millis;
use crate::error::Result;

/// An ended job whose working objects may still lie in object storage.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Leftover {
    /// The job.
    #[sqlx(flatten)]
    pub job: Job,
    /// When it was due.
    pub scratch_due: Millis,
    /// How often its objects were removed.
    pub scratch_rounds: i64,
    /// How often that failed since it last succeeded.
    pub scratch_failures: i64,
}

/// The jobs that are due, those that have waited longest first. One that did not complete is due only `grace` after its
/// end: its newest checkpoint may still be asked.
pub async fn due(db: &Db, now: Millis, grace: Millis, limit: i64) -> Result<Vec<Leftover>> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        ", scratch_due, scratch_rounds, scratch_failures FROM customization_jobs
         WHERE scratch = 1 AND end_time IS NOT NULL AND scratch_due <= $1
            AND (status = 'Completed' OR end_time <= $2)
         ORDER BY scratch_due, end_time LIMIT $3"
    );
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(now).bind(now - grace).bind(limit).fetch_all(on).await)?)
}

/// Takes a job to be cleaned, so that no other process does the same at once; should it fail, it is due again at
/// `again`. `false`: another process was faster.
pub async fn take(db: &Db, leftover: &Leftover, again: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE customization_jobs SET scratch_due = $3, scratch_failures = scratch_failures + 1
        WHERE id = $1 AND scratch_due = $2 AND scratch_failures = $4 AND scratch = 1 AND end_time IS NOT NULL";
    let rows = run!(db, |on| sqlx::query(SQL)
        .bind(&leftover.job.spec.id)
        .bind(leftover.scratch_due)
        .bind(again)
        .bind(leftover.scratch_failures)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

/// Says that the working objects of an ended job are gone, and when it is to be looked again; `None` for never.
pub async fn removed(db: &Db, job_id: &str, again: Option<Millis>) -> Result<()> {
    const SQL: &str = "UPDATE customization_jobs SET scratch = CASE WHEN $2 = 1 THEN 1 ELSE 0 END, scratch_due = $3,
            scratch_rounds = scratch_rounds + 1, scratch_failures = 0
        WHERE id = $1 AND end_time IS NOT NULL";
    run!(db, |on| sqlx::query(SQL)
        .bind(job_id)
        .bind(i64::from(again.is_some()))
        .bind(again.unwrap_or_default())
        .execute(on)
        .await
        .map(drop))?;
    Ok(())
}

/// Says that something may have been written for a job since its objects were removed; one that has not ended is left
/// as it is.
pub async fn late(db: &Db, job_id: &str) -> Result<()> {
    const SQL: &str =
        "UPDATE customization_jobs SET scratch = 1, scratch_due = 0 WHERE id = $1 AND end_time IS NOT NULL";
    run!(db, |on| sqlx::query(SQL).bind(job_id).execute(on).await.map(drop))?;
    Ok(())
}

/// Whether checkpoints of the job of any account may still lie in object storage. Not of one that is unknown here.
pub async fn has_checkpoints(db: &Db, job_id: &str) -> Result<bool> {
    const SQL: &str = "SELECT COUNT(*) FROM customization_jobs WHERE id = $1 AND scratch = 1 AND scratch_rounds = 0";
    let jobs: i64 = run!(db, |on| sqlx::query_scalar(SQL).bind(job_id).fetch_one(on).await)?;
    Ok(jobs > 0)
}
