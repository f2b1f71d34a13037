//! One attempt at a job, from claim to end. Whatever happens inside, the job is left in one of four
//! ways: completed, failed with a reason for its owner, stopped, or given back for another attempt.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::{error, info, warn};

use super::Worker;
use super::halt::{Halt, Reason};
use super::lease;
use super::reporter;
use super::retry::retry_unavailable;
use super::stages;
use super::transfer;
use crate::app::layout::{DATA_REPORT, Layout, TRAINING_METRICS, TRAJECTORIES};
use crate::durable::Hold;
use crate::error::{Error, Kind, Result};
use crate::jobs::{Claim, Held};
use crate::objects::Objects;
use crate::store::CustomizationType;
use crate::train::{self, BEST_CHECKPOINT, TrainingDevice};

/// How an attempt came to its end.
pub(crate) enum End {
    /// The job is completed.
    Completed,
    /// The trainer ended early because it was told to.
    Interrupted,
    /// The trainer panicked with this message.
    Crashed(String),
}

/// An attempt under way, as its stages see it.
pub(crate) struct Attempt {
    pub(crate) device: TrainingDevice,
    pub(crate) claim: Claim,
    pub(crate) halt: Halt,
    pub(crate) layout: Layout,
    /// Object storage as the job's account may use it.
    pub(crate) objects: Objects,
    /// A folder for this attempt alone: `data/`, `checkpoints/`, `output/`.
    pub(crate) work_dir: PathBuf,
    /// Keeps models that were fetched where they are until the attempt has ended.
    in_use: Mutex<Vec<Hold>>,
}

/// Works on a claimed job until it ends or has to be given back.
pub(crate) async fn run(worker: &Worker, device: TrainingDevice, claim: Claim, halt: Halt) {
    let work_dir = worker.presence.work_dir.join(format!("{}-{}", claim.job.spec.id, claim.attempt()));
    info!(job.id = claim.job.spec.id, job.name = claim.job.spec.name, job.attempt = claim.attempt(), "job begun");
    let outcome = {
        let watch = lease::keep(&claim, worker.queue.lease(), &worker.app.clock, &halt);
        let work = attempt(worker, device, claim.clone(), halt.clone(), work_dir.clone());
        tokio::pin!(watch, work);
        tokio::select! {
            outcome = &mut work => outcome,
            // The lease is lost and the flag raised: what is under way ends at its next look.
            () = &mut watch => work.await,
        }
    };
    settle(worker, &claim, &halt, &work_dir, outcome).await;
    if let Err(cause) = std::fs::remove_dir_all(&work_dir)
        && work_dir.exists()
    {
        warn!(job.id = claim.job.spec.id, "the work folder stays until the next start: {cause}");
    }
}

async fn attempt(worker: &Worker, device: TrainingDevice, claim: Claim, halt: Halt, work_dir: PathBuf) -> Result<End> {
    let layout = Layout::of(&claim.job.spec)?;
    let objects = worker.app.objects_of(&claim.job.spec.account_id);
    let attempt = Attempt { device, claim, halt, layout, objects, work_dir, in_use: Mutex::default() };
    let output = attempt.work_dir.join("output");
    std::fs::create_dir_all(&output)?;

    // Another attempt has trained and decided; what is left is to show its result.
    if let Some((decider, decision)) = stages::publish::decided(&attempt.claim)? {
        let publisher = attempt.publisher(worker);
        publisher.fetch(&decision, decider, &output).await?;
        publisher.finish(&decision, &output).await?;
        return Ok(End::Completed);
    }

    let plan = stages::prepare::plan(worker, &attempt).await?;
    let grader = stages::grader::grader(worker, &attempt, &plan).await?;
    let summary = match stages::train::train(&attempt, plan, grader).await? {
        stages::train::Trained::Completed(summary) => summary,
        stages::train::Trained::Interrupted => return Ok(End::Interrupted),
        stages::train::Trained::Crashed(panic) => return Ok(End::Crashed(panic)),
    };
    if let Some(merged) = &summary.merged {
        let train::Difference { tokens, largest, mean, .. } = merged.difference;
        info!(
            job.id = attempt.claim.job.spec.id,
            logits.largest = largest,
            logits.mean = mean,
            "merged weights written: how far logits after {tokens} tokens lie from those of the adapter over its base"
        );
    }
    if let Some(failure) = &summary.merge_failure {
        error!(job.id = attempt.claim.job.spec.id, "the artifact could not be merged into its base: {failure}");
    }
    if attempt.claim.job.spec.customization_type == CustomizationType::Distillation {
        stages::distill::keep(&attempt)?;
    }
    let publisher = attempt.publisher(worker);
    let decision = publisher.decide(&output, &summary).await?;
    publisher.finish(&decision, &output).await?;
    Ok(End::Completed)
}

impl Attempt {
    /// Keeps a fetched model where it is until the attempt has ended.
    pub(crate) fn keep(&self, hold: Hold) {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner).push(hold);
    }

    pub(crate) fn publisher<'a>(&'a self, worker: &'a Worker) -> stages::publish::Publisher<'a> {
        stages::publish::Publisher {
            claim: &self.claim,
            objects: &self.objects,
            layout: &self.layout,
            clock: &worker.app.clock,
            halt: &self.halt,
        }
    }
}

