//! Table `job_events`: what happened to a job, in order. Written in the transaction of the change it
//! tells of, so the log never disagrees with the job.

use super::db::{Db, run};
use crate::clock::Millis;
use crate::error::Result;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct JobEvent {
    /// The attempt it happened in; 0 before the first.
    pub attempt: i64,
    /// When.
    pub at: Millis,
    /// `Created`, `Claimed`, `Resumed`, `CheckpointRefused`, `Crashed`, `Released`, `StopRequested`, `Published`,
    /// `Completed`, `Failed`, `Stopped`.
    pub kind: String,
    /// What a reader of the log should know besides.
    pub detail: String,
}

/// The statement that records an event: account, job, attempt, time, kind, detail. Writers are on several
/// machines whose clocks differ: an event is never told of as older than the one before it.
pub(super) const INSERT: &str = "INSERT INTO job_events (account_id, job_id, attempt, at, kind, detail)
    SELECT $1, $2, $3, CASE WHEN latest > $4 THEN latest ELSE $4 END, $5, $6
    FROM (SELECT COALESCE(MAX(at), $4) AS latest FROM job_events WHERE job_id = $2) AS earlier";

/// The job's events, oldest first.
pub async fn list(db: &Db, account_id: &str, job_id: &str) -> Result<Vec<JobEvent>> {
    const SQL: &str = "SELECT attempt, at, kind, detail FROM job_events
        WHERE account_id = $1 AND job_id = $2 ORDER BY id";
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(job_id).fetch_all(on).await)?)
}
