//! Everything a reinforcement run reads, checked before anything is computed, and how it fits into memory.

use std::path::{Path, PathBuf};

use super::super::checkpoint::Checkpoint;
use super::super::identity::RunIdentity;
use super::super::planner::{Largest, Question};
use super::super::settings::Resolved;
use super::super::sources::base_digest;
use super::super::{Base, Observer, Plan, StopFlag, TrainingDevice, TrainingObjective, recipe, side_by_side, start};
use super::{Algorithm, Reinforcement};
use crate::data::{Encoder, Prompts, REPORT_FILE, ReadPrompts, Source};
use crate::durable;
use crate::error::{Error, Result};
use crate::models::{DecoderConfig, Form, Tokenizer};
use crate::tune::TuningMethod;

/// The most tokens of an answer when the caller asks for no number.
const ANSWER_TOKENS: usize = 512;

/// What a run reads.
pub(super) struct Sources {
    pub(super) config: DecoderConfig,
    /// What is trained: of the adapter that the run goes on from, if it does.
    pub(super) method: TuningMethod,
    pub(super) options: Reinforcement,
    /// The folder with the tokenizer.
    pub(super) dir: PathBuf,
    pub(super) tokenizer: Tokenizer,
    pub(super) training: Prompts,
    pub(super) validation: Vec<Prompts>,
    /// The longest text, prompt and answer together, in tokens.
    pub(super) context_length: usize,
    /// The most tokens of an answer.
    pub(super) max_answer_tokens: usize,
    /// SHA-256 over the base model's configuration and weights.
    pub(super) base_sha256: String,
    /// All that the run depends on.
    pub(super) run: RunIdentity,
}

