//! A run in the middle: the model, the optimizer, and where it stands. Each method is one thing the
//! recipe does; all that must survive an interruption goes through [`Run::save`] and [`Run::resume`].

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use super::backprop::{self, Gradients};
use super::checkpoint::{self, BEST, Checkpoint, Contents, Exact, OPTIMIZER, State, WEIGHTS};
use super::data_parallel::{Passed, Slots, one_pass};
use super::metrics::{Measured, Metrics, Table};
use super::objective::{Criteria, Criterion};
use super::optim::{AdamW, AdamWSettings, clip_factor, norm};
use super::settings::Resolved;
use super::side_by_side::Lanes;
use super::{LossSum, Observer, Plan, Settings, StepMetrics, StepParts, StopFlag, ValidationMetrics};
use crate::data::{Batch, Batches, Corpus, Cursor, MicroBatch, in_order};
use crate::error::{Error, Result};
use crate::models::{Decoder, Precision, Weights, save_tensors};
use crate::rng;
use crate::tune::Method;

/// Time between checkpoints when no number of steps is set: what a killed run has to do again.
const CHECKPOINT_TIME: Duration = Duration::from_secs(30);
/// Names the number of updates among the moments that a run leaves.
const UPDATES: &str = "updates";
/// After this many steps in a row without a finite loss or gradient the run has diverged.
pub(super) const MAX_SKIPPED: u64 = 3;

/// One training run.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) decoder: &'a Decoder,
    pub(super) method: Box<dyn Method>,
    criteria: Criteria,
    pub(super) resolved: Resolved,
    pub(super) state: State,
    pub(super) training_metrics: Metrics,
    pub(super) validation_metrics: Option<Metrics>,
    optimizer: AdamW,
    training: &'a Corpus,
    validation: &'a [Corpus],
    batches: Batches<'a>,
    /// Where micro-batches run side by side.
    lanes: Option<Lanes>,
    /// Where several devices share every batch.
    slots: Option<Slots<'a>>,
    best: Option<Vec<(String, Tensor)>>,
    /// When the last checkpoint was made, and after how many steps.
    saved: (Instant, u64),
}

impl<'a> Run<'a> {
    /// At the beginning, or where `checkpoint` ended.
    pub(super) fn resume(
        plan: &'a Plan,
        decoder: &'a Decoder,
        (method, criteria): (Box<dyn Method>, Criteria),
        data: (&'a Corpus, &'a [Corpus]),
        resolved: Resolved,
        run: &str,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let settings = &plan.settings;
        // The moments of the run whose adapter this one goes on from, if it is to go on with them too.
        let earlier_moments = plan.moments();
        let mut optimizer = AdamW::new(method.trainables(), adamw(settings, &resolved))?;
        let mut state = State::beginning(run, resolved.token_budget);
        let mut best = None;
        if let (None, Some(file)) = (checkpoint, earlier_moments) {
            let moments = Weights::open_file(file)?;
            let updates = moments.get(UPDATES, &[1], &Device::Cpu)?.to_vec1::<f32>()?[0] as u64;
            optimizer.restore(method.trainables(), updates, |name, shape| moments.get(name, shape, &Device::Cpu))?;
        }
        if let Some(checkpoint) = checkpoint {
            state = State { token_budget: resolved.token_budget, ..checkpoint.state.clone() };
            best = restore(&checkpoint.dir, &state, (decoder, &*method), &mut optimizer)?;
        }
        let metrics = |table| -> Result<Metrics> {
            let earlier = checkpoint.map(|checkpoint| checkpoint.metrics(table)).transpose()?.flatten();
            Metrics::create(&plan.output(), table, criteria.training.metrics(), earlier.as_deref())
        };
        let training_metrics = metrics(Table::Training)?;
        let validation_metrics = if data.1.is_empty() { None } else { Some(metrics(Table::Validation)?) };
        let batches = Batches::new(data.0, plan.batches(&resolved), state.cursor);
        let lanes = if resolved.parts > 1 { Some(Lanes::open(resolved.lanes)?) } else { None };
        let saved = (plan.clock.monotonic(), state.step);
        Ok(Self {
            plan,
            decoder,
            method,
            criteria,
            resolved,
            state,
            training_metrics,
            validation_metrics,
            optimizer,
            training: data.0,
            validation: data.1,
            batches,
            lanes,
            slots: None,
            best,
            saved,
        })
    }

