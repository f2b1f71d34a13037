//! The optimizer's updates on the answers of one step, and the way back when the run is stopped among them or one of
//! them comes to no number: a step changes all that it is to change, or nothing.

use candle_core::Tensor;

use super::super::learner::Learner;
use super::super::optim::{clip_factor, norm};
use super::super::{LossSum, Observer, StepParts, StopFlag};
use super::batch::{Batch, Lesson};
use super::run::Run;
use crate::error::Result;
use crate::rng;

/// What the updates of one step came to.
pub(super) struct Updated {
    /// Whether all of them came to numbers; else nothing is changed.
    pub(super) is_good: bool,
    /// The last update's loss.
    pub(super) loss: f64,
    /// The last update's norm.
    pub(super) gradient_norm: f64,
    /// What the criterion measured, as means over tokens and updates.
    pub(super) measured: Vec<(&'static str, f64)>,
    /// Where the time went.
    pub(super) parts: StepParts,
}

/// Weights and moments as they were.
struct Copies {
    weights: Vec<(String, Tensor)>,
    moments: Vec<(String, Tensor)>,
    updates: u64,
}

impl Run<'_> {
    /// Goes over the answers of `lesson` as often as the settings say; `None` when the run was asked to stop, and then
    /// all is as it was. So it is after a step that is skipped because one of its updates is not finite.
    pub(super) fn update(
        &mut self,
        batch: &Batch<'_>,
        lesson: Lesson,
        observer: &mut dyn Observer,
        stop: &StopFlag,
    ) -> Result<Option<Updated>> {
        let (plan, sources) = (self.learner.plan, self.sources);
        let (step, settings, updates) = (self.learner.state.step, &plan.settings, sources.options.updates_per_batch);
        let Lesson { criterion, counting, mut micros, .. } = lesson;
        let learning_rate = self.learner.learning_rate();
        let mut parts = StepParts::default();
        let (mut loss, mut gradient_norm, mut all) = (0.0, 0.0, Vec::new());
        let mut is_good = true;
        // Of one update nothing has to be taken back.
        let before = if updates > 1 { Some(self.copies()?) } else { None };
        for update in 0..updates {
            let key = rng::key(rng::key(plan.seed(), "dropout", step), "update", update as u64);
            let (sums, gradients) = loop {
                match self.learner.pass(&micros, &*criterion, key, stop) {
                    Ok(Some(passed)) => break passed,
                    Ok(None) => {
                        self.go_back(before)?;
                        return Ok(None);
                    }
                    Err(error) if error.is_out_of_memory() => {
                        self.learner.cut_smaller(&micros, 1, &error, observer)?;
                        micros = self.micro_batches(batch, &counting);
                    }
                    Err(error) => return Err(error),
                }
            };
            sums.iter().for_each(|sum| parts += sum.parts);
            loss = sums.iter().map(|sum| sum.loss_sum).sum::<f64>();
            gradient_norm = norm(gradients.sums())?;
            all.extend(sums.into_iter().map(|sum| LossSum { records: Vec::new(), ..sum }));
            is_good = loss.is_finite() && gradient_norm.is_finite();
            if !is_good {
                break;
            }
            let scale = clip_factor(gradient_norm, settings.max_gradient_norm);
            let Learner { optimizer, method, .. } = &mut self.learner;
            optimizer.update(method.trainables(), gradients.sums(), scale, learning_rate)?;
        }
        if is_good {
            self.learner.state.skipped = 0;
        } else {
            // Before the run may end: what it keeps then is what the last good step left.
            self.go_back(before)?;
            let place = format!(", in answers to prompts of {}", sources.training.source.name);
            self.learner.skip(loss, &place, observer)?;
        }
        let measured = LossSum::means(criterion.metrics(), &all);
        Ok(Some(Updated { is_good, loss, gradient_norm, measured, parts }))
    }

    /// Copies of weights and moments, to go back to.
    fn copies(&self) -> Result<Copies> {
        Ok(Copies {
            weights: self.learner.copied_weights()?,
            moments: self.learner.optimizer.tensors(self.learner.method.trainables())?,
            updates: self.learner.optimizer.updates(),
        })
    }

    fn go_back(&mut self, to: Option<Copies>) -> Result<()> {
        let Some(Copies { weights, moments, updates }) = to else { return Ok(()) };
        self.learner.set_weights(&weights)?;
        let Learner { method, optimizer, .. } = &mut self.learner;
        optimizer.take_up(method.trainables(), updates, &moments)
    }
}
