//! A reinforcement run in the middle: the policy, the optimizer, and where it stands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::super::backprop::Gradients;
use super::super::checkpoint::{self, Checkpoint, Contents, Exact, State};
use super::super::data_parallel::one_pass;
use super::super::metrics::{Measured, Metrics, Table};
use super::super::objective::{Criterion, Grpo, Sampled, advantages, deviation, mean};
use super::super::optim::{AdamW, clip_factor, norm};
use super::super::run::{adamw, restore};
use super::super::settings::Resolved;
use super::super::side_by_side::Lanes;
use super::super::{Grader, LossSum, Observer, Plan, StepMetrics, StepParts, StopFlag, ValidationMetrics};
use super::reference::log_probabilities;
use super::rollout::{Stage, Trajectory};
use super::sources::Sources;
use super::trajectories::Trajectories;
use crate::data::{MicroBatch, PromptRecord, Prompts};
use crate::error::{Error, Result};
use crate::infer::{Sampling, StopReason};
use crate::models::{Decoder, Frozen, Tuning};
use crate::rng;
use crate::tune::{Method, read_adapter};

/// Time between checkpoints when no number of steps is set: what a killed run has to do again.
const CHECKPOINT_TIME: Duration = Duration::from_secs(30);
/// Keys and values of so many times a micro-batch's tokens stand in memory while answers are sampled.
const SAMPLED_TOKENS: usize = 4;
/// Answers of one evaluation that are written down for reading.
const SHOWN: usize = 64;

/// What is measured of a step's answers, in the order of the columns.
const METRICS: [&str; 6] = [
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "completions/mean_length",
    "completions/clipped_ratio",
    "grader/failed",
];
/// What is measured of an evaluation's.
const EVALUATION: [&str; 3] = ["reward", "completions/mean_length", "grader/failed"];

/// One reinforcement run.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) sources: &'a Sources,
    pub(super) decoder: &'a Decoder,
    pub(super) method: Box<dyn Method>,
    pub(super) resolved: Resolved,
    pub(super) state: State,
    pub(super) training_metrics: Metrics,
    pub(super) validation_metrics: Option<Metrics>,
    pub(super) optimizer: AdamW,
    grader: &'a dyn Grader,
    /// The adapter that the run began with, where that is what the policy is held to.
    beginning: Option<Box<dyn Method>>,
    trajectories: Trajectories,
    lanes: Option<Lanes>,
    best: Option<Vec<(String, Tensor)>>,
    /// When the last checkpoint was made, and after how many steps.
    saved: (Instant, u64),
}

/// Weights and moments as they were.
struct Copies {
    weights: Vec<(String, Tensor)>,
    moments: Vec<(String, Tensor)>,
    updates: u64,
}

