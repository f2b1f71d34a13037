//! What every kind of run trains and keeps: the tuned model, its optimizer, the metrics, and where it stands. What is
//! learned from differs ([`super::run()`], [`super::reinforcement`]); all that must survive an interruption is here
//! ([`Learner::resume`], [`Learner::save`]), and so is the one loop over the steps ([`train`]).

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use super::backprop::{self, Gradients};
use super::checkpoint::{self, BEST, Checkpoint, Contents, Exact, OPTIMIZER, State, WEIGHTS};
use super::data_parallel::one_pass;
use super::identity::RunIdentity;
use super::metrics::{Metrics, Table};
use super::objective::Criterion;
use super::optim::{AdamW, AdamWSettings};
use super::settings::Resolved;
use super::side_by_side::Lanes;
use super::{LossSum, Observer, Plan, StepMetrics, StopFlag, TuningMethod, ValidationMetrics, outputs, start};
use crate::data::{Cursor, MicroBatch};
use crate::error::{Error, Result};
use crate::models::{Decoder, Precision, Weights, save_tensors};
use crate::tune::Method;

/// Time between checkpoints when no number of steps is set: what a killed run has to do again.
const CHECKPOINT_TIME: Duration = Duration::from_secs(30);
/// Time to the first checkpoint of an attempt; each further one takes twice as long, up to [`CHECKPOINT_TIME`]. An
/// attempt that lives for two seconds of training leaves the next one further on.
pub const FIRST_CHECKPOINT_TIME: Duration = Duration::from_secs(1);
/// An early checkpoint is worth it while keeping one takes less than this part of the time between two.
const EARLY_SHARE: u32 = 4;
/// Names the number of updates among the moments that a run leaves.
const UPDATES: &str = "updates";
/// After this many steps in a row without a finite loss or gradient the run has diverged.
const MAX_SKIPPED: u64 = 3;

/// A run as the loop over its steps sees it.
pub(super) trait Steps<'a> {
    /// What it trains.
    fn learner(&self) -> &Learner<'a>;

    /// Whether the validation data is to be looked at before anything else.
    fn validation_is_due(&self) -> Result<bool>;

    /// Looks at the validation data and judges whether it still improves; `None` when the run was asked to stop.
    fn validate(&mut self, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<ValidationMetrics>>;

    /// One step; `None` when the run was asked to stop, and then nothing has changed.
    fn step(&mut self, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<StepMetrics>>;

    /// Writes a checkpoint, unless the newest one is of this step, and tells the observer.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<()>;
}

/// Takes the steps that are left; `false` when the run was asked to stop, with a checkpoint to go on from.
pub(super) fn train<'a>(run: &mut impl Steps<'a>, observer: &mut dyn Observer, stop: &StopFlag) -> Result<bool> {
    let steps = run.learner().resolved.steps;
    observer.progress(run.learner().state.step, steps);
    loop {
        if run.validation_is_due()? {
            match run.validate(observer, stop)? {
                Some(metrics) => observer.validation(&metrics),
                None => break,
            }
        }
        if run.learner().is_done() {
            run.learner().check_learned()?;
            run.save(observer)?;
            return Ok(true);
        }
        match run.step(observer, stop)? {
            Some(metrics) => observer.step(&metrics),
            None => break,
        }
        observer.progress(run.learner().state.step, steps);
        if run.learner().checkpoint_is_due() {
            run.save(observer)?;
        }
    }
    run.save(observer)?;
    Ok(false)
}

/// A tuned model in training.
pub(super) struct Learner<'a> {
    pub(super) plan: &'a Plan,
    pub(super) decoder: &'a Decoder,
    pub(super) method: Box<dyn Method>,
    pub(super) resolved: Resolved,
    pub(super) state: State,
    pub(super) training_metrics: Metrics,
    pub(super) validation_metrics: Option<Metrics>,
    pub(super) optimizer: AdamW,
    /// Where micro-batches run side by side.
    lanes: Option<Lanes>,
    best: Option<Vec<(String, Tensor)>>,
    /// When the last checkpoint was made, and after how many steps.
    saved: (Instant, u64),
    /// How long after that the next one is due, where time decides.
    pause: Duration,
    /// What is trained, once a checkpoint had to say so.
    tuned: OnceLock<TuningMethod>,
}

