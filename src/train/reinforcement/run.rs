//! A reinforcement run in the middle: the policy, the optimizer, and where it stands.

use super::super::checkpoint::{Checkpoint, Exact};
use super::super::learner::{Learner, Steps};
use super::super::metrics::{Measured, Table};
use super::super::objective::{Criterion, Grpo, Ppo, mean};
use super::super::settings::Resolved;
use super::super::{Grader, Observer, Plan, StepMetrics, StopFlag, ValidationMetrics};
use super::batch::{self, Batch, Lesson, Taught, mean_length};
use super::reference::log_probabilities;
use super::rollout::{Stage, Trajectory};
use super::sources::Sources;
use super::trajectories::Trajectories;
use super::update::Updated;
use super::{Algorithm, grpo, ppo};
use crate::data::{MicroBatch, PromptRecord, Prompts};
use crate::error::{Error, Result};
use crate::infer::Sampling;
use crate::models::{Decoder, Frozen, Tuning};
use crate::rng;
use crate::tune::{ActorCritic, Method, read_adapter};

/// Keys and values of so many times a micro-batch's tokens stand in memory while answers are sampled.
const SAMPLED_TOKENS: usize = 4;
/// Answers of one evaluation that are written down for reading.
const SHOWN: usize = 64;

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
        let algorithm = sources.options.algorithm;
        let beginning = match &plan.start {
            Some(dir) if algorithm.held_by().is_some() => {
                Some(read_adapter(dir, decoder.config(), decoder.device(), false)?.tuning)
            }
            _ => None,
        };
        let method = match algorithm {
            Algorithm::Grpo(_) => method,
            Algorithm::Ppo(_) => Box::new(ActorCritic::new(method, decoder.config().hidden_size, decoder.device())?),
        };
        let parts: Vec<String> = grader.parts().iter().map(|part| format!("rewards/{part}")).collect();
        let parts = || parts.iter().map(String::as_str);
        let own = algorithm_metrics(algorithm);
        let training: Vec<&str> = batch::METRICS.into_iter().chain(own).chain(parts()).collect();
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
            temperature: options.algorithm.temperature() as f32,
            top_p: options.top_p,
            top_k: options.top_k,
            seed,
        }
    }

    /// Tells how many of these answers have no grade; an error when they are too many.
    fn check(&self, step: u64, played: &[Trajectory], observer: &mut dyn Observer) -> Result<()> {
        let reasons: Vec<&String> = played.iter().filter_map(|one| one.graded.as_ref().err()).collect();
        let (failed, limit) = (reasons.len(), self.sources.options.failure_limit);
        let Some(reason) = reasons.first() else { return Ok(()) };
        let told = format!("the grader failed for {failed} of {} answers in step {step}: {reason}", played.len());
        if failed as f64 > limit * played.len() as f64 {
            return Err(Error::validation(format!(
                "Training was stopped because {told}. At most a share of {limit} may fail (graderFailureLimit). Mend the \
                 grader and create a new job; the best weights so far are kept in {}/.",
                super::BEST_CHECKPOINT
            )));
        }
        observer.warn(&told);
        Ok(())
    }

    /// What these answers teach; `None` when the run was asked to stop.
    fn lesson(&mut self, batch: &Batch<'_>, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<Lesson>> {
        let algorithm = self.sources.options.algorithm;
        let counting = match algorithm {
            Algorithm::Grpo(config) => grpo::counting(config, batch),
            Algorithm::Ppo(_) => ppo::counting(batch),
        };
        loop {
            let micros = self.micro_batches(batch, &counting);
            let taught = match algorithm {
                Algorithm::Grpo(config) => grpo::lesson(self, config, batch, &micros, stop),
                Algorithm::Ppo(config) => ppo::lesson(self, config, batch, &micros, stop),
            };
            match taught {
                Ok(Some(Taught { criterion, measured })) => {
                    return Ok(Some(Lesson { criterion, counting, micros, measured }));
                }
                Ok(None) => return Ok(None),
                Err(error) if error.is_out_of_memory() => self.learner.cut_smaller(&micros, 1, &error, observer)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// These answers behind their prompts, cut into micro-batches as memory and cores allow.
    pub(super) fn micro_batches(&self, batch: &Batch<'_>, counting: &[usize]) -> Vec<MicroBatch> {
        batch.micro_batches(counting, self.learner.resolved.parts, self.learner.state.token_budget)
    }

    /// The reference's log-probabilities of each of so many answers, by their places; empty for those that are in none
    /// of `micros`. `None` when the run was asked to stop.
    pub(super) fn reference(
        &self,
        micros: &[MicroBatch],
        answers: usize,
        stop: &StopFlag,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        let tuning: &dyn Tuning = match &self.beginning {
            Some(beginning) => &**beginning,
            None => &Frozen,
        };
        let temperature = self.sources.options.algorithm.temperature();
        let decoder = self.learner.decoder;
        let found = self.learner.look(micros, stop, |micro| log_probabilities(decoder, tuning, micro, temperature))?;
        let Some(found) = found else { return Ok(None) };
        let mut all = vec![Vec::new(); answers];
        for (record, known) in micros.iter().flat_map(|micro| &micro.records).zip(found.into_iter().flatten()) {
            all[*record] = known;
        }
        Ok(Some(all))
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
        let (step, options) = (self.learner.state.step, sources.options);
        let group = options.samples_per_prompt;

        // Answers to the next prompts, and what they are worth.
        let (places, next) = sources.training.deal(plan.seed(), plan.settings.batch_size, self.learner.state.cursor);
        let prompts: Vec<&PromptRecord> = places.iter().map(|place| &sources.training.records[*place]).collect();
        let key = rng::key(plan.seed(), "rollout", step);
        let ways = |place: usize| {
            let key = rng::key(key, "prompt", places[place] as u64);
            (0..group as u64).map(|way| self.sampling(rng::key(key, "sample", way))).collect()
        };
        let Some(played) = self.stage().play(&format!("step-{step}"), &prompts, ways, stop)? else { return Ok(None) };
        self.check(step, &played, observer)?;
        let batch = Batch::new(prompts, played, group);

        // What every token of them counts, and towards the better ones.
        let learning_rate = self.learner.learning_rate();
        let Some(lesson) = self.lesson(&batch, observer, stop)? else { return Ok(None) };
        let mut extra = batch.measures();
        extra.extend(lesson.measured.iter().copied());
        let Some(updated) = self.update(&batch, lesson, observer, stop)? else { return Ok(None) };
        let Updated { is_good, loss, gradient_norm, measured, parts } = updated;
        extra.extend(measured);

        // What came of it.
        let now = plan.clock.monotonic();
        let seconds = now.duration_since(began).as_secs_f64();
        let tokens = batch.all_tokens() as u64;
        let labelled: usize = batch.lengths().iter().sum();
        let columns: Vec<(&str, f64)> = extra.iter().copied().chain(self.part_means(&batch.answers)).collect();
        let epoch = self.learner.state.cursor.epoch;
        self.learner.training_metrics.append(step, epoch, &Measured { loss, perplexity: None, extra: &columns })?;
        if sources.validation.is_empty() && (step == 0 || self.is_shown(step + 1)) {
            let file = &sources.training.source.name;
            for one in batch.answers.iter().take(SHOWN) {
                self.trajectories.append(step, file, batch.prompts[one.prompt], one)?;
            }
        }
        let Learner { state, optimizer, resolved, .. } = &mut self.learner;
        state.step += 1;
        state.updates = optimizer.updates();
        state.epoch = epoch;
        state.cursor = next;
        state.tokens += tokens;
        if is_good {
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

/// The columns that are an algorithm's own: what it measures of a batch, then what its criterion does.
fn algorithm_metrics(algorithm: Algorithm) -> Vec<&'static str> {
    let of = |batch: &[&'static str], criterion: &dyn Criterion| [batch, criterion.metrics()].concat();
    match algorithm {
        Algorithm::Grpo(config) => of(&grpo::METRICS, &Grpo::new(config, Vec::new().into())),
        Algorithm::Ppo(config) => of(&ppo::METRICS, &Ppo::new(config, Vec::new())),
    }
}
