//! `training_manifest.json`: everything a run depended on and what came of it, so that a model can be
//! traced to its data, and the run repeated. It holds no times and no paths: the same run gives the
//! same bytes.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::merge::Merged;
use crate::durable;
use crate::error::Result;

/// The file.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrainingManifest {
    /// What was trained from.
    pub base_model: BaseFacts,
    /// `FINE_TUNING`, `CONTINUED_PRE_TRAINING`, `REINFORCEMENT_FINE_TUNING` or `DISTILLATION`.
    pub customization_type: String,
    /// Whose answers were learned, as the job named it; only with `DISTILLATION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_model: Option<String>,
    /// The training files.
    pub training_data: Vec<DataFacts>,
    /// The validation files.
    pub validation_data: Vec<DataFacts>,
    /// Seed of everything drawn.
    pub seed: u64,
    /// All hyperparameters, defaults filled in.
    pub hyper_parameters: BTreeMap<String, String>,
    /// What came of it.
    pub results: Results,
    /// SHA-256 of each file of the artifact, by name.
    pub artifact: BTreeMap<String, String>,
    /// The artifact merged into its base, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merged: Option<MergedFacts>,
    /// Why there is none, where it was asked for and failed: what was trained is kept all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge_failure: Option<String>,
    /// Which releases of what made it.
    pub versions: BTreeMap<String, String>,
}

/// The base model.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BaseFacts {
    /// Its id.
    pub id: String,
    /// SHA-256 over its configuration and weights; of the configuration and seed when they were random.
    pub sha256: String,
}

/// One data file.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DataFacts {
    /// As its owner calls it.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Lines with a record.
    pub records: u64,
}

/// A merged model.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MergedFacts {
    /// What merging came to.
    #[serde(flatten)]
    pub merged: Merged,
    /// SHA-256 of each of its files, by name.
    pub sha256: BTreeMap<String, String>,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// Optimizer steps taken.
    pub steps: u64,
    /// Tokens that went through the model in training.
    pub tokens: u64,
    /// The last step's loss, in nats per token.
    pub training_loss: f64,
    /// The last validation loss of each validation file.
    pub validation_losses: Vec<f64>,
    /// Whether the validation loss ended the run.
    pub stopped_early: bool,
    /// After how many steps the weights were taken.
    pub weights_of_step: u64,
}

impl TrainingManifest {
    /// Writes the file into `dir`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        durable::write(&dir.join("training_manifest.json"), text)?;
        Ok(())
    }
}
