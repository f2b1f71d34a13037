//! How jobs are handed to workers so that every accepted job ends exactly once, whatever dies.
//!
//! 1. A claim raises `attempt` and sets `lease_until`: oldest job first, also one whose lease ran out. Leases
//!    are set and judged by the database's clock, in the statement itself: no machine's wall clock counts.
//! 2. Every later write of the worker names the attempt; when no row changes, the job is no longer its.
//! 3. The worker renews often. An outage of the database stops no work: renewal is by attempt, so a lease that
//!    ran out meanwhile is renewed unless another attempt has taken the job, and only that ends the work.
//! 4. What a worker writes to S3 lies under its attempt until one transaction decides for it.
//! 5. A checkpoint is addressed by its step; the next attempt goes on from the newest whole one.
//! 6. Stop, drain and lost lease are one flag to the trainer.
//!
//! Who asks for work during an outage waits as well: for half a lease after the last question without an answer,
//! only what was given back is taken, so that every holder is back before its lease counts as run out.
//!
//! A stale worker harms nothing while it goes on: by 2 it changes no row, and by 4 it changes no object that
//! anybody reads but itself.
//!
//! A job whose attempts die without writing a checkpoint must not kill workers for ever: each attempt
//! that dies without one costs strikes, a checkpoint clears them, and [`STRIKE_LIMIT`] of them end the job. An
//! attempt that wrote one costs none, however it dies: crashes of a neighbour are not held against it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::job::{Stage, failure_message};
use crate::clock::{Clock, DatabaseTime, Millis};
use crate::error::{Kind, Result};
use crate::store::custom_models::CustomModel;
use crate::store::jobs::{Job, Progress};
use crate::store::queue::{self, Fence, GivenBack, Taking};
use crate::store::{Db, Status, Tasks, scratch};

/// Strikes that end a job.
pub const STRIKE_LIMIT: i64 = 12;
/// A panic in training will most likely come again: three tries.
pub const STRIKES_PER_CRASH: i64 = 4;

/// The queue as one process sees it.
#[derive(Debug, Clone)]
pub struct Queue {
    db: Db,
    clock: Clock,
    lease: Duration,
    /// The last question about leases that the database did not answer, of all clones.
    unanswered: Arc<Mutex<Option<Instant>>>,
}

/// Whether a write found the job still in the worker's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a worker that lost its job must stop"]
pub enum Held {
    /// It did, and the write is done.
    Yes,
    /// It did not, and nothing was written: another attempt has the job, or it has ended, or a stop
    /// stands in the way.
    No,
}

impl From<bool> for Held {
    fn from(changed: bool) -> Self {
        if changed { Self::Yes } else { Self::No }
    }
}

/// A job in a worker's hands.
#[derive(Debug, Clone)]
pub struct Claim {
    queue: Queue,
    fence: Fence,
    /// The job as it was when it was claimed.
    pub job: Job,
    /// Where its sub-tasks stand: one account of them for all clones of a claim.
    tasks: Arc<Mutex<Tasks>>,
}

impl Queue {
    /// A queue over `db` whose claims last for `lease`.
    pub fn new(db: Db, clock: Clock, lease: Duration) -> Self {
        Self { db, clock, lease, unanswered: Arc::default() }
    }

    /// How long a claim lasts without renewal.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Takes the oldest job that nobody holds.
    pub async fn claim(&self, worker: &str) -> Result<Option<Claim>> {
        let taking = Taking { worker, lease_ms: self.lease_ms(), strike_limit: STRIKE_LIMIT, now: self.clock.now() };
        let job = self.heard(queue::claim(&self.db, taking, self.time()).await)?;
        Ok(job.map(|job| {
            let fence =
                Fence { account_id: job.spec.account_id.clone(), job_id: job.spec.id.clone(), attempt: job.attempt };
            Claim { queue: self.clone(), fence, tasks: Arc::new(Mutex::new(job.tasks.0)), job }
        }))
    }

    /// Frees what a worker held that is known to be dead.
    pub async fn bury(&self, worker: &str) -> Result<u64> {
        queue::bury(&self.db, worker, self.clock.database()).await
    }

    /// The time by which leases are judged: none has run out soon after an outage, in which nobody could renew one.
    pub fn time(&self) -> DatabaseTime {
        let unanswered = *self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        let recently = |at: Instant| self.clock.monotonic().duration_since(at) < self.lease / 2;
        self.clock.database().tolerant(unanswered.is_some_and(recently))
    }

