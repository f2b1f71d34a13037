//! What is learned: a [`Criterion`] turns the states behind the last layer into a loss and its gradient, and
//! everything below (layers, micro-batches, optimizer, checkpoints) is the same for all. [`sft`] is the cross
//! entropy of labelled tokens. Objectives over the log-probabilities of tokens look at the head twice: once for the
//! log-probabilities, and again with what each of them counts. So does none of them hold a tensor of tokens times
//! vocabulary. Those of a scalar per position (rewards, values) have a head of one row instead.

mod dpo;
#[cfg(test)]
pub(super) mod golden;
mod grpo;
mod ppo;
mod reward;
mod sft;
mod top;

pub use dpo::{Dpo, DpoConfig, DpoLoss};
pub use grpo::{AdvantageScale, Aggregation, Grpo, GrpoConfig, Sampled, TokenLoss, advantages, deviation, mean};
pub use ppo::{Episode, Experience, Ppo, PpoConfig, explained_variance, states};
pub use reward::Reward;
pub use sft::Sft;
pub use top::{Top, TopLoss};

use std::sync::Arc;

use super::Reinforcement;
use super::reference::Reference;
use crate::error::{Error, Result};

/// What a fine-tuning job learns from its records, with the options of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TrainingObjective {
    /// The completions, or the assistant's turns (supervised fine-tuning).
    Sft,
    /// To prefer one of two answers (direct preference optimization).
    Dpo(DpoConfig),
    /// To tell by a number which of two answers is better (a reward model).
    Reward,
    /// What a grader rewards (reinforcement fine-tuning); of customizationType REINFORCEMENT_FINE_TUNING.
    Reinforcement(Reinforcement),
}

impl TrainingObjective {
    /// The names in hyperparameters, the default first.
    pub const NAMES: [&'static str; 5] = ["sft", "dpo", "reward", "grpo", "ppo"];

    /// The name in hyperparameters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo(_) => "dpo",
            Self::Reward => "reward",
            Self::Reinforcement(options) => options.algorithm.name(),
        }
    }

    /// What a job of another customizationType is told that asks for an objective of reinforcement.
    pub(crate) fn needs_a_grader(&self) -> Error {
        Error::validation(format!(
            "trainingObjective {} learns from a grader: set customizationType to REINFORCEMENT_FINE_TUNING",
            self.name()
        ))
    }

    /// Its default learning rate as a part of that of supervised fine-tuning with the same method: what trl's
    /// defaults come to.
    pub(super) fn rate(&self) -> f64 {
        match self {
            Self::Sft => 1.0,
            Self::Dpo(_) | Self::Reinforcement(_) => 0.05,
            Self::Reward => 0.5,
        }
    }
}

/// A training objective at work. What it knows beside the micro-batch (a reference's log-probabilities, advantages, old
/// values) it holds itself, by the numbers of the records.
pub trait Criterion: Send + Sync {
    /// What it measures beside the loss, by the names that metrics files and events show, in the order of
    /// [`LossSum::metrics`](super::LossSum::metrics).
    fn metrics(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether the loss is the mean -ln p of tokens, whose exponential is a perplexity.
    fn has_perplexity(&self) -> bool {
        false
    }

    /// The loss of a micro-batch, and its gradients where [`Top::learns`].
    ///
    /// # Errors
    /// When the records are not what the objective learns from, a label lies outside the vocabulary, or the
    /// device fails.
    fn loss(&self, top: &Top<'_>) -> Result<TopLoss>;
}

/// The objective of a run: of its training data, and of every validation file, each with what it knows of that
/// file's records.
pub(super) struct Criteria {
    pub(super) training: Box<dyn Criterion>,
    pub(super) validation: Vec<Box<dyn Criterion>>,
    /// The reference's file, for checkpoints.
    pub(super) reference: Option<Vec<u8>>,
}

impl Criteria {
    /// Cross entropy of labelled tokens everywhere.
    pub(super) fn sft(validation_files: usize) -> Self {
        let validation = (0..validation_files).map(|_| Box::new(Sft) as Box<dyn Criterion>).collect();
        Self { training: Box::new(Sft), validation, reference: None }
    }

    /// A reward model.
    pub(super) fn reward(validation_files: usize) -> Self {
        let validation = (0..validation_files).map(|_| Box::new(Reward) as Box<dyn Criterion>).collect();
        Self { training: Box::new(Reward), validation, reference: None }
    }

    /// Preferences, against the reference of the run `run`.
    pub(super) fn dpo(config: DpoConfig, reference: &Reference, run: &str) -> Self {
        let of = |known: &Arc<[f64]>| Box::new(Dpo::new(config, known.clone())) as Box<dyn Criterion>;
        Self {
            training: of(&reference.training),
            validation: reference.validation.iter().map(of).collect(),
            reference: Some(reference.bytes(run)),
        }
    }
}

/// What a criterion says that meets an answer of which less is known than it needs.
fn unknown() -> Error {
    Error::internal(anyhow::anyhow!("a sampled answer has more tokens than are known of it"))
}
