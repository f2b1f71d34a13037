//! The run, from data to artifact, read top to bottom. Randomness is a function of (seed, stream,
//! step), results do not depend on the number of threads, and all state is in the checkpoint: on one
//! machine, a run that was interrupted anywhere ends with the same bits as one that was not.

use candle_core::Device;

use super::checkpoint::Checkpoint;
use super::learner;
use super::objective::Criteria;
use super::planner::{Decision, Largest, Question};
use super::reference::Reference;
use super::run::Run;
use super::settings::Resolved;
use super::sources::Sources;
use super::{
    Base, Observer, Outcome, Phase, Plan, StopFlag, TrainingDevice, TrainingObjective, checkpoint, outputs,
    side_by_side, start,
};
use crate::data::{BatchSettings, Batches, Corpus, Cursor, Objective, largest_in_order};
use crate::error::Result;
use crate::models::{Decoder, DecoderConfig, Form, load_nf4};
use crate::tune::{Method, PromptConfig, TuningMethod};

/// Runs `plan`, going on from the newest whole checkpoint in its work folder.
///
/// # Errors
/// When the data or the base model cannot be used (the message says why), when the run diverged, or
/// when the observer could not keep a checkpoint.
pub fn run(plan: &Plan, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Outcome> {
    let (device, others) = open(plan)?;
    // What an earlier attempt wrote is in its checkpoint; half an output must not survive.
    if plan.output().exists() {
        std::fs::remove_dir_all(plan.output())?;
    }
    std::fs::create_dir_all(plan.output())?;
    std::fs::create_dir_all(plan.checkpoints())?;

    // Data: every line is checked before the model is touched.
    observer.phase(Phase::Preparing);
    let Some(sources) = Sources::read(plan, observer, stop)? else { return Ok(Outcome::Interrupted) };

    // How long, from where, and how it fits into memory: what does not is refused before the model is read.
    let found = checkpoint::newest(&plan.checkpoints(), &sources.run, &mut |text| observer.checkpoint_refused(text))?;
    let (resolved, decision) = plan.resolve(&sources, found.as_ref(), observer)?;

    // Base model and tuning method.
    observer.phase(Phase::Loading);
    let tuned_base = (&sources.method, &sources.config);
    let decoder = load(plan, tuned_base, &device)?;
    let method = start::method(plan, &sources, &decoder)?;
    let data = (&sources.training, sources.validation.as_slice());
    let copies = others.iter().map(|device| load(plan, tuned_base, device)).collect::<Result<Vec<_>>>()?;
    let tuned = (&decoder, &*method);
    let Some(criteria) = criteria(plan, &sources, tuned, found.as_ref(), resolved.token_budget, stop)? else {
        return Ok(Outcome::Interrupted);
    };
    let mut run = Run::resume(plan, &decoder, (method, criteria), data, resolved, &sources.run, found.as_ref())?;
    if let Some(found) = found {
        observer.resumed(found.state.step);
    }
    if !copies.is_empty() {
        let beside = |copy| Ok((copy, start::method(plan, &sources, copy)?));
        run = run.beside(copies.iter().map(beside).collect::<Result<_>>()?)?;
    }

    // Train.
    observer.phase(Phase::Training);
    if decision.is_tight() {
        run.try_largest(soft_tokens(&sources.method), observer, stop)?;
    }
    if !learner::train(&mut run, observer, stop)? {
        return Ok(Outcome::Interrupted);
    }

    // Write what was learned.
    observer.phase(Phase::Saving);
    Ok(Outcome::Completed(outputs::write(&run.learner, &sources.learned(plan))?))
}

/// What is learned, with all that it knows of the data before the first step; `None` when the run was asked to stop.
fn criteria(
    plan: &Plan,
    sources: &Sources,
    tuned: (&Decoder, &dyn Method),
    found: Option<&Checkpoint>,
    token_budget: usize,
    stop: &StopFlag,
) -> Result<Option<Criteria>> {
    Ok(match plan.settings.objective {
        TrainingObjective::Sft => Some(Criteria::sft(sources.validation.len())),
        TrainingObjective::Dpo(config) => Reference::of(plan, sources, tuned, found, token_budget, stop)?
            .map(|reference| Criteria::dpo(config, &reference, sources.run.digest())),
        TrainingObjective::Reward => Some(Criteria::reward(sources.validation.len())),
        objective @ TrainingObjective::Reinforcement(_) => return Err(objective.needs_a_grader()),
    })
}

/// The first slot's device and those of the other slots.
pub(super) fn open(plan: &Plan) -> Result<(Device, Vec<Device>)> {
    let others = plan.devices.iter().skip(1).map(|device| device.open());
    Ok((plan.device().open()?, others.collect::<Result<_>>()?))
}

/// The base, in the form that the method trains on.
pub(super) fn load(plan: &Plan, (method, config): (&TuningMethod, &DecoderConfig), device: &Device) -> Result<Decoder> {
    match (&plan.base, plan.form(method, config)) {
        (Base::Directory(dir), Form::Nf4) => load_nf4(dir, device, plan.quantized.as_deref()),
        (Base::Directory(dir), form) => Decoder::load(dir, device, form),
        (Base::Random { seed, .. }, form) => Decoder::random(config.clone(), *seed, device, form),
    }
}

/// Rows that a method puts before every record.
pub(super) fn soft_tokens(method: &TuningMethod) -> usize {
    match method {
        TuningMethod::Prompt(PromptConfig { tokens, .. }) => *tokens,
        _ => 0,
    }
}

impl Plan {
    /// How the base lies in memory. Packed bf16 is the CPU's.
    pub(super) fn form(&self, method: &TuningMethod, base: &DecoderConfig) -> Form {
        match self.device() {
            TrainingDevice::Cpu => self.settings.form(method, base),
            TrainingDevice::Cuda(_) => method.form(),
        }
    }

    /// Fills in what depends on the data, the model and the memory.
    ///
    /// # Errors
    /// `Validation` with the numbers when the run cannot fit.
    pub(super) fn resolve(
        &self,
        sources: &Sources,
        checkpoint: Option<&Checkpoint>,
        observer: &mut dyn Observer,
    ) -> Result<(Resolved, Decision)> {
        let (settings, base) = (&self.settings, &sources.config);
        let trained = usize::try_from(sources.method.trained_values(base)).unwrap_or(usize::MAX);
        let mut resolved = Resolved {
            steps: 0,
            warmup_steps: 0,
            evaluation_interval: 0,
            max_sequence_length: sources.max_tokens,
            seed: self.seed(),
            parts: side_by_side::parts(self.device(), base, trained).max(self.slots().next_power_of_two()),
            token_budget: 1,
            keeps_graphs: false,
            lanes: 1,
            pages_optimizer: false,
            form: self.form(&sources.method, base),
        };
        let batches = Batches::new(&sources.training, self.batches(&resolved), Cursor::default());
        resolved.steps = settings.step_count.unwrap_or_else(|| batches.steps(settings.epoch_count));
        resolved.warmup_steps = settings.warmup_steps.unwrap_or(resolved.steps * 3 / 100);
        resolved.evaluation_interval = settings.evaluation_interval.unwrap_or(resolved.steps.div_ceil(10).max(1));

        let data = (&sources.training, sources.validation.as_slice());
        let decide = |token_budget| self.decide((base, &sources.method), data, &resolved, token_budget);
        // A run goes on as it was cut, if this machine can.
        let kept = checkpoint.map(|checkpoint| checkpoint.state.token_budget);
        let decision = match decide(kept.or(settings.micro_batch_tokens)) {
            Err(cause) if kept.is_some() && settings.micro_batch_tokens.is_none() => {
                let decision = decide(None).map_err(|_| cause)?;
                observer.warn(&format!(
                    "the run began on a machine with more memory: it goes on with {} tokens at a time instead of {}",
                    decision.token_budget,
                    kept.unwrap_or_default()
                ));
                decision
            }
            decided => decided?,
        };
        resolved.take(&decision);
        Ok((resolved, decision))
    }

    /// How a run over this data is cut to fit, with the token budget that is asked for or the best one.
    ///
    /// # Errors
    /// `Validation` with the numbers when it cannot fit.
    pub(super) fn decide(
        &self,
        (base, method): (&DecoderConfig, &TuningMethod),
        (training, validation): (&Corpus, &[Corpus]),
        resolved: &Resolved,
        token_budget: Option<usize>,
    ) -> Result<Decision> {
        let longest = validation.iter().chain([training]).map(|corpus| corpus.manifest().longest as usize).max();
        let on_cpu = self.device() == TrainingDevice::Cpu;
        // All slots are cut alike, so the device with the least memory decides.
        let host = self.memory.shared_by(self.slots());
        let each = self.devices.iter().map(|device| device.memory(host)).collect::<Result<Vec<_>>>()?;
        let question = Question {
            base,
            method,
            form: resolved.form,
            keeps_best: self.settings.early_stopping.is_some(),
            quantizes: resolved.form == Form::Nf4 && !base.nf4 && self.quantized.is_some(),
            // A GPU's stream has one order: nothing runs side by side on it.
            cores: if on_cpu { (rayon::current_num_threads() / self.slots()).max(1) } else { 1 },
            parts: resolved.parts,
            slots: self.slots(),
            token_budget,
            longest: longest.unwrap_or(0),
            memory: each.into_iter().min_by_key(|memory| memory.bytes).unwrap_or(host),
            host: host.bytes,
            can_page: !on_cpu,
            has_values: false,
            goes_back: false,
        };
        let lead = soft_tokens(method);
        question.decide(|token_budget| {
            let cut = Resolved { token_budget, ..*resolved };
            let largest = Batches::new(training, self.batches(&cut), Cursor::default()).largest(resolved.steps, lead);
            let validated = |corpus| largest_in_order(corpus, token_budget, lead);
            Largest {
                rows: largest.rows,
                records: largest.records.len(),
                micros: largest.micros,
                validation_rows: validation.iter().map(validated).max().unwrap_or(0),
            }
        })
    }

    /// How batches are dealt: by records, or by rows of documents.
    pub(super) fn batches(&self, resolved: &Resolved) -> BatchSettings {
        BatchSettings {
            seed: self.seed(),
            batch_size: self.settings.batch_size,
            token_budget: resolved.token_budget,
            parts: resolved.parts,
            row_tokens: match self.objective {
                Objective::FineTuning | Objective::Preferences => None,
                Objective::ContinuedPreTraining => Some(resolved.max_sequence_length),
            },
        }
    }
}
