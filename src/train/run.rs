//! A run over a corpus in the middle: batch after batch, each a step, and the validation data every so often. What it
//! trains and keeps is the [`Learner`]'s.

use super::backprop;
use super::checkpoint::{Checkpoint, Exact};
use super::data_parallel::{Passed, Slots};
use super::identity::RunIdentity;
use super::learner::{Learner, Steps};
use super::metrics::Measured;
use super::objective::{Criteria, Criterion};
use super::optim::{clip_factor, norm};
use super::settings::Resolved;
use super::{LossSum, Observer, Plan, StepMetrics, StepParts, StopFlag, ValidationMetrics};
use crate::data::{Batch, Batches, Corpus, MicroBatch, in_order};
use crate::error::{Error, Result};
use crate::models::Decoder;
use crate::rng;
use crate::tune::Method;

/// One training run.
pub(super) struct Run<'a> {
    pub(super) learner: Learner<'a>,
    criteria: Criteria,
    training: &'a Corpus,
    validation: &'a [Corpus],
    batches: Batches<'a>,
    /// Where several devices share every batch.
    slots: Option<Slots<'a>>,
}

impl<'a> Run<'a> {
    /// At the beginning, or where `checkpoint` ended.
    pub(super) fn resume(
        plan: &'a Plan,
        decoder: &'a Decoder,
        (method, criteria): (Box<dyn Method>, Criteria),
        data: (&'a Corpus, &'a [Corpus]),
        resolved: Resolved,
        run: &RunIdentity,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let columns = criteria.training.metrics();
        let columns = (columns, (!data.1.is_empty()).then_some(columns));
        let learner = Learner::resume(plan, (decoder, method), resolved, run, columns, checkpoint)?;
        let batches = Batches::new(data.0, plan.batches(&resolved), learner.state.cursor);
        Ok(Self { learner, criteria, training: data.0, validation: data.1, batches, slots: None })
    }