impl<'a> Run<'a> {
    /// At the beginning, or where `checkpoint` ended.
    pub(super) fn resume(
        plan: &'a Plan,
        grader: &'a dyn Grader,
        sources: &'a Sources,
        decoder: &'a Decoder,
        method: Box<dyn Method>,
        resolved: Resolved,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let mut optimizer = AdamW::new(method.trainables(), adamw(&plan.settings, &resolved))?;
        let mut state = State::beginning(&sources.run, resolved.token_budget);
        let mut best = None;
        if let Some(checkpoint) = checkpoint {
            state = State { token_budget: resolved.token_budget, ..checkpoint.state.clone() };
            best = restore(&checkpoint.dir, &state, (decoder, &*method), &mut optimizer)?;
        }
        let beginning = match &plan.start {
            Some(dir) if sources.options.grpo.kl_beta > 0.0 => {
                Some(read_adapter(dir, decoder.config(), decoder.device(), false)?.tuning)
            }
            _ => None,
        };
        let metrics = |table, columns: &[&str]| -> Result<Metrics> {
            let earlier = checkpoint.map(|checkpoint| checkpoint.metrics(table)).transpose()?.flatten();
            Metrics::create(&plan.output(), table, columns, earlier.as_deref())
        };
        let parts: Vec<String> = grader.parts().iter().map(|part| format!("rewards/{part}")).collect();
        let parts = || parts.iter().map(String::as_str);
        let of_loss = Grpo::new(sources.options.grpo, Arc::default());
        let columns: Vec<&str> = METRICS.into_iter().chain(of_loss.metrics().iter().copied()).chain(parts()).collect();
        let training_metrics = metrics(Table::Training, &columns)?;
        let validation_metrics = if sources.validation.is_empty() {
            None
        } else {
            let columns: Vec<&str> = EVALUATION.into_iter().chain(parts()).collect();
            Some(metrics(Table::Validation, &columns)?)
        };
        let earlier = checkpoint.map(|checkpoint| checkpoint.metrics(Table::Trajectories)).transpose()?.flatten();
        let trajectories = Trajectories::create(&plan.output(), earlier.as_deref())?;
        let lanes = if resolved.parts > 1 { Some(Lanes::open(resolved.lanes)?) } else { None };
        let saved = (plan.clock.monotonic(), state.step);
        Ok(Self {
            plan,
            sources,
            decoder,
            method,
            resolved,
            state,
            training_metrics,
            validation_metrics,
            optimizer,
            grader,
            beginning,
            trajectories,
            lanes,
            best,
            saved,
        })
    }

    /// Whether there is nothing left to train.
    pub(super) fn is_done(&self) -> bool {
        self.state.stopped_early || self.state.step >= self.resolved.steps
    }

    /// Whether the validation prompts are to be answered before anything else: before the first step, then every
    /// so many steps.
    pub(super) fn evaluation_is_due(&self) -> Result<bool> {
        let step = self.state.step;
        if self.sources.validation.is_empty() || !self.is_shown(step) {
            return Ok(false);
        }
        Ok(step > self.state.validated || (step == 0 && self.trajectories.is_empty()?))
    }

    /// Whether what the policy says after `step` steps is written down.
    fn is_shown(&self, step: u64) -> bool {
        step.is_multiple_of(self.resolved.evaluation_interval) || step == self.resolved.steps
    }

