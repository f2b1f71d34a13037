//! The run, from data to artifact, read top to bottom. Randomness is a function of (seed, stream,
//! step), results do not depend on the number of threads, and all state is in the checkpoint: on one
//! machine, a run that was interrupted anywhere ends with the same bits as one that was not.

use super::run::Run;
use super::settings::Resolved;
use super::sources::Sources;
use super::{Base, Observer, Outcome, Phase, Plan, StopFlag, checkpoint, outputs, side_by_side, start};
use crate::data::{BatchSettings, Batches, Cursor, Objective};
use crate::error::Result;
use crate::models::{Decoder, Form, load_nf4};

/// Runs `plan`, going on from the newest whole checkpoint in its work folder.
///
/// # Errors
/// When the data or the base model cannot be used (the message says why), when the run diverged, or
/// when the observer could not keep a checkpoint.
pub fn run(plan: &Plan, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Outcome> {
    let device = plan.device.open()?;
    // What an earlier attempt wrote is in its checkpoint; half an output must not survive.
    if plan.output().exists() {
        std::fs::remove_dir_all(plan.output())?;
    }
    std::fs::create_dir_all(plan.output())?;
    std::fs::create_dir_all(plan.checkpoints())?;

    // Data: every line is checked before the model is touched.
    observer.phase(Phase::Preparing);
    let Some(sources) = Sources::read(plan, observer, stop)? else { return Ok(Outcome::Interrupted) };

    // Base model and tuning method.
    observer.phase(Phase::Loading);
    let decoder = match (&plan.base, sources.method.form()) {
        (Base::Directory(dir), Form::Nf4) => load_nf4(dir, &device, plan.quantized.as_deref())?,
        (Base::Directory(dir), form) => Decoder::load(dir, &device, form)?,
        (Base::Random { seed, .. }, form) => Decoder::random(sources.config.clone(), *seed, &device, form)?,
    };
    let method = start::method(plan, &sources, &decoder)?;

    // How long, and from where.
    let trained = method.trainables().iter().map(|one| one.var.elem_count()).sum();
    let resolved = plan.resolve(&sources, trained);
    let found = checkpoint::newest(&plan.checkpoints(), &sources.run, &mut |text| observer.warn(text))?;
    let data = (&sources.training, sources.validation.as_slice());
    let mut run = Run::resume(plan, &decoder, method, data, resolved, &sources.run, found.as_ref())?;
    drop(found);

    // Train.
    observer.phase(Phase::Training);
    observer.progress(run.state.step, resolved.steps);
    loop {
        if run.validation_is_due() {
            match run.validate(stop)? {
                Some(metrics) => observer.validation(&metrics),
                None => {
                    run.save(observer)?;
                    return Ok(Outcome::Interrupted);
                }
            }
        }
        if run.is_done() {
            break;
        }
        match run.step(observer, stop)? {
            Some(metrics) => observer.step(&metrics),
            None => {
                run.save(observer)?;
                return Ok(Outcome::Interrupted);
            }
        }
        observer.progress(run.state.step, resolved.steps);
        if run.checkpoint_is_due() {
            run.save(observer)?;
        }
    }
    run.save(observer)?;

    // Write what was learned.
    observer.phase(Phase::Saving);
    Ok(Outcome::Completed(outputs::write(&run, &sources)?))
}

impl Plan {
    /// Fills in what depends on the data and the model.
    fn resolve(&self, sources: &Sources, trained: usize) -> Resolved {
        let settings = &self.settings;
        let mut resolved = Resolved {
            steps: 0,
            warmup_steps: 0,
            evaluation_interval: 0,
            max_sequence_length: sources.max_tokens,
            seed: self.seed(),
            parts: side_by_side::parts(&sources.config, trained),
        };
        let batches = Batches::new(&sources.training, self.batches(&resolved), Cursor::default());
        resolved.steps = settings.step_count.unwrap_or_else(|| batches.steps(settings.epoch_count));
        resolved.warmup_steps = settings.warmup_steps.unwrap_or(resolved.steps * 3 / 100);
        resolved.evaluation_interval = settings.evaluation_interval.unwrap_or(resolved.steps.div_ceil(10).max(1));
        resolved
    }

    /// How batches are dealt: by records, or by rows of documents.
    pub(super) fn batches(&self, resolved: &Resolved) -> BatchSettings {
        BatchSettings {
            seed: self.seed(),
            batch_size: self.settings.batch_size,
            token_budget: self.settings.micro_batch_tokens,
            parts: resolved.parts,
            row_tokens: match self.objective {
                Objective::FineTuning => None,
                Objective::ContinuedPreTraining => Some(resolved.max_sequence_length),
            },
        }
    }
}
