//! What the training thread tells the rest. The trainer calls from its own thread; progress is left
//! where the reporter picks the newest up, and a checkpoint is brought to S3 before training goes on:
//! an outage of S3 stops training when a checkpoint is due, and not before. An outage of the database stops
//! nothing: that a checkpoint was kept is told to it when it is there again.

use std::path::Path;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{info, warn};

use super::checkpoints::Checkpoints;
use super::halt::Reason;
use crate::error::{Error, Result};
use crate::jobs::job::Stage;
use crate::jobs::{Claim, Held};
use crate::store::jobs::Progress;
use crate::train::{self, Phase, StepMetrics, ValidationMetrics};

/// How long training waits for the database to learn of a checkpoint; then the reporter tells it.
const RECORDING: Duration = Duration::from_secs(3);

/// What the reporter should write down.
#[derive(Debug, Clone, Default)]
pub(crate) struct News {
    pub(crate) progress: Progress,
    pub(crate) stage: Option<Stage>,
    /// Checkpoints that were kept, and of how many of them the database knows.
    pub(crate) kept: u64,
    pub(crate) recorded: u64,
    /// Events of the job's log that are still to be written: kind and detail.
    pub(crate) events: Vec<(&'static str, String)>,
}

/// The trainer's listener.
pub(crate) struct Observer {
    pub(crate) claim: Claim,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) news: watch::Sender<News>,
    pub(crate) runtime: Handle,
}

impl train::Observer for Observer {
    fn phase(&mut self, phase: Phase) {
        let (stage, name) = match phase {
            Phase::Preparing => (Stage::Validation, "checking and tokenizing the data"),
            Phase::Loading => (Stage::DataProcessing, "loading the base model"),
            Phase::Training => (Stage::Training, "training"),
            Phase::Saving => (Stage::Training, "saving"),
        };
        self.claim.reach(stage);
        self.news.send_modify(|news| {
            news.stage = Some(stage);
            news.progress.phase = name.into();
        });
    }

    fn step(&mut self, metrics: &StepMetrics) {
        self.news.send_modify(|news| {
            news.progress.step = metrics.step + 1;
            news.progress.total_steps = metrics.steps;
            // JSON knows no infinity: a step that was skipped shows no loss.
            news.progress.training_loss = Some(metrics.loss).filter(|loss| loss.is_finite());
            let finite = metrics.extra.iter().filter(|(_, value)| value.is_finite());
            news.progress.measures = finite.map(|(name, value)| ((*name).to_string(), *value)).collect();
            news.progress.tokens_per_second = (metrics.seconds > 0.0).then(|| metrics.tokens as f64 / metrics.seconds);
        });
    }

    fn validation(&mut self, metrics: &ValidationMetrics) {
        if !metrics.extra.is_empty() {
            let measures = metrics.extra.iter().map(|(name, value)| format!("{name} {value:.4}"));
            let measures = measures.collect::<Vec<_>>().join(", ");
            let (step, loss) = (metrics.step + 1, metrics.loss);
            info!(job.id = self.claim.job.spec.id, step, validation.loss = loss, "validation: {measures}");
        }
        self.news.send_modify(|news| news.progress.validation_loss = Some(metrics.loss).filter(|l| l.is_finite()));
    }

    fn checkpoint(&mut self, dir: &Path, step: u64) -> Result<()> {
        // A job that is being stopped is never taken up again, and one that is lost is another's.
        if self.checkpoints.halt.reason() >= Some(Reason::Stop) {
            return Ok(());
        }
        match self.runtime.block_on(self.checkpoints.upload(dir, step)) {
            Ok(()) => info!(job.id = self.claim.job.spec.id, checkpoint.step = step, "checkpoint kept"),
            // Told to end while S3 is away: the next attempt goes on from the checkpoint before.
            Err(error) if self.checkpoints.halt.reason().is_some() => {
                warn!(job.id = self.claim.job.spec.id, checkpoint.step = step, "checkpoint not kept: {}", error.log());
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.news.send_modify(|news| news.kept += 1);
        // Told to the database at once if it is there: the loss of this attempt is no strike any more.
        let (progress, kept) = (self.news.borrow().progress.clone(), self.news.borrow().kept);
        let recorded = self.runtime.block_on(async {
            tokio::time::timeout(RECORDING, self.claim.progress(&progress, true)).await.map_err(Error::unavailable)?
        });
        match recorded {
            Ok(Held::Yes) => self.news.send_modify(|news| news.recorded = kept),
            Ok(Held::No) => self.checkpoints.halt.raise(Reason::Lost),
            Err(error) => {
                warn!(job.id = self.claim.job.spec.id, checkpoint.step = step, "not recorded yet: {}", error.log());
            }
        }
        Ok(())
    }

    fn resumed(&mut self, step: u64) {
        self.news.send_modify(|news| news.events.push(("Resumed", format!("step {step}"))));
    }

    fn checkpoint_refused(&mut self, message: &str) {
        warn!(job.id = self.claim.job.spec.id, "{message}");
        self.news.send_modify(|news| news.events.push(("CheckpointRefused", message.to_string())));
    }

    fn warn(&mut self, message: &str) {
        warn!(job.id = self.claim.job.spec.id, "{message}");
    }
}