    /// With more slots beside the first, one on every decoder of `others`: each takes its share of every batch.
    ///
    /// # Errors
    /// When a method is not the run's own, or the system gives no more threads.
    pub(super) fn beside(mut self, others: Vec<(&'a Decoder, Box<dyn Method>)>) -> Result<Self> {
        let settings = adamw(&self.plan.settings, &self.resolved);
        self.slots = Some(Slots::open(self.method.trainables(), &self.optimizer, settings, others)?);
        Ok(self)
    }

    /// Whether the validation data is to be passed over before anything else.
    pub(super) fn validation_is_due(&self) -> bool {
        let step = self.state.step;
        !self.validation.is_empty()
            && step > self.state.validated
            && (step.is_multiple_of(self.resolved.evaluation_interval) || step == self.resolved.steps)
    }

    /// Whether there is nothing left to train.
    pub(super) fn is_done(&self) -> bool {
        self.state.stopped_early || self.state.step >= self.resolved.steps
    }

    /// One optimizer step; `None` when the run was asked to stop, and then nothing has changed.
    pub(super) fn step(&mut self, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<StepMetrics>> {
        let began = self.plan.clock.monotonic();
        let step = self.state.step;

        // Micro-batch by micro-batch; gradients are of sums, so that how a batch is cut changes nothing.
        let key = rng::key(self.plan.seed(), "dropout", step);
        let (batch, Passed { sums, gradients, of_peers }) = loop {
            let batch = self.batches.next_batch();
            match self.pass(&batch, key, stop) {
                Ok(Some(passed)) => break (batch, passed),
                Ok(None) => return Ok(None),
                Err(error) if error.is_out_of_memory() => self.cut_smaller(&batch, error, observer)?,
                Err(error) => return Err(error),
            }
        };

        // Divide once by the number of learned tokens, or of what else the objective counts; clip, update.
        let mut parts = StepParts::default();
        sums.iter().for_each(|sum| parts += sum.parts);
        let gradients_came = self.plan.clock.monotonic();
        let count = sums.iter().map(|sum| sum.count).sum::<usize>().max(1) as f64;
        let loss = sums.iter().map(|sum| sum.loss_sum).sum::<f64>() / count;
        let gradient_norm = norm(gradients.sums())? / count;
        let factor = self.plan.settings.schedule.factor(step, self.resolved.warmup_steps, self.resolved.steps);
        let learning_rate = self.plan.settings.learning_rate * factor;
        if loss.is_finite() && gradient_norm.is_finite() {
            let scale = clip_factor(gradient_norm, self.plan.settings.max_gradient_norm) / count;
            self.optimizer.update(self.method.trainables(), gradients.sums(), scale, learning_rate)?;
            if let Some(slots) = &mut self.slots {
                slots.update(&of_peers, scale, learning_rate)?;
            }
            self.state.training_loss = Exact(loss);
            self.state.skipped = 0;
        } else {
            self.skip(&batch, &sums, loss, observer)?;
        }

        let now = self.plan.clock.monotonic();
        parts.optimizer = now.duration_since(gradients_came).as_secs_f64();
        let tokens = batch.micro.iter().map(|micro| micro.tokens.len() as u64).sum();
        self.state.step += 1;
        self.state.updates = self.optimizer.updates();
        self.state.epoch = batch.epoch;
        self.state.cursor = self.batches.cursor();
        self.state.tokens += tokens;
        let criterion = &*self.criteria.training;
        let extra = LossSum::means(criterion.metrics(), &sums);
        self.training_metrics.append(step, batch.epoch, &measured(criterion, loss, &extra))?;
        let seconds = self.plan.clock.monotonic().duration_since(began).as_secs_f64();
        Ok(Some(StepMetrics {
            step,
            steps: self.resolved.steps,
            epoch: batch.epoch,
            loss,
            extra,
            learning_rate,
            gradient_norm,
            tokens,
            labelled: batch.labelled as u64,
            seconds,
            parts,
        }))
    }

    /// Tries the largest micro-batch that is to come, and forgets the result: what does not fit shows now and not
    /// after hours. It costs a pass, so it is done only at the beginning of a run whose plan is tight.
    pub(super) fn try_largest(&mut self, lead: usize, observer: &mut dyn Observer, stop: &StopFlag) -> Result<()> {
        if self.state.step > 0 {
            return Ok(());
        }
        loop {
            let largest = self.batches.largest(self.resolved.steps, lead);
            let micro = vec![MicroBatch::gather(self.training, largest.records); self.resolved.lanes];
            let batch = Batch { epoch: 0, micro, labelled: 1, ends_epoch: false };
            match self.pass(&batch, 0, stop) {
                Ok(_) => return Ok(()),
                Err(error) if error.is_out_of_memory() => self.cut_smaller(&batch, error, observer)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// The device had no memory for a micro-batch of `batch`: from here on they are half as large, down to one
    /// record; then graphs are no longer kept. The cursor has not moved, so the same records come again.
    fn cut_smaller(&mut self, batch: &Batch, cause: Error, observer: &mut dyn Observer) -> Result<()> {
        let step = self.state.step;
        let several = batch.micro.iter().filter(|micro| micro.records.len() > self.training.unit());
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
            self.cut_to(self.state.token_budget);
            return Ok(());
        }
        let longest = batch.micro.iter().map(|micro| micro.tokens.len()).max().unwrap_or(0);
        Err(Error::validation(format!(
            "The device has no memory left for a single record of {longest} tokens. Use shorter records, a smaller \
             maxSequenceLength, tuningMethod qlora, a smaller loraRank, or a smaller base model."
        ))
        .because(anyhow::anyhow!("{}", cause.log())))
    }

    /// Deals what is to come in micro-batches of at most `token_budget` tokens.
    pub(super) fn cut_to(&mut self, token_budget: usize) {
        (self.state.token_budget, self.resolved.token_budget) = (token_budget, token_budget);
        self.batches = Batches::new(self.training, self.plan.batches(&self.resolved), self.state.cursor);
    }

    /// Forward and backward over every micro-batch; `None` when the run was asked to stop.
    fn pass(&self, batch: &Batch, key: u64, stop: &StopFlag) -> Result<Option<Passed>> {
        let criterion = &*self.criteria.training;
        if let Some(slots) = &self.slots {
            return slots.pass((self.decoder, &*self.method), criterion, batch, key, self.resolved.keeps_graphs, stop);
        }
        let trainables = self.method.trainables();
        let one = |index: usize, micro: &MicroBatch, gradients: &mut Gradients| {
            let tuned = (self.decoder, &*self.method);
            one_pass(tuned, criterion, (index, micro), key, gradients, self.resolved.keeps_graphs)
        };
        let mut gradients = Gradients::new(trainables);
        let mut sums = Vec::with_capacity(batch.micro.len());
        // Side by side each has gradients of its own; one after another they add into one set at once,
        // which is all that a large model has memory for.
        if let Some(lanes) = &self.lanes {
            let done = lanes.map(&batch.micro, |index, micro| {
                let mut own = Gradients::new(trainables);
                let sum = if stop.is_raised() { None } else { Some(one(index, micro, &mut own)?) };
                Ok::<_, Error>((sum, own))
            });
            for result in done {
                let (Some(sum), own) = result? else { return Ok(None) };
                gradients.merge(own)?;
                sums.push(sum);
            }
        } else {
            for (index, micro) in batch.micro.iter().enumerate() {
                if stop.is_raised() {
                    return Ok(None);
                }
                sums.push(one(index, micro, &mut gradients)?);
            }
        }
        Ok(Some(Passed { sums, gradients, of_peers: Vec::new() }))
    }

    /// A step whose numbers are not finite changes no weight; too many in a row end the run.
    fn skip(&mut self, batch: &Batch, sums: &[LossSum], loss: f64, observer: &mut dyn Observer) -> Result<()> {
        self.state.skipped += 1;
        let step = self.state.step;
        let what = if loss.is_finite() { "gradients are" } else { "loss is" };
        let place = self.culprits(batch, sums);
        if self.state.skipped < MAX_SKIPPED {
            observer.warn(&format!("step {step}: the {what} not finite, at {place}; the step was skipped"));
            return Ok(());
        }
        Err(Error::validation(format!(
            "Training diverged: in step {step}, and the {} before it, the {what} not finite, at {place}. Try a lower \
             learningRate or more learningRateWarmupSteps, and look at these records.",
            MAX_SKIPPED - 1
        )))
    }

    /// The lines of the records whose loss is not finite, or of all when only the gradients are not.
    fn culprits(&self, batch: &Batch, sums: &[LossSum]) -> String {
        let records: Vec<(usize, bool)> = batch
            .micro
            .iter()
            .zip(sums)
            .flat_map(|(micro, sum)| micro.records.iter().zip(&sum.records))
            .map(|(record, sum)| (*record, sum.loss_sum.is_finite()))
            .collect();
        let all_finite = records.iter().all(|(_, finite)| *finite);
        let mut places: Vec<String> = records
            .iter()
            .filter(|(_, finite)| all_finite || !finite)
            .map(|(record, _)| self.training.place(*record))
            .map(|(file, line)| format!("{file}:{line}"))
            .collect();
        // Both answers of a pair stand in one line.
        places.dedup();
        let rest = places.len().saturating_sub(5);
        let first = places[..places.len() - rest].join(", ");
        if rest > 0 { format!("{first} and {rest} more records") } else { first }
    }

    /// Passes over the validation data and judges whether it still improves; `None` when the run was
    /// asked to stop.
    pub(super) fn validate(&mut self, stop: &StopFlag) -> Result<Option<ValidationMetrics>> {
        let (mut losses, mut loss_sum, mut count, mut sums) = (Vec::new(), 0.0, 0, Vec::new());
        for (corpus, criterion) in self.validation.iter().zip(&self.criteria.validation) {
            let (mut own_sum, mut own_count) = (0.0, 0);
            for micro in in_order(corpus, self.state.token_budget) {
                if stop.is_raised() {
                    return Ok(None);
                }
                let method = &*self.method;
                let sum = backprop::evaluate(self.decoder, method.trainables(), method, &**criterion, &micro)?;
                own_sum += sum.loss_sum;
                own_count += sum.count;
                sums.push(LossSum { records: Vec::new(), ..sum });
            }
            losses.push(own_sum / own_count.max(1) as f64);
            loss_sum += own_sum;
            count += own_count;
        }
        let loss = loss_sum / count.max(1) as f64;
        self.state.validated = self.state.step;
        self.state.validation_losses = losses.iter().copied().map(Exact).collect();
        self.judge(loss)?;
        let (step, epoch) = (self.state.step - 1, self.state.epoch);
        let criterion = &*self.criteria.training;
        let extra = LossSum::means(criterion.metrics(), &sums);
        if let Some(metrics) = &mut self.validation_metrics {
            metrics.append(step, epoch, &measured(criterion, loss, &extra))?;
        }
        Ok(Some(ValidationMetrics { step, epoch, loss, extra, losses }))
    }

    /// Early stopping: the best weights are kept; an improvement smaller than the threshold does not
    /// count against stagnation (the meaning of Bedrock's names, and of transformers' callback).
    fn judge(&mut self, loss: f64) -> Result<()> {
        let Some(early) = self.plan.settings.early_stopping else { return Ok(()) };
        let best = self.state.best.map_or(f64::INFINITY, |(Exact(best), _)| best);
        self.state.stale = if loss < best - early.threshold { 0 } else { self.state.stale + 1 };
        if loss < best {
            self.state.best = Some((Exact(loss), self.state.step));
            let copy = |(name, tensor): (String, Tensor)| Ok((name, tensor.copy()?));
            self.best = Some(self.weights().into_iter().map(copy).collect::<Result<_>>()?);
        }
        self.state.stopped_early = self.state.stale >= early.patience && self.state.step < self.resolved.steps;
        Ok(())
    }

    /// Whether it is time for a checkpoint.
    pub(super) fn checkpoint_is_due(&self) -> bool {
        let (when, step) = self.saved;
        match self.plan.settings.checkpoint_interval {
            Some(interval) => self.state.step - step >= interval,
            None => self.plan.clock.monotonic().duration_since(when) >= CHECKPOINT_TIME,
        }
    }

    /// Writes a checkpoint, unless the newest one is of this step, and tells the observer.
    pub(super) fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let step = self.state.step;
        if step == self.saved.1 {
            return Ok(());
        }
        let mut metrics = vec![(Table::Training, self.training_metrics.bytes()?)];
        if let Some(validation) = &self.validation_metrics {
            metrics.push((Table::Validation, validation.bytes()?));
        }
        let dir = checkpoint::save(
            &self.plan.checkpoints(),
            &Contents {
                state: &self.state,
                weights: &self.weights(),
                optimizer: &self.optimizer.tensors(self.method.trainables())?,
                best: self.best.as_deref(),
                metrics: &metrics,
                reference: self.criteria.reference.as_deref(),
            },
        )?;
        observer.checkpoint(&dir, step)?;
        self.saved = (self.plan.clock.monotonic(), step);
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

    /// Goes back to the weights with the lowest validation loss, if early stopping kept some; says
    /// after how many steps the weights were taken.
    pub(super) fn take_best(&self) -> Result<u64> {
        let (Some(best), Some((_, step))) = (&self.best, self.state.best) else { return Ok(self.state.step) };
        for (one, (_, tensor)) in self.method.trainables().iter().zip(best) {
            one.var.set(tensor)?;
        }
        Ok(step)
    }
}

/// Takes up the weights and moments of the checkpoint in `dir`; the best weights, if it has some.
pub(super) fn restore(
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

fn measured<'a>(criterion: &dyn Criterion, loss: f64, extra: &'a [(&'static str, f64)]) -> Measured<'a> {
    Measured { loss, perplexity: criterion.has_perplexity().then(|| loss.exp()), extra }
}

pub(super) fn adamw(settings: &Settings, resolved: &Resolved) -> AdamWSettings {
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
    pub(super) fn beginning(run: &str, token_budget: usize) -> Self {
        Self {
            run: run.into(),
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
