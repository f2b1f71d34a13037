//! Writes what a reinforcement run leaves: the artifact with its tokenizer, the picture of the reward, and the
//! manifest over all of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::checkpoint::Exact;
use super::super::outputs::digests;
use super::super::{Settings, Summary, TuningMethod};
use super::BEST_CHECKPOINT;
use super::run::Run;
use crate::artifacts::{
    BaseFacts, Curve, DataFacts, Results, TrainingManifest, copy_tokenizer, loss_chart, write_adapter,
};
use crate::data::Prompts;
use crate::error::Result;

/// Writes everything below the plan's output folder; the metrics lie there already.
pub(super) fn write(run: &Run<'_>) -> Result<Summary> {
    let (plan, state, sources) = (run.plan, &run.state, run.sources);
    let output = plan.output();
    let weights_of_step = run.take_best()?;
    let artifact = artifact(run, &output)?;

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
        customization_type: "REINFORCEMENT_FINE_TUNING".into(),
        training_data: vec![facts(&sources.training)],
        validation_data: sources.validation.iter().map(facts).collect(),
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

/// What a run that failed leaves: the best weights so far, or the last ones where nothing was evaluated. Nothing
/// before the first step.
pub(super) fn keep_best(run: &Run<'_>) -> Result<()> {
    if run.state.step > 0 {
        run.take_best()?;
        artifact(run, &run.plan.output().join(BEST_CHECKPOINT))?;
    }
    Ok(())
}

/// Writes the weights below `folder`; where.
fn artifact(run: &Run<'_>, folder: &Path) -> Result<PathBuf> {
    let (plan, sources) = (run.plan, run.sources);
    let artifact = match &sources.method {
        TuningMethod::Full => {
            let dir = folder.join("model");
            run.decoder.save(&dir, plan.settings.weight_precision)?;
            dir
        }
        method => {
            let dir = folder.join("adapter");
            write_adapter(&dir, &plan.base_id, run.decoder.config(), method, &run.method.artifact()?)?;
            dir
        }
    };
    copy_tokenizer(&sources.dir, &artifact)?;
    Ok(artifact)
}

fn facts(prompts: &Prompts) -> DataFacts {
    let source = &prompts.source;
    DataFacts { name: source.name.clone(), sha256: source.sha256.clone(), records: source.records }
}
