//! A reinforcement run in the middle: the policy, the optimizer, and where it stands.

use std::sync::Arc;

use candle_core::Tensor;

use super::super::checkpoint::{Checkpoint, Exact};
use super::super::learner::{Learner, Steps};
use super::super::metrics::{Measured, Table};
use super::super::objective::{Criterion, Grpo, Sampled, advantages, deviation, mean};
use super::super::optim::{clip_factor, norm};
use super::super::settings::Resolved;
use super::super::{Grader, Observer, Plan, StepMetrics, StepParts, StopFlag, ValidationMetrics};
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
    pub(super) learner: Learner<'a>,
    pub(super) sources: &'a Sources,
    grader: &'a dyn Grader,
    /// The adapter that the run began with, where that is what the policy is held to.
    beginning: Option<Box<dyn Method>>,
    trajectories: Trajectories,
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
        let beginning = match &plan.start {
            Some(dir) if sources.options.grpo.kl_beta > 0.0 => {
                Some(read_adapter(dir, decoder.config(), decoder.device(), false)?.tuning)
            }
            _ => None,
        };
        let parts: Vec<String> = grader.parts().iter().map(|part| format!("rewards/{part}")).collect();
        let parts = || parts.iter().map(String::as_str);
        let of_loss = Grpo::new(sources.options.grpo, Arc::default());
        let training: Vec<&str> = METRICS.into_iter().chain(of_loss.metrics().iter().copied()).chain(parts()).collect();
        let validation: Vec<&str> = EVALUATION.into_iter().chain(parts()).collect();
        let columns = (&training[..], (!sources.validation.is_empty()).then_some(&validation[..]));
        let learner = Learner::resume(plan, (decoder, method), resolved, &sources.run, columns, checkpoint)?;
        let earlier = checkpoint.map(|checkpoint| checkpoint.metrics(Table::Trajectories)).transpose()?.flatten();
        let trajectories = Trajectories::create(&plan.output(), earlier.as_deref())?;
        Ok(Self { learner, sources, grader, beginning, trajectories })
    }

    /// Whether what the policy says after `step` steps is written down.
    fn is_shown(&self, step: u64) -> bool {
        step.is_multiple_of(self.learner.resolved.evaluation_interval) || step == self.learner.resolved.steps
    }

    fn stage(&self) -> Stage<'_> {
        let at_once = SAMPLED_TOKENS * self.learner.state.token_budget / self.sources.longest().max(1);
        Stage {
            decoder: self.learner.decoder,
            tuning: &*self.learner.method,
            tokenizer: &self.sources.tokenizer,
            context_length: self.sources.context_length,
            at_once: at_once.max(1),
            grader: self.grader,
        }
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
        let budget = all.div_ceil(self.learner.resolved.parts.max(1)).clamp(1, self.learner.state.token_budget.max(1));
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
            let known = log_probabilities(self.learner.decoder, tuning, micro, temperature)?;
            for (record, known) in micro.records.iter().zip(known) {
                samples[*record].reference = Some(known);
            }
        }
        Ok(true)
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
        optimizer.restore(method.trainables(), updates, |name, _| {
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
}

impl<'a> Steps<'a> for Run<'a> {
    fn learner(&self) -> &Learner<'a> {
        &self.learner
    }

    /// Before the first step, then every so many steps.
    fn validation_is_due(&self) -> Result<bool> {
        let step = self.learner.state.step;
        if self.sources.validation.is_empty() || !self.is_shown(step) {
            return Ok(false);
        }
        Ok(step > self.learner.state.validated || (step == 0 && self.trajectories.is_empty()?))
    }

    fn step(&mut self, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<StepMetrics>> {
        let (plan, sources) = (self.learner.plan, self.sources);
        let began = plan.clock.monotonic();
        let (step, settings, options) = (self.learner.state.step, &plan.settings, sources.options);
        let group = options.samples_per_prompt;

        // Answers to the next prompts, and what they are worth.
        let (places, next) = sources.training.deal(plan.seed(), settings.batch_size, self.learner.state.cursor);
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
        let mut micros = self.micro_batches(&prompts, &played, &counting);
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
        let learning_rate = self.learner.learning_rate();
        let mut parts = StepParts::default();
        let (mut loss, mut gradient_norm, mut measured) = (0.0, 0.0, vec![0.0; criterion.metrics().len()]);
        // A stop in the middle of several updates must leave the weights as they were.
        let before = if options.updates_per_batch > 1 { Some(self.copies()?) } else { None };
        for update in 0..options.updates_per_batch {
            let key = rng::key(rng::key(plan.seed(), "dropout", step), "update", update as u64);
            let (sums, gradients) = loop {
                match self.learner.pass(&micros, &criterion, key, stop) {
                    Ok(Some(passed)) => break passed,
                    Ok(None) => {
                        self.go_back(before)?;
                        return Ok(None);
                    }
                    Err(error) if error.is_out_of_memory() => {
                        self.learner.cut_smaller(&micros, 1, &error, observer)?;
                        micros = self.micro_batches(&prompts, &played, &counting);
                    }
                    Err(error) => return Err(error),
                }
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
                let Learner { optimizer, method, state, .. } = &mut self.learner;
                optimizer.update(method.trainables(), gradients.sums(), scale, learning_rate)?;
                state.skipped = 0;
            } else {
                let place = format!(", in answers to prompts of {}", sources.training.source.name);
                self.learner.skip(loss, &place, observer)?;
                break;
            }
        }

        // What came of it.
        let now = plan.clock.monotonic();
        let seconds = now.duration_since(began).as_secs_f64();
        let tokens: u64 =
            played.iter().map(|one| (prompts[one.prompt].tokens.len() + one.completion.tokens.len()) as u64).sum();
        let labelled: usize = lengths.iter().sum();
        let mut extra = Self::measures(&rewards, &played, group, failed);
        extra.extend(criterion.metrics().iter().copied().zip(measured));
        let columns: Vec<(&str, f64)> = extra.iter().copied().chain(self.part_means(&played)).collect();
        let epoch = self.learner.state.cursor.epoch;
        self.learner.training_metrics.append(step, epoch, &Measured { loss, perplexity: None, extra: &columns })?;
        if sources.validation.is_empty() && (step == 0 || self.is_shown(step + 1)) {
            let file = &sources.training.source.name;
            for one in played.iter().take(SHOWN) {
                self.trajectories.append(step, file, prompts[one.prompt], one)?;
            }
        }
        let Learner { state, optimizer, resolved, .. } = &mut self.learner;
        state.step += 1;
        state.updates = optimizer.updates();
        state.epoch = epoch;
        state.cursor = next;
        state.tokens += tokens;
        if loss.is_finite() {
            state.training_loss = Exact(loss);
        }
        Ok(Some(StepMetrics {
            step,
            steps: resolved.steps,
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

    /// Answers the validation prompts as a server with temperature 0 would.
    fn validate(&mut self, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<ValidationMetrics>> {
        let step = self.learner.state.step;
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
        let learner = &mut self.learner;
        let (last, epoch) = (step.saturating_sub(1), learner.state.epoch);
        learner.state.validated = step;
        learner.state.validation_losses = losses.iter().copied().map(Exact).collect();
        if step > 0 {
            // Of equals the later: it has learned from more answers.
            let is_best = loss <= learner.best_loss();
            learner.judge(loss);
            if is_best {
                learner.keep_best(loss)?;
            }
        }
        let values = [mean(&all), mean_length(&played), failed as f64];
        let extra: Vec<(&'static str, f64)> = EVALUATION.into_iter().zip(values).collect();
        let columns: Vec<(&str, f64)> = extra.iter().copied().chain(self.part_means(&played)).collect();
        if let Some(metrics) = &mut self.learner.validation_metrics {
            metrics.append(last, epoch, &Measured { loss, perplexity: None, extra: &columns })?;
        }
        Ok(Some(ValidationMetrics { step: last, epoch, loss, extra, losses }))
    }

    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.learner.save(Some((Table::Trajectories, self.trajectories.bytes()?)), None, observer)
    }
}
fn mean_length(played: &[Trajectory]) -> f64 {
    let tokens: usize = played.iter().map(|one| one.completion.tokens.len()).sum();
    tokens as f64 / played.len().max(1) as f64
}