    /// Remembers whether the database answered a question about leases.
    ///
    /// # Errors
    /// Those of the answer.
    pub fn heard<T>(&self, answer: Result<T>) -> Result<T> {
        if let Err(error) = &answer
            && error.kind() == Kind::Unavailable
        {
            *self.unanswered.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.clock.monotonic());
        }
        answer
    }

    /// [`Queue::lease`] in milliseconds.
    pub fn lease_ms(&self) -> i64 {
        i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX / 2)
    }
}

impl Claim {
    /// Which attempt of the job this is, from 1.
    pub fn attempt(&self) -> i64 {
        self.fence.attempt
    }

    /// Prolongs the lease, also one that ran out during an outage. `None`: another attempt has the job, or it has
    /// ended. `Stopping`: somebody asked to stop it.
    pub async fn renew(&self) -> Result<Option<Status>> {
        queue::renew(&self.queue.db, &self.fence, self.queue.lease_ms(), self.queue.clock.database()).await
    }

    /// The job's status if it is still ours. Asked each second for a request to stop, and before
    /// something outside the database is written.
    pub async fn status(&self) -> Result<Option<Status>> {
        queue::status(&self.queue.db, &self.fence).await
    }

    /// Records how far the job is; `checkpointed` when a new checkpoint is safe in S3.
    pub async fn progress(&self, progress: &Progress, checkpointed: bool) -> Result<Held> {
        Ok(queue::progress(&self.queue.db, &self.fence, progress, checkpointed).await?.into())
    }

    /// The job has come to `stage`; [`Claim::record_tasks`] writes it down.
    pub fn reach(&self, stage: Stage) {
        self.tasks().reach(stage, self.queue.clock.now());
    }

    /// Shows the job's owner where the sub-tasks stand.
    pub async fn record_tasks(&self) -> Result<Held> {
        let tasks = *self.tasks();
        Ok(queue::tasks(&self.queue.db, &self.fence, &tasks, self.queue.clock.now()).await?.into())
    }

    /// The sub-tasks as they are if the job ends so: an end that cannot be written has not happened.
    fn ended(&self, status: Status, now: Millis) -> Tasks {
        let mut tasks = *self.tasks();
        tasks.end(status, now);
        tasks
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        // Nobody panics with the lock held, and the tasks would be whole if one did.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides that the outputs this attempt has uploaded are the job's result; said again, it is the same decision.
    pub async fn publish(&self, published: &Value) -> Result<Held> {
        Ok(queue::publish(&self.queue.db, &self.fence, published, self.queue.clock.now()).await?.into())
    }

    /// Ends the job with its model: both appear in one transaction.
    pub async fn complete(&self, model: &CustomModel) -> Result<Held> {
        let tasks = self.ended(Status::Completed, model.creation_time);
        Ok(queue::complete(&self.queue.db, &self.fence, model, &self.job.spec.model_tags, &tasks).await?.into())
    }

    /// Ends the job as failed; `message` is for its owner.
    pub async fn fail(&self, message: &str) -> Result<Held> {
        let now = self.queue.clock.now();
        let tasks = self.ended(Status::Failed, now);
        Ok(queue::fail(&self.queue.db, &self.fence, &failure_message(message), &tasks, now).await?.into())
    }

    /// Confirms a request to stop.
    pub async fn stopped(&self) -> Result<Held> {
        let now = self.queue.clock.now();
        let tasks = self.ended(Status::Stopped, now);
        Ok(queue::stopped(&self.queue.db, &self.fence, &tasks, now).await?.into())
    }

    /// Gives the job back, so that the next claim takes it at once.
    pub async fn release(&self, why: &str) -> Result<Held> {
        Ok(queue::release(&self.queue.db, &self.fence, GivenBack::Released(why), self.queue.clock.now()).await?.into())
    }

    /// Gives the job back after an attempt that crashed, which counts against it.
    pub async fn crashed(&self, why: &str) -> Result<Held> {
        let why = GivenBack::Crashed(why, STRIKES_PER_CRASH);
        Ok(queue::release(&self.queue.db, &self.fence, why, self.queue.clock.now()).await?.into())
    }

    /// Writes an event of this attempt into the job's log.
    pub async fn tell(&self, kind: &str, detail: &str) -> Result<Held> {
        Ok(queue::tell(&self.queue.db, &self.fence, kind, detail, self.queue.clock.now()).await?.into())
    }

    /// An attempt that had lost the job may have written working objects after they were removed.
    pub async fn left_behind(&self) -> Result<()> {
        scratch::late(&self.queue.db, &self.fence.job_id).await
    }
}
