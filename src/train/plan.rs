//! Everything a run depends on. The same plan gives the same bits, however often it is interrupted.

use std::path::PathBuf;

use super::{Memory, Settings, TrainingDevice, TrainingObjective};
use crate::clock::Clock;
use crate::data::Objective;
use crate::error::{Error, Result};

/// Where the weights come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A Hugging Face model directory.
    Directory(PathBuf),
    /// Random weights, to train a model from nothing.
    Random {
        /// The `config.json` that gives the shape.
        config: PathBuf,
        /// The folder with `tokenizer.json` and what belongs to it.
        tokenizer: PathBuf,
        /// Seed of the initial weights.
        seed: u64,
    },
}

/// One training run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The model to begin with.
    pub base: Base,
    /// The adapter that training goes on from, as a folder in the form of its reference library.
    pub start: Option<PathBuf>,
    /// The moments of the run that left it, if it kept them.
    pub optimizer_state: Option<PathBuf>,
    /// Where bases that were quantised before are kept, for other runs.
    pub quantized: Option<PathBuf>,
    /// What adapter and manifest call it.
    pub base_id: String,
    /// Training records, JSON Lines.
    pub training: PathBuf,
    /// Validation records, one file per validator; may be empty.
    pub validation: Vec<PathBuf>,
    /// The model whose answers the training records hold, as the job's owner named it, when they were distilled from one.
    pub teacher: Option<String>,
    /// What the job does with its data; of fine-tuning, [`Settings::objective`] says more.
    pub objective: Objective,
    /// The hyperparameters.
    pub settings: Settings,
    /// Used when the hyperparameters name no seed; must be the same on every attempt of a job.
    pub seed: u64,
    /// What the run computes on: one device for every slot. Slots share every batch, each with the model and an
    /// optimizer of its own; one is a run as usual.
    pub devices: Vec<TrainingDevice>,
    /// Folder of this run alone: `checkpoints/`, `output/`, prepared data.
    pub work_dir: PathBuf,
    /// The memory that the run may take.
    pub memory: Memory,
    /// What durations are measured with.
    pub clock: Clock,
}

impl Plan {
    /// Where whole checkpoints lie, one folder `step-XXXXXXXX` each.
    pub fn checkpoints(&self) -> PathBuf {
        self.work_dir.join("checkpoints")
    }

    /// Where the outputs lie.
    pub fn output(&self) -> PathBuf {
        self.work_dir.join("output")
    }

    /// What records the data files hold.
    ///
    /// # Errors
    /// `Validation` when the objective does not go with the customization type.
    pub(super) fn reads(&self) -> Result<Objective> {
        match (self.objective, &self.settings.objective) {
            (objective, TrainingObjective::Sft) => Ok(objective),
            (_, objective @ TrainingObjective::Reinforcement(_)) => Err(objective.needs_a_grader()),
            (Objective::FineTuning | Objective::Preferences, _) => Ok(Objective::Preferences),
            (Objective::ContinuedPreTraining, other) => Err(Error::validation(format!(
                "trainingObjective {} learns from preferences: set customizationType to FINE_TUNING",
                other.name()
            ))),
        }
    }

    /// The first slot's device; all are of one kind.
    pub fn device(&self) -> TrainingDevice {
        self.devices.first().copied().unwrap_or_default()
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.devices.len().max(1)
    }

    /// The seed of this run.
    pub fn seed(&self) -> u64 {
        self.settings.seed.unwrap_or(self.seed)
    }
}
