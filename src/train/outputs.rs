//! Writes what a completed run leaves: the artifact with its tokenizer, the picture of the loss, and
//! the manifest over all of it.

use std::collections::BTreeMap;
use std::path::Path;

use super::checkpoint::Exact;
use super::run::Run;
use super::settings::Settings;
use super::sources::Sources;
use super::{Objective, Summary, TuningMethod, start};
use crate::artifacts::{
    BaseFacts, Curve, DataFacts, Results, TrainingManifest, copy_tokenizer, loss_chart, write_adapter,
};
use crate::data::Corpus;
use crate::data::corpus::sha256_of;
use crate::error::Result;

/// Writes everything below the plan's output folder; the metrics lie there already.
pub(super) fn write(run: &Run<'_>, sources: &Sources) -> Result<Summary> {
    let (plan, state) = (run.plan, &run.state);
    let output = plan.output();
    let weights_of_step = run.take_best()?;
    let artifact = match &sources.method {
        TuningMethod::Full => {
            let dir = output.join("model");
            run.decoder.save(&dir, plan.settings.weight_precision)?;
            dir
        }
        method => {
            let dir = output.join("adapter");
            write_adapter(&dir, &plan.base_id, run.decoder.config(), method, &run.method.artifact()?)?;
            dir
        }
    };
    if plan.settings.save_optimizer_state {
        run.save_optimizer(&output.join(start::OPTIMIZER_STATE))?;
    }
    copy_tokenizer(&sources.tokenizer, &artifact)?;

    let training = run.training_metrics.points()?;
    let validation = run.validation_metrics.as_ref().map(|metrics| metrics.points()).transpose()?.unwrap_or_default();
    let chart = loss_chart(&[
        Curve { name: "training", color: "#7aa6da", points: &training },
        Curve { name: "validation", color: "#d9480f", points: &validation },
    ]);
    std::fs::write(output.join("loss.svg"), chart)?;

    let validation_losses: Vec<f64> = state.validation_losses.iter().map(|Exact(loss)| *loss).collect();
    let Exact(training_loss) = state.training_loss;
    let manifest = TrainingManifest {
        base_model: BaseFacts { id: plan.base_id.clone(), sha256: sources.base_sha256.clone() },
        customization_type: match plan.objective {
            Objective::FineTuning | Objective::Preferences => "FINE_TUNING".into(),
            Objective::ContinuedPreTraining => "CONTINUED_PRE_TRAINING".into(),
        },
        training_data: facts(&sources.training),
        validation_data: sources.validation.iter().flat_map(facts).collect(),
        seed: run.resolved.seed,
        hyper_parameters: Settings { method: sources.method.clone(), ..plan.settings.clone() }.filled(&run.resolved),
        results: Results {
            steps: state.step,
            tokens: state.tokens,
            training_loss,
            validation_losses: validation_losses.clone(),
            stopped_early: state.stopped_early,
            weights_of_step,
        },
        artifact: digests(&artifact)?,
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
    })
}

fn facts(corpus: &Corpus) -> Vec<DataFacts> {
    let sources = &corpus.manifest().sources;
    let fact = |source: &crate::data::corpus::SourceFacts| DataFacts {
        name: source.name.clone(),
        sha256: source.sha256.clone(),
        records: source.records,
    };
    sources.iter().map(fact).collect()
}

/// SHA-256 of every file in `dir`, by name.
pub(super) fn digests(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut digests = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        digests.insert(entry.file_name().to_string_lossy().into_owned(), sha256_of(&entry.path())?);
    }
    Ok(digests)
}
