//! What the training thread tells the rest. The trainer calls from its own thread; progress is left
//! where the reporter picks the newest up, and a checkpoint is brought to S3 before training goes on:
//! an outage of S3 stops training when a checkpoint is due, and not before.

use std::path::Path;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{info, warn};

use super::checkpoints::Checkpoints;
use super::halt::Reason;
use super::retry::patiently;
use crate::error::Result;
use crate::jobs::job::Stage;
use crate::jobs::{Claim, Held};
use crate::store::jobs::Progress;
use crate::train::{self, Phase, StepMetrics, ValidationMetrics};

/// What the reporter should write down.
#[derive(Debug, Clone, Default)]
pub(crate) struct News {
    pub(crate) progress: Progress,
    pub(crate) stage: Option<Stage>,
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
        let progress = self.news.borrow().progress.clone();
        let kept = self.runtime.block_on(async {
            self.checkpoints.upload(dir, step).await?;
            // Told to the database at once: it clears the strikes of attempts that got nowhere.
            patiently(&self.checkpoints.halt, "recording a checkpoint", async || {
                self.claim.progress(&progress, true).await
            })
            .await
        });
        match kept {
            Ok(Held::Yes) => info!(job.id = self.claim.job.spec.id, checkpoint.step = step, "checkpoint kept"),
            Ok(Held::No) => self.checkpoints.halt.raise(Reason::Lost),
            // Told to end while S3 is away: the next attempt goes on from the checkpoint before.
            Err(error) if self.checkpoints.halt.reason().is_some() => {
                warn!(job.id = self.claim.job.spec.id, checkpoint.step = step, "checkpoint not kept: {}", error.log());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn warn(&mut self, message: &str) {
        warn!(job.id = self.claim.job.spec.id, "{message}");
    }
}
