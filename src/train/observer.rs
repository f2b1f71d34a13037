//! What a run says while it runs, how it is asked to stop, and what it says at the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::StepParts;
use crate::artifacts::Merged;
use crate::error::Result;

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading and checking the data.
    Preparing,
    /// Reading the base model.
    Loading,
    /// Taking optimizer steps.
    Training,
    /// Writing the outputs.
    Saving,
}

/// One optimizer step, after it was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct StepMetrics {
    /// From 0.
    pub step: u64,
    /// How many steps the run takes if it is not stopped early.
    pub steps: u64,
    /// From 0.
    pub epoch: u64,
    /// Mean over the batch's learned tokens, or its pairs, in nats. Not finite when the step was skipped.
    pub loss: f64,
    /// Means of what the objective measures beside the loss, by name.
    pub extra: Vec<(&'static str, f64)>,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Norm of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// Tokens that went through the model in this step, learned or not.
    pub tokens: u64,
    /// Tokens among them that were learned.
    pub labelled: u64,
    /// Wall time of the step.
    pub seconds: f64,
    /// Where that time went.
    pub parts: StepParts,
}

/// One pass over the validation data.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidationMetrics {
    /// The last step taken before, from 0.
    pub step: u64,
    /// The epoch of that step, from 0.
    pub epoch: u64,
    /// Mean over all learned tokens, or pairs, of all validation files, in nats.
    pub loss: f64,
    /// Means over the same of what the objective measures beside the loss, by name.
    pub extra: Vec<(&'static str, f64)>,
    /// The same for each validation file, in the order of [`super::Plan::validation`].
    pub losses: Vec<f64>,
}

/// Hears what a run does. Every method but [`Observer::checkpoint`] may be ignored.
pub trait Observer {
    /// A phase begins.
    fn phase(&mut self, _phase: Phase) {}

    /// The present phase has done `done` of `total`: records while preparing, steps while training.
    fn progress(&mut self, _done: u64, _total: u64) {}

    /// A step was taken; its line stands in the metrics file already.
    fn step(&mut self, _metrics: &StepMetrics) {}

    /// The validation data was passed over; its line stands in the metrics file already.
    fn validation(&mut self, _metrics: &ValidationMetrics) {}

    /// A whole checkpoint lies in `dir`, after `step` steps. It stays there until two newer ones
    /// exist. An error ends the run.
    ///
    /// # Errors
    /// When the checkpoint could not be kept and the run must not go on.
    fn checkpoint(&mut self, _dir: &Path, _step: u64) -> Result<()> {
        Ok(())
    }

    /// The run goes on from the checkpoint after `step` steps.
    fn resumed(&mut self, _step: u64) {}

    /// A checkpoint lies there and is not used; `message` names it and says why.
    fn checkpoint_refused(&mut self, message: &str) {
        self.warn(message);
    }

    /// Something the owner of the run should read.
    fn warn(&mut self, _message: &str) {}
}

/// Hears nothing: for runs that nobody watches.
impl Observer for () {}

/// Asks a run to stop. It looks before every micro-batch, writes a checkpoint and returns
/// [`Outcome::Interrupted`]. Clones are the same flag; once raised it stays raised.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks the run to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the run was asked to stop.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// How a run ended without an error.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It went through; the outputs lie in [`Summary::output`].
    Completed(Summary),
    /// It was asked to stop; the same plan run again goes on from the newest checkpoint.
    Interrupted,
}

/// What a completed run has to show.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Optimizer steps taken, over all attempts.
    pub steps: u64,
    /// Tokens that went through the model in training, over all attempts.
    pub tokens: u64,
    /// The last step's loss.
    pub training_loss: f64,
    /// The last validation loss of each validation file (or of the held-out part of the training
    /// data), in order; empty when there was nothing to validate on.
    pub validation_losses: Vec<f64>,
    /// Whether the validation loss ended the run before its last step.
    pub stopped_early: bool,
    /// The folder with everything the run wrote.
    pub output: PathBuf,
    /// The folder inside it with the adapter (`adapter/`) or the whole model (`model/`).
    pub artifact: PathBuf,
    /// What merging it into its base came to, where that was asked for; it lies in [`MERGED`](super::MERGED).
    pub merged: Option<Box<Merged>>,
    /// Why that was asked for and failed, for the log; all else is whole.
    pub merge_failure: Option<String>,
}
