//! Reinforcement fine-tuning, read top to bottom: a batch of prompts, several sampled answers to each, a grade for
//! every answer, and an update towards the better ones. Sampling happens in this process over the same weights.
//! What is drawn is a function of (seed, step, prompt, sample), and all state is in the checkpoint: on one machine, a
//! run that was interrupted anywhere ends with the same bits as one that was not, if its grader says the same again.

mod batch;
mod grpo;
mod outputs;
mod ppo;
mod reference;
mod rollout;
mod run;
mod seen;
mod settings;
mod sources;
mod trajectories;
mod update;

pub use settings::{Algorithm, Effort, Reinforcement, reinforcement_hyper_parameters};

use self::run::Run;
use self::sources::Sources;
use super::{Grader, Observer, Outcome, Phase, Plan, StopFlag, checkpoint, learner, recipe, start};
use crate::error::{Error, Result};

/// The folder among the outputs of a failed run with the best weights that it had.
pub const BEST_CHECKPOINT: &str = "best_checkpoint";

/// Runs `plan`, whose training objective is reinforcement, with what `grader` says of answers; goes on from the
/// newest whole checkpoint in the plan's work folder.
///
/// # Errors
/// As [`super::run()`]; and when more answers of a step than the plan allows could not be graded. Then the best
/// weights so far lie in [`BEST_CHECKPOINT`] below the outputs.
pub fn reinforce(plan: &Plan, grader: &dyn Grader, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Outcome> {
    if plan.slots() > 1 {
        return Err(Error::validation("reinforcement fine-tuning runs on one slot: leave slots out"));
    }
    let device = plan.device().open()?;
    // What an earlier attempt wrote is in its checkpoint; half an output must not survive.
    if plan.output().exists() {
        std::fs::remove_dir_all(plan.output())?;
    }
    std::fs::create_dir_all(plan.output())?;
    std::fs::create_dir_all(plan.checkpoints())?;

    // Data: every line is checked before the model is touched.
    observer.phase(Phase::Preparing);
    let sources = match Sources::read(plan, observer, stop) {
        // Whatever went wrong, the caller wants to stop and will come back.
        Err(_) if stop.is_raised() => return Ok(Outcome::Interrupted),
        sources => sources?,
    };
    let found = checkpoint::newest(&plan.checkpoints(), &sources.run, &mut |text| observer.checkpoint_refused(text))?;
    let resolved = sources.resolve(plan, found.as_ref())?;

    // Base model, tuning method, and what the policy is held to.
    observer.phase(Phase::Loading);
    let decoder = recipe::load(plan, (&sources.method, &sources.config), &device)?;
    let method = start::method_on(plan, (&sources.method, None), &decoder)?;
    let mut run = Run::resume(plan, grader, &sources, &decoder, method, resolved, found.as_ref())?;
    if let Some(found) = found {
        observer.resumed(found.state.step);
    }

    // Train.
    observer.phase(Phase::Training);
    match learner::train(&mut run, observer, stop) {
        Ok(true) => {}
        Ok(false) => return Ok(Outcome::Interrupted),
        Err(error) => {
            outputs::keep_best(&run)?;
            return Err(error);
        }
    }

    // Write what was learned.
    observer.phase(Phase::Saving);
    Ok(Outcome::Completed(outputs::write(&run)?))
}

#[cfg(test)]
mod tests;