impl<'a> Learner<'a> {
    /// At the beginning of the run `run`, or where `checkpoint` ended. `columns` are what the metrics files hold
    /// beside the loss; the second is absent where nothing is validated.
    pub(super) fn resume(
        plan: &'a Plan,
        (decoder, method): (&'a Decoder, Box<dyn Method>),
        resolved: Resolved,
        run: &RunIdentity,
        columns: (&[&str], Option<&[&str]>),
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let mut optimizer = AdamW::new(method.trainables(), adamw(plan, &resolved))?;
        let mut state = State::beginning(run, resolved.token_budget);
        let mut best = None;
        // The moments of the run whose adapter this one goes on from, if it is to go on with them too.
        if let (None, Some(file)) = (checkpoint, plan.moments()) {
            let moments = Weights::open_file(file)?;
            let updates = moments.get(UPDATES, &[1], &Device::Cpu)?.to_vec1::<f32>()?[0] as u64;
            optimizer.restore(method.trainables(), updates, |name, shape| moments.get(name, shape, &Device::Cpu))?;
        }
        if let Some(checkpoint) = checkpoint {
            // What is written from here on is of today's format.
            let (token_budget, own) = (resolved.token_budget, State::beginning(run, resolved.token_budget));
            state = State { token_budget, run: own.run, identity: own.identity, ..checkpoint.state.clone() };
            best = restore(&checkpoint.dir, &state, (decoder, &*method), &mut optimizer)?;
        }
        backprop::prepare(decoder, method.trainables());
        let metrics = |table, columns: &[&str]| -> Result<Metrics> {
            let earlier = checkpoint.map(|checkpoint| checkpoint.metrics(table)).transpose()?.flatten();
            Metrics::create(&plan.output(), table, columns, earlier.as_deref())
        };
        let training_metrics = metrics(Table::Training, columns.0)?;
        let validation_metrics = columns.1.map(|columns| metrics(Table::Validation, columns)).transpose()?;
        let lanes =
            if resolved.parts > 1 { Some(Lanes::open(resolved.lanes, rayon::current_num_threads())?) } else { None };
        let saved = (plan.clock.monotonic(), state.step);
        Ok(Self {
            plan,
            decoder,
            method,
            resolved,
            state,
            training_metrics,
            validation_metrics,
            optimizer,
            lanes,
            best,
            saved,
            pause: FIRST_CHECKPOINT_TIME,
            tuned: OnceLock::new(),
        })
    }

    /// Whether there is nothing left to train.
    pub(super) fn is_done(&self) -> bool {
        self.state.stopped_early || self.state.step >= self.resolved.steps
    }

    /// The optimizer's settings, for a slot beside this one.
    pub(super) fn adamw(&self) -> AdamWSettings {
        adamw(self.plan, &self.resolved)
    }

    /// What is trained.
    pub(super) fn tuned(&self) -> Result<&TuningMethod> {
        if let Some(tuned) = self.tuned.get() {
            return Ok(tuned);
        }
        let tuned = start::method_of(self.plan, self.decoder.config())?;
        Ok(self.tuned.get_or_init(|| tuned))
    }

    /// The learning rate of the step that is next.
    pub(super) fn learning_rate(&self) -> f64 {
        let settings = &self.plan.settings;
        let factor = settings.schedule.factor(self.state.step, self.resolved.warmup_steps, self.resolved.steps);
        settings.learning_rate * factor
    }

    /// Forward and backward over every micro-batch; `None` when the run was asked to stop.
    pub(super) fn pass(
        &self,
        micros: &[MicroBatch],
        criterion: &dyn Criterion,
        key: u64,
        stop: &StopFlag,
    ) -> Result<Option<(Vec<LossSum>, Gradients)>> {
        let trainables = self.method.trainables();
        let one = |index: usize, micro: &MicroBatch, gradients: &mut Gradients| {
            let tuned = (self.decoder, &*self.method);
            one_pass(tuned, criterion, (index, micro), key, gradients, self.resolved.keeps_graphs)
        };
        let mut gradients = Gradients::new(trainables);
        let mut sums = Vec::with_capacity(micros.len());
        // Side by side each has gradients of its own, until as many as a batch is usually cut into have been added up;
        // one after another they add into one set at once, which is all that a large model has memory for.
        if let Some(lanes) = &self.lanes {
            let together = self.resolved.parts.max(1);
            for (chunk, micros) in micros.chunks(together).enumerate() {
                let done = lanes.map(micros, |index, micro| {
                    let mut own = Gradients::new(trainables);
                    let index = chunk * together + index;
                    let sum = if stop.is_raised() { None } else { Some(one(index, micro, &mut own)?) };
                    Ok::<_, Error>((sum, own))
                });
                for result in done {
                    let (Some(sum), own) = result? else { return Ok(None) };
                    gradients.merge(own)?;
                    sums.push(sum);
                }
            }
        } else {
            for (index, micro) in micros.iter().enumerate() {
                if stop.is_raised() {
                    return Ok(None);
                }
                sums.push(one(index, micro, &mut gradients)?);
            }
        }
        Ok(Some((sums, gradients)))
    }

    /// What `look` finds in every micro-batch, in order and side by side where they train so; `None` when the run was
    /// asked to stop.
    pub(super) fn look<T: Send>(
        &self,
        micros: &[MicroBatch],
        stop: &StopFlag,
        look: impl Fn(&MicroBatch) -> Result<T> + Sync,
    ) -> Result<Option<Vec<T>>> {
        let one = |_: usize, micro: &MicroBatch| if stop.is_raised() { Ok(None) } else { look(micro).map(Some) };
        match &self.lanes {
            Some(lanes) => lanes.map(micros, one).into_iter().collect(),
            None => micros.iter().enumerate().map(|(index, micro)| one(index, micro)).collect(),
        }
    }

    /// The device had no memory for one of `micros`: from here on they are half as large, down to `unit` records;
    /// then graphs are no longer kept.
    pub(super) fn cut_smaller(
        &mut self,
        micros: &[MicroBatch],
        unit: usize,
        cause: &Error,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let step = self.state.step;
        let several = micros.iter().filter(|micro| micro.records.len() > unit);
        if let Some(tokens) = several.map(|micro| micro.tokens.len()).max() {
            let budget = (tokens.min(self.state.token_budget) / 2).max(1);
            observer.warn(&format!(
                "step {step}: the device has no memory for {tokens} tokens at a time; from here on at most {budget}"
            ));
            self.cut_to(budget);
            return Ok(());
        }
        if self.resolved.keeps_graphs {
            observer.warn(&format!("step {step}: the device is short of memory; from here on layers are run again"));
            self.resolved.keeps_graphs = false;
            return Ok(());
        }
        let longest = micros.iter().map(|micro| micro.tokens.len()).max().unwrap_or(0);
        Err(Error::validation(format!(
            "The device has no memory left for a single record of {longest} tokens. Use shorter records, a smaller \
             maxSequenceLength, tuningMethod qlora, a smaller loraRank, or a smaller base model."
        ))
        .because(anyhow::anyhow!("{}", cause.log())))
    }

    /// Micro-batches have at most `token_budget` tokens from here on.
    pub(super) fn cut_to(&mut self, token_budget: usize) {
        (self.state.token_budget, self.resolved.token_budget) = (token_budget, token_budget);
    }

    /// A step whose numbers are not finite changes no weight; too many in a row end the run. `place` says where the
    /// step's records are to be found, as in ", at train.jsonl:7".
    pub(super) fn skip(&mut self, loss: f64, place: &str, observer: &mut dyn Observer) -> Result<()> {
        self.state.skipped += 1;
        let step = self.state.step;
        let what = if loss.is_finite() { "gradients are" } else { "loss is" };
        if self.state.skipped < MAX_SKIPPED {
            observer.warn(&format!("step {step}: the {what} not finite{place}; the step was skipped"));
            return Ok(());
        }
        Err(Error::validation(format!(
            "Training diverged: in step {step}, and the {} before it, the {what} not finite{place}. Try a lower \
             learningRate or more learningRateWarmupSteps, and look at these records.",
            MAX_SKIPPED - 1
        )))
    }

    /// Refuses the end of a run, however short, in which every step was skipped: its weights are those it began with.
    fn check_learned(&self) -> Result<()> {
        let State { step, skipped, .. } = self.state;
        if step == 0 || skipped < step {
            return Ok(());
        }
        Err(Error::validation(format!(
            "Nothing was learned: in none of the {step} steps were the loss and the gradients finite. Try a lower \
             learningRate, and look at the records and at the weights of the base model."
        )))
    }

    /// The lowest validation loss whose weights are kept.
    pub(super) fn best_loss(&self) -> f64 {
        self.state.best.map_or(f64::INFINITY, |(Exact(best), _)| best)
    }

    /// Early stopping: an improvement on the best smaller than the threshold does not count against stagnation (the
    /// meaning of Bedrock's names, and of transformers' callback).
    pub(super) fn judge(&mut self, loss: f64) {
        let Some(early) = self.plan.settings.early_stopping else { return };
        self.state.stale = if loss < self.best_loss() - early.threshold { 0 } else { self.state.stale + 1 };
        self.state.stopped_early = self.state.stale >= early.patience && self.state.step < self.resolved.steps;
    }

    /// Keeps the weights as the best, which have this validation loss.
    pub(super) fn keep_best(&mut self, loss: f64) -> Result<()> {
        self.state.best = Some((Exact(loss), self.state.step));
        self.best = Some(self.copied_weights()?);
        Ok(())
    }

    /// Whether it is time for a checkpoint.
    fn checkpoint_is_due(&self) -> bool {
        let (when, step) = self.saved;
        match self.plan.settings.checkpoint_interval {
            Some(interval) => self.state.step - step >= interval,
            None => self.plan.clock.monotonic().duration_since(when) >= self.pause,
        }
    }

    /// Writes a checkpoint, with what else the run keeps, unless the newest one is of this step; tells the observer.
    pub(super) fn save(
        &mut self,
        more: Option<(Table, Vec<u8>)>,
        reference: Option<&[u8]>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let step = self.state.step;
        if step == self.saved.1 {
            return Ok(());
        }
        let began = self.plan.clock.monotonic();
        let mut metrics = vec![(Table::Training, self.training_metrics.bytes()?)];
        if let Some(validation) = &self.validation_metrics {
            metrics.push((Table::Validation, validation.bytes()?));
        }
        metrics.extend(more);
        let dir = checkpoint::save(
            &self.plan.checkpoints(),
            &Contents {
                state: &self.state,
                weights: &self.weights(),
                optimizer: &self.optimizer.tensors(self.method.trainables())?,
                best: self.best.as_deref(),
                metrics: &metrics,
                reference,
                servable: &|dir| outputs::servable(self, dir),
            },
        )?;
        observer.checkpoint(&dir, step)?;
        let now = self.plan.clock.monotonic();
        self.saved = (now, step);
        self.pause = next_pause(self.pause, now.duration_since(began));
        Ok(())
    }

    /// Writes the optimizer's moments, for a run that goes on from what this one leaves.
    pub(super) fn save_optimizer(&self, path: &Path) -> Result<()> {
        let mut tensors = self.optimizer.tensors(self.method.trainables())?;
        let updates = Tensor::new(&[self.optimizer.updates() as f32], &Device::Cpu)?;
        tensors.push((UPDATES.into(), updates));
        save_tensors(path, &tensors, Precision::F32)
    }

    /// The trained weights by name.
    pub(super) fn weights(&self) -> Vec<(String, Tensor)> {
        self.method.trainables().iter().map(|one| (one.name.clone(), one.var.as_tensor().clone())).collect()
    }

    /// The same in memory of their own.
    pub(super) fn copied_weights(&self) -> Result<Vec<(String, Tensor)>> {
        self.weights().into_iter().map(|(name, tensor)| Ok((name, tensor.copy()?))).collect()
    }

    /// Goes back to the best weights, if some were kept; says after how many steps the weights were taken.
    pub(super) fn take_best(&self) -> Result<u64> {
        let (Some(best), Some((_, step))) = (&self.best, self.state.best) else { return Ok(self.state.step) };
        self.set_weights(best)?;
        Ok(step)
    }

    /// Takes up weights in the order of [`Learner::weights`].
    pub(super) fn set_weights(&self, weights: &[(String, Tensor)]) -> Result<()> {
        for (one, (_, tensor)) in self.method.trainables().iter().zip(weights) {
            one.var.set(tensor)?;
        }
        Ok(())
    }
}

/// The time to the next checkpoint, after a pause of this length and so long for keeping one.
fn next_pause(pause: Duration, keeping: Duration) -> Duration {
    (pause * 2).max(keeping * EARLY_SHARE).min(CHECKPOINT_TIME)
}

/// Takes up the weights and moments of the checkpoint in `dir`; the best weights, if it has some.
fn restore(
    dir: &Path,
    state: &State,
    (decoder, method): (&Decoder, &dyn Method),
    optimizer: &mut AdamW,
) -> Result<Option<Vec<(String, Tensor)>>> {
    let device = decoder.device();
    let read = |file: &str| Weights::open_file(&dir.join(file));
    let weights = read(WEIGHTS)?;
    for one in method.trainables() {
        one.var.set(&weights.get(&one.name, one.var.dims(), device)?)?;
    }
    let moments = read(OPTIMIZER)?;
    // A device takes up its part from the host's memory, as it is kept on either.
    optimizer.restore(method.trainables(), state.updates, |name, shape| moments.get(name, shape, &Device::Cpu))?;
    if !dir.join(BEST).exists() {
        return Ok(None);
    }
    let weights = read(BEST)?;
    let best =
        method.trainables().iter().map(|one| Ok((one.name.clone(), weights.get(&one.name, one.var.dims(), device)?)));
    Ok(Some(best.collect::<Result<_>>()?))
}

fn adamw(plan: &Plan, resolved: &Resolved) -> AdamWSettings {
    let settings = &plan.settings;
    AdamWSettings {
        beta1: settings.adam_beta1,
        beta2: settings.adam_beta2,
        epsilon: settings.adam_epsilon,
        weight_decay: settings.weight_decay,
        paged: resolved.pages_optimizer,
    }
}

impl State {
    /// No step taken.
    fn beginning(run: &RunIdentity, token_budget: usize) -> Self {
        Self {
            run: run.digest().into(),
            identity: Some(run.identity().clone()),
            step: 0,
            updates: 0,
            cursor: Cursor::default(),
            tokens: 0,
            token_budget,
            skipped: 0,
            epoch: 0,
            training_loss: Exact(f64::NAN),
            validated: 0,
            validation_losses: Vec::new(),
            best: None,
            stale: 0,
            stopped_early: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_come_early_at_first_unless_they_are_dear() {
        let mut pauses = vec![FIRST_CHECKPOINT_TIME];
        while pauses.len() < 8 {
            pauses.push(next_pause(pauses[pauses.len() - 1], Duration::from_millis(10)));
        }
        assert_eq!(pauses.iter().map(Duration::as_secs).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 30, 30, 30]);
        // Each early one of a large model would cost as much as the training between them.
        assert_eq!(next_pause(FIRST_CHECKPOINT_TIME, Duration::from_secs(5)), Duration::from_secs(20));
        assert_eq!(next_pause(FIRST_CHECKPOINT_TIME, Duration::from_secs(600)), CHECKPOINT_TIME);
    }
}