    fn stage(&self) -> Stage<'_> {
        let at_once = SAMPLED_TOKENS * self.state.token_budget / self.sources.longest().max(1);
        Stage {
            decoder: self.decoder,
            tuning: &*self.method,
            tokenizer: &self.sources.tokenizer,
            context_length: self.sources.context_length,
            at_once: at_once.max(1),
            grader: self.grader,
        }
    }

    /// One step; `None` when the run was asked to stop, and then nothing has changed.
    pub(super) fn step(&mut self, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<StepMetrics>> {
        let began = self.plan.clock.monotonic();
        let (plan, sources) = (self.plan, self.sources);
        let (step, settings, options) = (self.state.step, &plan.settings, sources.options);
        let group = options.samples_per_prompt;

        // Answers to the next prompts, and what they are worth.
        let (places, next) = sources.training.deal(plan.seed(), settings.batch_size, self.state.cursor);
        let prompts: Vec<&PromptRecord> = places.iter().map(|place| &sources.training.records[*place]).collect();
        let key = rng::key(plan.seed(), "rollout", step);
        let ways = |place: usize| {
            let key = rng::key(key, "prompt", places[place] as u64);
            (0..group as u64).map(|way| self.sampling(rng::key(key, "sample", way))).collect()
        };
        let Some(played) = self.stage().play(&format!("step-{step}"), &prompts, ways, stop)? else { return Ok(None) };
        let failed = self.check(step, &played, observer)?;

        // What every token of them counts.
        let rewards: Vec<Option<f64>> = played.iter().map(Trajectory::reward).collect();
        let lengths: Vec<usize> = played.iter().map(|one| one.completion.tokens.len()).collect();
        let advantages = advantages(&rewards, group, options.grpo.scale);
        let weights = options.grpo.weights(&lengths, sources.max_answer_tokens);
        let mut samples: Vec<Sampled> = advantages
            .into_iter()
            .zip(weights)
            .map(|(advantage, weight)| Sampled { advantage, weight, ..Sampled::default() })
            .collect();
        let held = options.grpo.kl_beta > 0.0;
        // An answer as good as its group moves nothing, unless something holds it.
        let counting: Vec<usize> = (0..played.len()).filter(|at| held || samples[*at].advantage != 0.0).collect();
        let micros = self.micro_batches(&prompts, &played, &counting);
        if held && !self.look_up_reference(&micros, &mut samples, stop)? {
            return Ok(None);
        }
        if options.updates_per_batch > 1 {
            for (sampled, one) in samples.iter_mut().zip(&played) {
                sampled.old.clone_from(&one.completion.log_probabilities);
            }
        }

        // Towards the better ones.
        let criterion = Grpo::new(options.grpo, samples.into());
        let factor = settings.schedule.factor(step, self.resolved.warmup_steps, self.resolved.steps);
        let learning_rate = settings.learning_rate * factor;
        let mut parts = StepParts::default();
        let (mut loss, mut gradient_norm, mut measured) = (0.0, 0.0, vec![0.0; criterion.metrics().len()]);
        // A stop in the middle of several updates must leave the weights as they were.
        let before = if options.updates_per_batch > 1 { Some(self.copies()?) } else { None };
        for update in 0..options.updates_per_batch {
            let key = rng::key(rng::key(plan.seed(), "dropout", step), "update", update as u64);
            let Some((sums, gradients)) = self.pass(&micros, &criterion, key, stop)? else {
                self.go_back(before)?;
                return Ok(None);
            };
            sums.iter().for_each(|sum| parts += sum.parts);
            loss = sums.iter().map(|sum| sum.loss_sum).sum::<f64>();
            gradient_norm = norm(gradients.sums())?;
            let tokens = sums.iter().map(|sum| sum.count).sum::<usize>().max(1) as f64;
            for (at, value) in measured.iter_mut().enumerate() {
                let sum: f64 = sums.iter().filter_map(|sum| sum.metrics.get(at)).sum();
                *value += sum / tokens / options.updates_per_batch as f64;
            }
            if loss.is_finite() && gradient_norm.is_finite() {
                let scale = clip_factor(gradient_norm, settings.max_gradient_norm);
                self.optimizer.update(self.method.trainables(), gradients.sums(), scale, learning_rate)?;
                self.state.skipped = 0;
            } else {
                self.skip(observer, step, loss)?;
                break;
            }
        }

        // What came of it.
        let now = self.plan.clock.monotonic();
        let seconds = now.duration_since(began).as_secs_f64();
        let tokens: u64 =
            played.iter().map(|one| (prompts[one.prompt].tokens.len() + one.completion.tokens.len()) as u64).sum();
        let labelled: usize = lengths.iter().sum();
        let mut extra = Self::measures(&rewards, &played, group, failed);
        extra.extend(criterion.metrics().iter().copied().zip(measured));
        let columns: Vec<(&str, f64)> = extra.iter().copied().chain(self.part_means(&played)).collect();
        let epoch = self.state.cursor.epoch;
        self.training_metrics.append(step, epoch, &Measured { loss, perplexity: None, extra: &columns })?;
        if sources.validation.is_empty() && (step == 0 || self.is_shown(step + 1)) {
            let file = &sources.training.source.name;
            for one in played.iter().take(SHOWN) {
                self.trajectories.append(step, file, prompts[one.prompt], one)?;
            }
        }
        self.state.step += 1;
        self.state.updates = self.optimizer.updates();
        self.state.epoch = epoch;
        self.state.cursor = next;
        self.state.tokens += tokens;
        if loss.is_finite() {
            self.state.training_loss = Exact(loss);
        }
        Ok(Some(StepMetrics {
            step,
            steps: self.resolved.steps,
            epoch,
            loss,
            extra,
            learning_rate,
            gradient_norm,
            tokens,
            labelled: labelled as u64,
            seconds,
            parts,
        }))
    }

    /// How an answer is sampled.
    fn sampling(&self, seed: u64) -> Sampling {
        let options = &self.sources.options;
        Sampling {
            max_tokens: self.sources.max_answer_tokens,
            temperature: options.grpo.temperature as f32,
            top_p: options.top_p,
            top_k: options.top_k,
            seed,
        }
    }

    /// How many of these answers have no grade; an error when they are too many.
    fn check(&self, step: u64, played: &[Trajectory], observer: &mut dyn Observer) -> Result<usize> {
        let reasons: Vec<&String> = played.iter().filter_map(|one| one.graded.as_ref().err()).collect();
        let (failed, limit) = (reasons.len(), self.sources.options.failure_limit);
        let Some(reason) = reasons.first() else { return Ok(0) };
        let told = format!("the grader failed for {failed} of {} answers in step {step}: {reason}", played.len());
        if failed as f64 > limit * played.len() as f64 {
            return Err(Error::validation(format!(
                "Training was stopped because {told}. At most a share of {limit} may fail (graderFailureLimit). Mend the \
                 grader and create a new job; the best weights so far are kept in {}/.",
                super::BEST_CHECKPOINT
            )));
        }
        observer.warn(&told);
        Ok(failed)
    }

    /// These answers behind their prompts, cut into micro-batches as memory and cores allow.
    fn micro_batches(&self, prompts: &[&PromptRecord], played: &[Trajectory], counting: &[usize]) -> Vec<MicroBatch> {
        let length = |at: &usize| prompts[played[*at].prompt].tokens.len() + played[*at].completion.tokens.len();
        let all: usize = counting.iter().map(length).sum();
        let budget = all.div_ceil(self.resolved.parts.max(1)).clamp(1, self.state.token_budget.max(1));
        let mut micros: Vec<MicroBatch> = Vec::new();
        for at in counting {
            let prompt = &prompts[played[*at].prompt].tokens;
            let tokens = [&prompt[..], &played[*at].completion.tokens].concat();
            if micros.last().is_none_or(|micro| micro.tokens.len() + tokens.len() > budget) {
                micros.push(MicroBatch::default());
            }
            let Some(micro) = micros.last_mut() else { continue };
            let labels = (1..tokens.len()).map(|next| (next >= prompt.len()).then_some(tokens[next]));
            micro.labels.extend(labels.chain([None]));
            micro.lengths.push(tokens.len());
            micro.records.push(*at);
            micro.tokens.extend(tokens);
        }
        micros
    }

    /// Writes the reference's log-probabilities of all answers into `samples`; `false` when the run was asked to
    /// stop.
    fn look_up_reference(&self, micros: &[MicroBatch], samples: &mut [Sampled], stop: &StopFlag) -> Result<bool> {
        let tuning: &dyn Tuning = match &self.beginning {
            Some(beginning) => &**beginning,
            None => &Frozen,
        };
        let temperature = self.sources.options.grpo.temperature;
        for micro in micros {
            if stop.is_raised() {
                return Ok(false);
            }
            let known = log_probabilities(self.decoder, tuning, micro, temperature)?;
            for (record, known) in micro.records.iter().zip(known) {
                samples[*record].reference = Some(known);
            }
        }
        Ok(true)
    }

    /// Forward and backward over every micro-batch; `None` when the run was asked to stop.
    fn pass(
        &self,
        micros: &[MicroBatch],
        criterion: &Grpo,
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
        if let Some(lanes) = &self.lanes {
            let done = lanes.map(micros, |index, micro| {
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
            for (index, micro) in micros.iter().enumerate() {
                if stop.is_raised() {
                    return Ok(None);
                }
                sums.push(one(index, micro, &mut gradients)?);
            }
        }
        Ok(Some((sums, gradients)))
    }

    /// A step whose numbers are not finite changes no weight; too many in a row end the run.
    fn skip(&mut self, observer: &mut dyn Observer, step: u64, loss: f64) -> Result<()> {
        self.state.skipped += 1;
        let what = if loss.is_finite() { "gradients are" } else { "loss is" };
        if self.state.skipped < super::super::run::MAX_SKIPPED {
            observer.warn(&format!("step {step}: the {what} not finite; the step was skipped"));
            return Ok(());
        }
        Err(Error::validation(format!(
            "Training diverged: in step {step}, and the ones before it, the {what} not finite. Try a lower learningRate."
        )))
    }

    /// Copies of weights and moments, to go back to.
    fn copies(&self) -> Result<Copies> {
        let copy = |(name, tensor): (String, Tensor)| Ok((name, tensor.copy()?));
        Ok(Copies {
            weights: self.weights().into_iter().map(copy).collect::<Result<_>>()?,
            moments: self.optimizer.tensors(self.method.trainables())?,
            updates: self.optimizer.updates(),
        })
    }

    fn go_back(&mut self, to: Option<Copies>) -> Result<()> {
        let Some(Copies { weights, moments, updates }) = to else { return Ok(()) };
        for (one, (_, tensor)) in self.method.trainables().iter().zip(&weights) {
            one.var.set(tensor)?;
        }
        self.optimizer.restore(self.method.trainables(), updates, |name, _| {
            let found = moments.iter().find(|(known, _)| known == name);
            found
                .map(|(_, tensor)| tensor.clone())
                .ok_or_else(|| Error::internal(anyhow::anyhow!("{name} has no moments")))
        })
    }

    /// The means that stand in the metrics file, in the order of [`METRICS`].
    fn measures(
        rewards: &[Option<f64>],
        played: &[Trajectory],
        group: usize,
        failed: usize,
    ) -> Vec<(&'static str, f64)> {
        let answers = played.len().max(1) as f64;
        let deviations: Vec<f64> = rewards.chunks(group.max(1)).map(deviation).collect();
        let groups = deviations.len().max(1) as f64;
        let same = deviations.iter().filter(|deviation| **deviation < 1e-8).count() as f64;
        let cut = played.iter().filter(|one| one.completion.stop_reason != StopReason::EndTurn).count() as f64;
        let values = [
            mean(rewards),
            deviations.iter().sum::<f64>() / groups,
            same / groups,
            mean_length(played),
            cut / answers,
            failed as f64,
        ];
        METRICS.into_iter().zip(values).collect()
    }

    /// The mean of each part that the grader names.
    fn part_means(&self, played: &[Trajectory]) -> Vec<(&'static str, f64)> {
        let of = |name: &String| {
            let grades = played.iter().filter_map(|one| one.graded.as_ref().ok());
            let values: Vec<Option<f64>> = grades
                .map(|grade| grade.parts.iter().find(|(part, _)| part == name).map(|(_, value)| *value))
                .collect();
            // The columns carry the names.
            ("", mean(&values))
        };
        self.grader.parts().iter().map(of).collect()
    }

    /// Answers the validation prompts as a server with temperature 0 would, and judges whether the policy still
    /// improves. `None` when the run was asked to stop.
    pub(super) fn evaluate(
        &mut self,
        observer: &mut dyn Observer,
        stop: &StopFlag,
    ) -> Result<Option<ValidationMetrics>> {
        let step = self.state.step;
        let sources = self.sources;
        let greedy = Sampling { temperature: 0.0, ..self.sampling(0) };
        let (mut losses, mut all) = (Vec::new(), Vec::new());
        let mut lines: Vec<(&Prompts, Vec<Trajectory>)> = Vec::new();
        for (file, prompts) in sources.validation.iter().enumerate() {
            let asked: Vec<&PromptRecord> = prompts.records.iter().collect();
            let name = format!("evaluation-{step}-{file}");
            let Some(played) = self.stage().play(&name, &asked, |_| vec![greedy], stop)? else { return Ok(None) };
            let rewards: Vec<Option<f64>> = played.iter().map(Trajectory::reward).collect();
            losses.push(-mean(&rewards));
            all.extend(rewards);
            lines.push((prompts, played));
        }
        let failed = all.iter().filter(|reward| reward.is_none()).count();
        if failed > 0 {
            observer.warn(&format!("the grader failed for {failed} of {} answers of an evaluation", all.len()));
        }
        for (prompts, played) in &lines {
            for one in played.iter().take(SHOWN) {
                self.trajectories.append(step, &prompts.source.name, &prompts.records[one.prompt], one)?;
            }
        }
        let played: Vec<Trajectory> = lines.into_iter().flat_map(|(_, played)| played).collect();
        // Where nothing was graded, nothing is known to be better.
        let loss = if failed == all.len() { f64::NAN } else { -mean(&all) };
        let (last, epoch) = (step.saturating_sub(1), self.state.epoch);
        self.state.validated = step;
        self.state.validation_losses = losses.iter().copied().map(Exact).collect();
        if step > 0 {
            self.judge(loss)?;
        }
        let values = [mean(&all), mean_length(&played), failed as f64];
        let extra: Vec<(&'static str, f64)> = EVALUATION.into_iter().zip(values).collect();
        let columns: Vec<(&str, f64)> = extra.iter().copied().chain(self.part_means(&played)).collect();
        if let Some(metrics) = &mut self.validation_metrics {
            metrics.append(last, epoch, &Measured { loss, perplexity: None, extra: &columns })?;
        }
        Ok(Some(ValidationMetrics { step: last, epoch, loss, extra, losses }))
    }

    /// The best weights are kept; with early stopping, so many evaluations without enough improvement end the run.
    fn judge(&mut self, loss: f64) -> Result<()> {
        let best = self.state.best.map_or(f64::INFINITY, |(Exact(best), _)| best);
        if let Some(early) = self.plan.settings.early_stopping {
            self.state.stale = if loss < best - early.threshold { 0 } else { self.state.stale + 1 };
            self.state.stopped_early = self.state.stale >= early.patience && self.state.step < self.resolved.steps;
        }
        // Of equals the later: it has learned from more answers.
        if loss <= best {
            self.state.best = Some((Exact(loss), self.state.step));
            let copy = |(name, tensor): (String, Tensor)| Ok((name, tensor.copy()?));
            self.best = Some(self.weights().into_iter().map(copy).collect::<Result<_>>()?);
        }
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
        let mut metrics =
            vec![(Table::Training, self.training_metrics.bytes()?), (Table::Trajectories, self.trajectories.bytes()?)];
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
                reference: None,
            },
        )?;
        observer.checkpoint(&dir, step)?;
        self.saved = (self.plan.clock.monotonic(), step);
        Ok(())
    }

    /// The trained weights by name.
    fn weights(&self) -> Vec<(String, Tensor)> {
        self.method.trainables().iter().map(|one| (one.name.clone(), one.var.as_tensor().clone())).collect()
    }

    /// Goes back to the weights with the highest validation reward, if there were evaluations; says after how many
    /// steps the weights were taken.
    pub(super) fn take_best(&self) -> Result<u64> {
        let (Some(best), Some((_, step))) = (&self.best, self.state.best) else { return Ok(self.state.step) };
        for (one, (_, tensor)) in self.method.trainables().iter().zip(best) {
            one.var.set(tensor)?;
        }
        Ok(step)
    }
}

fn mean_length(played: &[Trajectory]) -> f64 {
    let tokens: usize = played.iter().map(|one| one.completion.tokens.len()).sum();
    tokens as f64 / played.len().max(1) as f64
}