/// Writes down how the attempt ended.
async fn settle(worker: &Worker, claim: &Claim, halt: &Halt, work_dir: &std::path::Path, outcome: Result<End>) {
    let id = claim.job.spec.id.as_str();
    if halt.reason() == Some(Reason::Lost) {
        // The job may have ended while this attempt could not ask: what it wrote since is to be removed.
        if let Err(error) = claim.left_behind().await {
            warn!(job.id = id, "working objects of the abandoned attempt may stay: {}", error.log());
        }
        return info!(job.id = id, job.attempt = claim.attempt(), "attempt abandoned");
    }
    let held = match (outcome, halt.reason()) {
        (Ok(End::Completed), _) => {
            return info!(job.id = id, job.attempt = claim.attempt(), "job completed");
        }
        // A job that is being stopped ends as stopped, whatever else went wrong meanwhile.
        (_, Some(Reason::Stop)) => persist(worker, halt, "stopping the job", async || claim.stopped().await).await,
        (Ok(End::Crashed(panic)), _) => {
            error!(job.id = id, job.attempt = claim.attempt(), "training panicked: {panic}");
            persist(worker, halt, "giving the job back", async || claim.crashed(&panic).await).await
        }
        (Ok(End::Interrupted), _) => {
            persist(worker, halt, "giving the job back", async || claim.release("drained").await).await
        }
        (Err(error), Some(Reason::Drain)) if error.kind() == Kind::Unavailable => {
            persist(worker, halt, "giving the job back", async || claim.release("drained").await).await
        }
        (Err(error), _) => {
            error!(job.id = id, job.attempt = claim.attempt(), "job failed: {}", error.log());
            // The report of every bad line, and the losses so far, are the owner's even if no model is.
            if let Err(error) = keep_reports(worker, claim, halt, work_dir).await {
                warn!(job.id = id, "reports of the failed job were not kept: {}", error.log());
            }
            let message = failure(&error, id);
            persist(worker, halt, "failing the job", async || claim.fail(&message).await).await
        }
    };
    match held {
        Some(Held::Yes) => info!(job.id = id, job.attempt = claim.attempt(), "attempt ended"),
        // A stop arrived between the last look and the write: the job is still ours, and is to be stopped.
        Some(Held::No) => drop(persist(worker, halt, "stopping the job", async || claim.stopped().await).await),
        None => warn!(job.id = id, "the end was not written; the lease will run out and another attempt follow"),
    }
}

/// Repeats a last write through an outage, however long: the claim holds by its attempt, and a write that comes too
/// late finds no row. A process that drains waits for as long as a lease may last.
pub(super) async fn persist<T>(
    worker: &Worker,
    halt: &Halt,
    what: &str,
    write: impl AsyncFn() -> Result<T>,
) -> Option<T> {
    let patience = async {
        halt.reached(Reason::Drain).await;
        tokio::time::sleep(worker.queue.lease() * 3 / 4).await;
    };
    let nothing_else = Halt::default();
    tokio::select! {
        written = retry_unavailable(&nothing_else, what, async || write().await) => match written {
            Ok(written) => Some(written),
            Err(error) => {
                error!("{what}: {}", error.log());
                None
            }
        },
        () = patience => None,
    }
}

async fn keep_reports(worker: &Worker, claim: &Claim, halt: &Halt, work_dir: &std::path::Path) -> Result<()> {
    let (layout, objects) = (Layout::of(&claim.job.spec)?, worker.app.objects_of(&claim.job.spec.account_id));
    let output = work_dir.join("output");
    let mut names = vec![DATA_REPORT.to_string(), TRAINING_METRICS.to_string(), TRAJECTORIES.to_string()];
    // What a reinforcement run leaves whose grader failed: weights that cost hours.
    let best = output.join(BEST_CHECKPOINT);
    if best.is_dir() {
        let listing = transfer::folder(&best).await?;
        names.extend(listing.files.keys().map(|name| format!("{BEST_CHECKPOINT}/{name}")));
    }
    for name in &names {
        let path = output.join(name);
        if path.is_file() {
            let keep = retry_unavailable(halt, "keeping a report", async || {
                reporter::keep(claim, &objects, &layout, (name, &path)).await
            });
            if !tokio::time::timeout(Duration::from_secs(30), keep).await.map_err(Error::unavailable)?? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Characters of a failure message: the most that clients accept.
const MAX_FAILURE: usize = 2048;

/// What the owner of a failed job is told.
pub(super) fn failure(error: &Error, job_id: &str) -> String {
    match error.kind() {
        Kind::Validation
        | Kind::NotFound
        | Kind::AccessDenied
        | Kind::Conflict
        | Kind::QuotaExceeded
        // A model that the job stands on: its owner can put its files back, or wait until it is Active.
        | Kind::Model
        | Kind::ModelNotReady => {
            error.message().chars().take(MAX_FAILURE).collect()
        }
        // An outage or a full disk that outlasted its bound; the message names it.
        Kind::Unavailable => format!("{} (job id {job_id})", error.message()),
        _ if error.is_storage_full() => format!(
            "There is no space left on the disk of the worker that ran this job. Free space in the service's data \
             folder, or use a smaller data set, then create a new job (job id {job_id})."
        ),
        _ => format!(
            "Encountered an unexpected error when processing the request, please try again. Look for job id {job_id} \
             in the log of the service for the cause."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_learns_what_can_be_mended_and_nothing_else() {
        assert_eq!(failure(&Error::validation("line 3 is wrong"), "j"), "line 3 is wrong");
        assert_eq!(failure(&Error::validation("é".repeat(1 << 20)), "j").chars().count(), 2048);
        let secret = failure(&Error::internal(anyhow::anyhow!("password")), "abc123");
        assert!(secret.contains("abc123") && !secret.contains("password"));
        for code in [28, 122] {
            let full = failure(&std::io::Error::from_raw_os_error(code).into(), "j");
            assert!(full.contains("no space left"), "{full}");
        }
        let away = failure(&Error::new(Kind::Unavailable, "Object storage is not answering"), "abc");
        assert_eq!(away, "Object storage is not answering (job id abc)");
    }
}