impl Sources {
    /// Checks and tokenises the prompts.
    pub(super) fn read(plan: &Plan, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Self> {
        let TrainingObjective::Reinforcement(options) = plan.settings.objective else {
            return Err(Error::internal(anyhow::anyhow!("the plan's objective is not reinforcement")));
        };
        let Base::Directory(dir) = &plan.base else {
            return Err(Error::validation(
                "reinforcement fine-tuning needs a trained model: there is nothing to reward in one that says nothing",
            ));
        };
        let config = DecoderConfig::read(dir)?;
        let method = start::method_of(plan, &config)?;
        method.check(&config)?;
        plan.settings.check_reinforcement(&method, plan.start.is_none())?;

        let longest = config.max_positions - method.virtual_tokens();
        let context_length = plan.settings.max_sequence_length.unwrap_or(longest);
        if context_length > longest {
            return Err(Error::validation(format!(
                "maxSequenceLength is {context_length}, but the model's context length leaves {longest}"
            )));
        }
        let max_answer_tokens = options.max_answer_tokens.unwrap_or(ANSWER_TOKENS.min(context_length / 2));
        if max_answer_tokens >= context_length {
            return Err(Error::validation(format!(
                "inferenceMaxTokens is {max_answer_tokens}, which leaves no room for a prompt: the model's context is \
                 {context_length} tokens"
            )));
        }
        let left = context_length - max_answer_tokens;
        let max_prompt = options.max_prompt_tokens.unwrap_or(left);
        if max_prompt > left {
            return Err(Error::validation(format!(
                "maxPromptLength {max_prompt} and inferenceMaxTokens {max_answer_tokens} are more than the model's \
                 context of {context_length} tokens"
            )));
        }

        let tokenizer = Tokenizer::read(dir)?;
        let mut encoder = Encoder::of(&tokenizer)?;
        if let Some(effort) = options.effort {
            encoder.set_reasoning_effort(effort.name());
        }
        let training = prompts(plan, &encoder, max_prompt, &plan.training, "training", stop)?;
        let mut validation = Vec::with_capacity(plan.validation.len());
        for (index, path) in plan.validation.iter().enumerate() {
            validation.push(prompts(plan, &encoder, max_prompt, path, &format!("validation-{index}"), stop)?);
        }
        if validation.is_empty() && plan.settings.early_stopping.is_some() {
            observer.warn("early stopping has no effect without validation prompts: give a validator");
        }

        let base_sha256 = base_digest(&plan.base)?;
        let held = validation.iter().map(|prompts| prompts.key.clone()).collect();
        let run = RunIdentity::of(plan, &base_sha256, &training.key, held)?;
        Ok(Self {
            config,
            method,
            options,
            dir: dir.clone(),
            tokenizer,
            training,
            validation,
            context_length,
            max_answer_tokens,
            base_sha256,
            run,
        })
    }

    /// Fills in what depends on the data, the model and the memory.
    ///
    /// # Errors
    /// `Validation` with the numbers when the run cannot fit.
    pub(super) fn resolve(&self, plan: &Plan, checkpoint: Option<&Checkpoint>) -> Result<Resolved> {
        let settings = &plan.settings;
        let steps =
            settings.step_count.unwrap_or_else(|| self.training.steps(settings.epoch_count, settings.batch_size));
        let trained = usize::try_from(self.method.trained_values(&self.config)).unwrap_or(usize::MAX);
        let mut resolved = Resolved {
            steps,
            warmup_steps: settings.warmup_steps.unwrap_or(steps * 3 / 100),
            evaluation_interval: settings.evaluation_interval.unwrap_or(steps.div_ceil(10).max(1)),
            max_sequence_length: self.context_length,
            seed: plan.seed(),
            parts: side_by_side::parts(plan.device(), &self.config, trained),
            token_budget: 1,
            keeps_graphs: false,
            lanes: 1,
            pages_optimizer: false,
            form: plan.form(&self.method, &self.config),
        };
        let longest = self.longest() + self.method.virtual_tokens();
        let on_cpu = plan.device() == TrainingDevice::Cpu;
        let question = Question {
            base: &self.config,
            method: &self.method,
            form: resolved.form,
            keeps_best: !self.validation.is_empty(),
            quantizes: resolved.form == Form::Nf4 && !self.config.nf4 && plan.quantized.is_some(),
            cores: if on_cpu { rayon::current_num_threads() } else { 1 },
            parts: resolved.parts,
            slots: 1,
            // A run goes on as it was cut.
            token_budget: checkpoint.map(|checkpoint| checkpoint.state.token_budget).or(settings.micro_batch_tokens),
            longest,
            memory: plan.device().memory(plan.memory)?,
            host: plan.memory.bytes,
            can_page: !on_cpu,
            has_values: matches!(self.options.algorithm, Algorithm::Ppo(_)),
            goes_back: self.options.updates_per_batch > 1,
        };
        let answers = settings.batch_size.min(self.training.records.len()) * self.options.samples_per_prompt;
        let decision = question.decide(|token_budget| {
            // What is cut: up to the budget, or one answer that is longer; of short ones, as many as fit.
            let together = (token_budget / longest.max(1)).clamp(1, answers.max(1));
            let most = token_budget.max(longest);
            let records = answers.min(most / self.shortest().max(1)).max(1);
            Largest {
                rows: most.min(answers * longest) + recipe::soft_tokens(&self.method) * records,
                records,
                micros: answers.div_ceil(together).max(resolved.parts.min(answers)),
                validation_rows: 0,
            }
        })?;
        resolved.take(&decision);
        Ok(resolved)
    }

    /// The fewest tokens of a prompt with an answer.
    fn shortest(&self) -> usize {
        self.training.records.iter().map(|record| record.tokens.len()).min().unwrap_or(0) + 1
    }

    /// The most tokens of a prompt with its answer.
    pub(super) fn longest(&self) -> usize {
        let all = self.validation.iter().chain([&self.training]).flat_map(|prompts| &prompts.records);
        all.map(|record| record.tokens.len()).max().unwrap_or(0) + self.max_answer_tokens
    }
}

/// One data file.
fn prompts(
    plan: &Plan,
    encoder: &Encoder,
    max_tokens: usize,
    path: &Path,
    folder: &str,
    stop: &StopFlag,
) -> Result<Prompts> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !path.is_file() {
        return Err(Error::validation(format!("cannot read the data file {name}: there is no such file"))
            .at(path.display().to_string()));
    }
    let folder = plan.work_dir.join("prepared").join(folder);
    std::fs::create_dir_all(&folder)?;
    let source = Source { path: path.to_path_buf(), name };
    let goes_on = || match stop.is_raised() {
        true => Err(Error::unavailable(anyhow::anyhow!("asked to stop"))),
        false => Ok(()),
    };
    match Prompts::read(&source, encoder, max_tokens, &folder, &goes_on)? {
        ReadPrompts::Ready(prompts) => Ok(prompts),
        ReadPrompts::Refused(report) => {
            durable::copy(&report.path, &plan.output().join(REPORT_FILE))?;
            Err(Error::validation(report.message))
        }
    }
}
