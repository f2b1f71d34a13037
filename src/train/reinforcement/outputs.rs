//! What a reinforcement run leaves is what every run leaves; one that failed keeps the best weights that it had.

use super::super::Summary;
use super::super::outputs::{self, Learned, facts};
use super::BEST_CHECKPOINT;
use super::run::Run;
use crate::error::Result;

/// Writes everything below the plan's output folder; the metrics lie there already.
pub(super) fn write(run: &Run<'_>) -> Result<Summary> {
    outputs::write(&run.learner, &learned(run))
}

/// What a run that failed leaves: the best weights so far, or the last ones where nothing was evaluated. Nothing
/// before the first step.
pub(super) fn keep_best(run: &Run<'_>) -> Result<()> {
    if run.learner.state.step > 0 {
        run.learner.take_best()?;
        outputs::artifact(&run.learner, &learned(run), &run.learner.plan.output().join(BEST_CHECKPOINT))?;
    }
    Ok(())
}

fn learned<'a>(run: &'a Run<'_>) -> Learned<'a> {
    let sources = run.sources;
    Learned {
        customization_type: "REINFORCEMENT_FINE_TUNING",
        method: &sources.method,
        base_sha256: &sources.base_sha256,
        tokenizer: &sources.dir,
        training_data: vec![facts(&sources.training.source)],
        validation_data: sources.validation.iter().map(|prompts| facts(&prompts.source)).collect(),
    }
}