    /// With more slots beside the first, one on every decoder of `others`: each takes its share of every batch.
    ///
    /// # Errors
    /// When a method is not the run's own, or the system gives no more threads.
    pub(super) fn beside(mut self, others: Vec<(&'a Decoder, Box<dyn Method>)>) -> Result<Self> {
        let learner = &self.learner;
        let slots = Slots::open(learner.method.trainables(), &learner.optimizer, learner.adamw(), others)?;
        self.slots = Some(slots);
        Ok(self)
    }

    /// Tries the largest micro-batch that is to come, and forgets the result: what does not fit shows now and not
    /// after hours. It costs a pass, so it is done only at the beginning of a run whose plan is tight.
    pub(super) fn try_largest(&mut self, lead: usize, observer: &mut dyn Observer, stop: &StopFlag) -> Result<()> {
        let resolved = self.learner.resolved;
        if self.learner.state.step > 0 {
            return Ok(());
        }
        loop {
            let largest = self.batches.largest(resolved.steps, lead);
            let micro = vec![MicroBatch::gather(self.training, largest.records); resolved.lanes];
            let batch = Batch { epoch: 0, micro, labelled: 1, ends_epoch: false };
            match self.pass(&batch, 0, stop) {
                Ok(_) => return Ok(()),
                Err(error) if error.is_out_of_memory() => self.cut_smaller(&batch, &error, observer)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// The device had no memory for `batch`: its records come again in smaller micro-batches, because the cursor has
    /// not moved.
    fn cut_smaller(&mut self, batch: &Batch, cause: &Error, observer: &mut dyn Observer) -> Result<()> {
        self.learner.cut_smaller(&batch.micro, self.training.unit(), cause, observer)?;
        self.cut_to(self.learner.state.token_budget);
        Ok(())
    }

    /// Deals what is to come in micro-batches of at most `token_budget` tokens.
    pub(super) fn cut_to(&mut self, token_budget: usize) {
        self.learner.cut_to(token_budget);
        let Learner { plan, resolved, state, .. } = &self.learner;
        self.batches = Batches::new(self.training, plan.batches(resolved), state.cursor);
    }

    /// Forward and backward over every micro-batch; `None` when the run was asked to stop.
    fn pass(&self, batch: &Batch, key: u64, stop: &StopFlag) -> Result<Option<Passed>> {
        let (learner, criterion) = (&self.learner, &*self.criteria.training);
        if let Some(slots) = &self.slots {
            let first = (learner.decoder, &*learner.method);
            return slots.pass(first, criterion, batch, key, learner.resolved.keeps_graphs, stop);
        }
        let passed = learner.pass(&batch.micro, criterion, key, stop)?;
        Ok(passed.map(|(sums, gradients)| Passed { sums, gradients, of_peers: Vec::new() }))
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
        if rest > 0 { format!(", at {first} and {rest} more records") } else { format!(", at {first}") }
    }
}

impl<'a> Steps<'a> for Run<'a> {
    fn learner(&self) -> &Learner<'a> {
        &self.learner
    }

    fn validation_is_due(&self) -> Result<bool> {
        let Learner { state, resolved, .. } = &self.learner;
        Ok(!self.validation.is_empty()
            && state.step > state.validated
            && (state.step.is_multiple_of(resolved.evaluation_interval) || state.step == resolved.steps))
    }

    fn step(&mut self, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<StepMetrics>> {
        let plan = self.learner.plan;
        let began = plan.clock.monotonic();
        let step = self.learner.state.step;

        // Micro-batch by micro-batch; gradients are of sums, so that how a batch is cut changes nothing.
        let key = rng::key(plan.seed(), "dropout", step);
        let (batch, Passed { sums, gradients, of_peers }) = loop {
            let batch = self.batches.next_batch();
            match self.pass(&batch, key, stop) {
                Ok(Some(passed)) => break (batch, passed),
                Ok(None) => return Ok(None),
                Err(error) if error.is_out_of_memory() => self.cut_smaller(&batch, &error, observer)?,
                Err(error) => return Err(error),
            }
        };

        // Divide once by the number of learned tokens, or of what else the objective counts; clip, update.
        let mut parts = StepParts::default();
        sums.iter().for_each(|sum| parts += sum.parts);
        let gradients_came = plan.clock.monotonic();
        let count = sums.iter().map(|sum| sum.count).sum::<usize>().max(1) as f64;
        let loss = sums.iter().map(|sum| sum.loss_sum).sum::<f64>() / count;
        let gradient_norm = norm(gradients.sums())? / count;
        let learning_rate = self.learner.learning_rate();
        if loss.is_finite() && gradient_norm.is_finite() {
            let scale = clip_factor(gradient_norm, plan.settings.max_gradient_norm) / count;
            let Learner { optimizer, method, state, .. } = &mut self.learner;
            optimizer.update(method.trainables(), gradients.sums(), scale, learning_rate)?;
            if let Some(slots) = &mut self.slots {
                slots.update(&of_peers, scale, learning_rate)?;
            }
            state.training_loss = Exact(loss);
            state.skipped = 0;
        } else {
            let place = self.culprits(&batch, &sums);
            self.learner.skip(loss, &place, observer)?;
        }

        let now = plan.clock.monotonic();
        parts.optimizer = now.duration_since(gradients_came).as_secs_f64();
        let tokens = batch.micro.iter().map(|micro| micro.tokens.len() as u64).sum();
        let Learner { state, optimizer, training_metrics, resolved, .. } = &mut self.learner;
        state.step += 1;
        state.updates = optimizer.updates();
        state.epoch = batch.epoch;
        state.cursor = self.batches.cursor();
        state.tokens += tokens;
        let criterion = &*self.criteria.training;
        let extra = LossSum::means(criterion.metrics(), &sums);
        training_metrics.append(step, batch.epoch, &measured(criterion, loss, &extra))?;
        let seconds = plan.clock.monotonic().duration_since(began).as_secs_f64();
        Ok(Some(StepMetrics {
            step,
            steps: resolved.steps,
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

    fn validate(&mut self, _: &mut dyn Observer, stop: &StopFlag) -> Result<Option<ValidationMetrics>> {
        let learner = &mut self.learner;
        let (mut losses, mut loss_sum, mut count, mut sums) = (Vec::new(), 0.0, 0, Vec::new());
        for (corpus, criterion) in self.validation.iter().zip(&self.criteria.validation) {
            let (mut own_sum, mut own_count) = (0.0, 0);
            for micro in in_order(corpus, learner.state.token_budget) {
                if stop.is_raised() {
                    return Ok(None);
                }
                let method = &*learner.method;
                let sum = backprop::evaluate(learner.decoder, method.trainables(), method, &**criterion, &micro)?;
                own_sum += sum.loss_sum;
                own_count += sum.count;
                sums.push(LossSum { records: Vec::new(), ..sum });
            }
            losses.push(own_sum / own_count.max(1) as f64);
            loss_sum += own_sum;
            count += own_count;
        }
        let loss = loss_sum / count.max(1) as f64;
        learner.state.validated = learner.state.step;
        learner.state.validation_losses = losses.iter().copied().map(Exact).collect();
        let is_best = learner.plan.settings.early_stopping.is_some() && loss < learner.best_loss();
        learner.judge(loss);
        if is_best {
            learner.keep_best(loss)?;
        }
        let (step, epoch) = (learner.state.step - 1, learner.state.epoch);
        let criterion = &*self.criteria.training;
        let extra = LossSum::means(criterion.metrics(), &sums);
        if let Some(metrics) = &mut learner.validation_metrics {
            metrics.append(step, epoch, &measured(criterion, loss, &extra))?;
        }
        Ok(Some(ValidationMetrics { step, epoch, loss, extra, losses }))
    }

    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.learner.save(None, self.criteria.reference.as_deref(), observer)
    }
}

fn measured<'a>(criterion: &dyn Criterion, loss: f64, extra: &'a [(&'static str, f64)]) -> Measured<'a> {
    Measured { loss, perplexity: criterion.has_perplexity().then(|| loss.exp()), extra }
}
