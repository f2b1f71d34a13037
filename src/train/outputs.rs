//! Writes what a completed run leaves: the artifact with its tokenizer, the picture of the loss, and
//! the manifest over all of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::checkpoint::Exact;
use super::learner::Learner;
use super::settings::Settings;
use super::{Base, Summary, TuningMethod, start};
use crate::artifacts::{
    BaseFacts, Curve, DataFacts, MergeOptions, Merged, MergedFacts, MergedType, Results, TrainingManifest,
    WEIGHT_FILES, copy_tokenizer, loss_chart, merge, write_adapter, write_adapter_config,
};
use crate::data::corpus::{SourceFacts, sha256_of};
use crate::durable;
use crate::error::{Error, Kind, Result};
use crate::models::{Precision, save_tensors};

/// The folder among a run's outputs that holds the merged model.
pub const MERGED: &str = "merged";

/// What a run learned from.
pub(super) struct Learned<'a> {
    pub(super) customization_type: &'static str,
    /// What was trained.
    pub(super) method: &'a TuningMethod,
    /// SHA-256 over the base's configuration and weights.
    pub(super) base_sha256: &'a str,
    /// The folder with the tokenizer.
    pub(super) tokenizer: &'a Path,
    pub(super) training_data: Vec<DataFacts>,
    pub(super) validation_data: Vec<DataFacts>,
}

/// Writes everything below the plan's output folder; the metrics lie there already.
pub(super) fn write(learner: &Learner<'_>, learned: &Learned<'_>) -> Result<Summary> {
    let (plan, state) = (learner.plan, &learner.state);
    let output = plan.output();
    let weights_of_step = learner.take_best()?;
    let artifact = artifact(learner, learned, &output)?;
    // What was trained is not lost with it.
    let (merged, merge_failure) = match merged(learner, &artifact, &output) {
        Ok(merged) => (merged, None),
        Err(error) => (None, Some(error)),
    };
    if plan.settings.save_optimizer_state {
        learner.save_optimizer(&output.join(start::OPTIMIZER_STATE))?;
    }

    let training = learner.training_metrics.points()?;
    let validation =
        learner.validation_metrics.as_ref().map(|metrics| metrics.points()).transpose()?.unwrap_or_default();
    let chart = loss_chart(&[
        Curve { name: "training", color: "#7aa6da", points: &training },
        Curve { name: "validation", color: "#d9480f", points: &validation },
    ]);
    durable::write(&output.join("loss.svg"), chart)?;

    let validation_losses: Vec<f64> = state.validation_losses.iter().map(|Exact(loss)| *loss).collect();
    let Exact(training_loss) = state.training_loss;
    let settings = Settings { method: learned.method.clone(), ..plan.settings.clone() };
    let manifest = TrainingManifest {
        base_model: BaseFacts { id: plan.base_id.clone(), sha256: learned.base_sha256.to_string() },
        customization_type: learned.customization_type.into(),
        teacher_model: plan.teacher.clone(),
        training_data: learned.training_data.clone(),
        validation_data: learned.validation_data.clone(),
        seed: learner.resolved.seed,
        hyper_parameters: settings.filled(&learner.resolved),
        results: Results {
            steps: state.step,
            tokens: state.tokens,
            training_loss,
            validation_losses: validation_losses.clone(),
            stopped_early: state.stopped_early,
            weights_of_step,
        },
        artifact: digests(&artifact)?,
        merged: match &merged {
            Some(merged) => Some(MergedFacts { merged: merged.clone(), sha256: digests(&output.join(MERGED))? }),
            None => None,
        },
        merge_failure: merge_failure.as_ref().map(reason),
        versions: BTreeMap::from([("tunesmith".into(), env!("CARGO_PKG_VERSION").into())]),
    };
    manifest.write(&output)?;
    Ok(Summary {
        steps: state.step,
        tokens: state.tokens,
        training_loss,
        validation_losses,
        stopped_early: state.stopped_early,
        output,
        artifact,
        merged: merged.map(Box::new),
        merge_failure: merge_failure.map(|error| error.log()),
    })
}

/// Writes the weights as they are, with their tokenizer, below `folder`; where.
pub(super) fn artifact(learner: &Learner<'_>, learned: &Learned<'_>, folder: &Path) -> Result<PathBuf> {
    let plan = learner.plan;
    let artifact = match learned.method {
        TuningMethod::Full => {
            let dir = folder.join("model");
            learner.decoder.save(&dir, plan.settings.weight_precision)?;
            dir
        }
        method => {
            let dir = folder.join("adapter");
            let tensors = learner.method.artifact()?;
            write_adapter(&dir, &plan.base_id, learner.decoder.config(), method, &tensors)?;
            dir
        }
    };
    copy_tokenizer(learned.tokenizer, &artifact)?;
    Ok(artifact)
}

/// Writes into a checkpoint's folder what makes its weights answer: the configuration that belongs to them, and the
/// weights once more where an artifact has other ones than those that train.
pub(super) fn servable(learner: &Learner<'_>, dir: &Path) -> Result<()> {
    let (plan, base) = (learner.plan, learner.decoder.config());
    match learner.tuned()? {
        TuningMethod::Full => learner.decoder.save_config(dir, Precision::F32),
        method => {
            let (weights, artifact) = (learner.weights(), learner.method.artifact()?);
            let names = |tensors: &[(String, Tensor)]| tensors.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
            if names(&weights) != names(&artifact) {
                save_tensors(&dir.join(WEIGHT_FILES[0]), &artifact, Precision::F32)?;
            }
            write_adapter_config(dir, &plan.base_id, base, method, learner.method.score().is_some())
        }
    }
}

/// Merges the artifact into its base, if that is asked for.
fn merged(learner: &Learner<'_>, artifact: &Path, output: &Path) -> Result<Option<Merged>> {
    let plan = learner.plan;
    match &plan.base {
        Base::Directory(base) if plan.settings.merged_weights => {
            let options = MergeOptions { dtype: Some(MergedType::sixteen_bits(base)?), ..MergeOptions::default() };
            merge(base, artifact, &output.join(MERGED), &options).map(Some)
        }
        _ => Ok(None),
    }
}

/// What the owner of a model is told that could not be merged.
fn reason(error: &Error) -> String {
    match error.kind() {
        Kind::Internal | Kind::Unavailable => {
            "The merged model could not be written; the log of the worker says why. The \
            adapter is whole: `tunesmith models merge` merges it later"
                .into()
        }
        _ => error.message().to_string(),
    }
}

/// A data file as the manifest names it.
pub(super) fn facts(source: &SourceFacts) -> DataFacts {
    DataFacts { name: source.name.clone(), sha256: source.sha256.clone(), records: source.records }
}

/// SHA-256 of every file in `dir`, by name.
fn digests(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut digests = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        digests.insert(entry.file_name().to_string_lossy().into_owned(), sha256_of(&entry.path())?);
    }
    Ok(digests)
}
