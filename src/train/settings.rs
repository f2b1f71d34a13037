//! Hyperparameters: a map of strings on the wire, checked against the one table and turned into
//! numbers. Values are read leniently, because clients write `"1e-5"`, `"20.0"` and `"Auto"`; names
//! and ranges are not, because a misspelt name that is silently ignored costs a night of training.

mod filled;
mod method;
mod objective;
mod table;

use std::collections::BTreeMap;

pub(crate) use self::filled::Resolved;
pub use self::table::Setting;
use self::table::{FROZEN, FULL, REINFORCED, TABLE, Takes, either};
use super::objective::TrainingObjective;
use crate::error::{Error, Result};
use crate::kernels::has_bf16_products;
use crate::models::{DecoderConfig, Form, Precision};
use crate::tune::TuningMethod;

/// From this many weights in the maps of a layer on, products take most of a step, and bf16 is worth its
/// rounding. The starter has 245,760; a model of 135 million parameters 3,538,944.
const LARGE_LAYER: usize = 1 << 20;

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Down to 0 in a straight line.
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
    /// Unchanged.
    Constant,
}

/// When a run ends because it no longer improves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EarlyStopping {
    /// Least fall of the validation loss below the best that counts as improvement.
    pub threshold: f64,
    /// Validations in a row without improvement after which the run ends.
    pub patience: u64,
}

/// The hyperparameters of a run. `None` stands for a default that depends on the data or the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Passes over the training data; not used when `step_count` is set.
    pub epoch_count: u64,
    /// Optimizer steps, instead of epochs.
    pub step_count: Option<u64>,
    /// Records, or pairs of them, per optimizer step.
    pub batch_size: usize,
    /// Highest learning rate, the multiplier applied.
    pub learning_rate: f64,
    /// Steps in which the learning rate rises from 0.
    pub warmup_steps: Option<u64>,
    /// Course of the learning rate.
    pub schedule: Schedule,
    /// When to end early, if at all.
    pub early_stopping: Option<EarlyStopping>,
    /// Percentage of the training records held out for validation.
    pub eval_percentage: Option<f64>,
    /// What fine-tuning learns from a record.
    pub objective: TrainingObjective,
    /// Who judges answers in reinforcement fine-tuning: a grader as JSON, or where such a file lies.
    pub grader: Option<String>,
    /// What is trained.
    pub method: TuningMethod,
    /// The caller named the method or one of its options: an adapter that is tuned further must be of it.
    pub method_given: bool,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub max_gradient_norm: Option<f64>,
    /// Decay of the mean of the gradients.
    pub adam_beta1: f64,
    /// Decay of the mean of their squares.
    pub adam_beta2: f64,
    /// Added to the root of the mean square.
    pub adam_epsilon: f64,
    /// Longest record in tokens.
    pub max_sequence_length: Option<usize>,
    /// Tokens that go through the model at a time; as many as memory allows when absent.
    pub micro_batch_tokens: Option<usize>,
    /// Steps between validations.
    pub evaluation_interval: Option<u64>,
    /// Steps between checkpoints; by time when absent.
    pub checkpoint_interval: Option<u64>,
    /// How a frozen base lies in memory and is multiplied with; by CPU and size when absent.
    pub compute_precision: Option<Precision>,
    /// How a fully tuned model's weights are stored.
    pub weight_precision: Precision,
    /// Seed of everything drawn.
    pub seed: Option<u64>,
    /// The outputs hold the merged model too.
    pub merged_weights: bool,
    /// The optimizer's moments are kept with the outputs.
    pub save_optimizer_state: bool,
    /// The run goes on with the moments that lie beside the adapter that it starts from.
    pub continue_optimizer_state: bool,
}

impl Settings {
    /// Checks and reads `given`; what is missing comes from the base model's own `defaults`, those for the
    /// objective first (`dpo.learningRateMultiplier`), then those for the method (`prefix.learningRate`), then from
    /// the table. A default learning rate that is not for the objective is one for `sft`, and the others take a part
    /// of it.
    ///
    /// # Errors
    /// `Validation` that names every unknown name, unreadable value and value out of range.
    pub fn parse(given: &BTreeMap<String, String>, defaults: &BTreeMap<String, String>) -> Result<Self> {
        let mut faults = Vec::new();
        for (name, value) in given {
            match TABLE.iter().find(|setting| setting.name == name) {
                None => faults.push(unknown(name)),
                Some(setting) => faults.extend(setting.fault(value)),
            }
        }
        if is_set(given, "stepCount") && is_set(given, "epochCount") {
            faults.push("set stepCount or epochCount, not both".into());
        }
        let word = |name: &str, default: &str| {
            let named = [given, defaults].into_iter().find(|values| is_set(values, name));
            named.map_or(default.into(), |values| values[name].trim().to_ascii_lowercase())
        };
        let (method, objective) = (word("tuningMethod", "lora"), word("trainingObjective", "sft"));
        let algorithm = word("rlAlgorithm", &objective);
        if REINFORCED.contains(&objective.as_str())
            && REINFORCED.contains(&algorithm.as_str())
            && algorithm != objective
        {
            faults.push(format!(
                "rlAlgorithm {algorithm} and trainingObjective {objective} contradict each other: leave one of them out"
            ));
        }
        let of = |name: &str| TABLE.iter().find(|setting| setting.name == name);
        let of_method = |name: &str| of(name).and_then(|one| one.methods);
        let of_objective = |name: &str| of(name).and_then(|one| one.objectives);
        for name in given.keys().filter(|name| is_set(given, name)) {
            if let Some(objectives) = of_objective(name).filter(|all| !all.contains(&objective.as_str())) {
                let allowed = either(objectives);
                // Of two algorithms of one customization type, the caller chose by another name.
                let both =
                    REINFORCED.contains(&objective.as_str()) && objectives.iter().all(|one| REINFORCED.contains(one));
                let chosen_by = if both { "rlAlgorithm" } else { "trainingObjective" };
                faults.push(format!("{name} is an option of {chosen_by} {allowed}, not of {objective}"));
            }
            if let Some(methods) = of_method(name).filter(|methods| !methods.contains(&method.as_str())) {
                faults.push(format!("{name} is an option of tuningMethod {}, not of {method}", either(methods)));
            }
        }
        if !faults.is_empty() {
            return Err(Error::validation(format!("Invalid hyperParameters: {}", faults.join("; "))));
        }
        let applies = |name: &str| {
            of_method(name).is_none_or(|methods| methods.contains(&method.as_str()))
                && of_objective(name).is_none_or(|objectives| objectives.contains(&objective.as_str()))
        };
        let mut merged: BTreeMap<String, String> = defaults
            .iter()
            .filter(|(name, _)| !name.contains('.') && applies(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        for own in [&method, &objective] {
            let prefix = format!("{own}.");
            let own =
                |(name, value): (&String, &String)| Some((name.strip_prefix(&prefix)?.to_string(), value.clone()));
            merged.extend(defaults.iter().filter_map(own));
        }
        if is_set(given, "epochCount") {
            merged.remove("stepCount");
        }
        if is_set(given, "learningRate") {
            // A card's multiplier is of a default rate.
            merged.remove("learningRateMultiplier");
        }
        merged.extend(given.iter().filter(|(_, value)| !is_auto(value)).map(|(k, v)| (k.clone(), v.clone())));
        let method_given = given.keys().any(|name| {
            is_set(given, name)
                && (name == "tuningMethod"
                    || of_method(name).is_some_and(|methods| methods != FULL && methods != FROZEN))
        });
        let settings = Values(&merged).settings()?;
        settings.check_merging(&settings.method)?;
        let rate_is_its_own =
            is_set(given, "learningRate") || defaults.contains_key(&format!("{objective}.learningRate"));
        let factor = if rate_is_its_own { 1.0 } else { settings.objective.rate() };
        Ok(Settings { method_given, learning_rate: factor * settings.learning_rate, ..settings })
    }

    /// Whether what is trained can be merged, where that is asked for.
    ///
    /// # Errors
    /// `Validation` that says why it cannot.
    pub(crate) fn check_merging(&self, method: &TuningMethod) -> Result<()> {
        let why = match (method.unmergeable(), &self.objective) {
            _ if !self.merged_weights => return Ok(()),
            (Some(why), _) => why,
            (None, TrainingObjective::Reward) => "a reward model's head has no place in a model that answers",
            (None, _) => return Ok(()),
        };
        Err(Error::validation(format!(
            "mergedWeights true: what tuningMethod {} learns cannot be merged here: {why}. Leave mergedWeights out.",
            method.name()
        )))
    }

    /// Whether something can be merged into this base, where that is asked for.
    ///
    /// # Errors
    /// `Validation` when it is quantised.
    pub fn check_merging_into(&self, base: &DecoderConfig) -> Result<()> {
        if self.merged_weights && base.nf4 {
            return Err(Error::validation(
                "mergedWeights true: the base model is quantised, and its 4 bits cannot take what is learned. Leave \
                 mergedWeights out, or use the model that it was made from.",
            ));
        }
        Ok(())
    }

    /// How the base of a run with `method` lies in memory.
    pub(crate) fn form(&self, method: &TuningMethod, base: &DecoderConfig) -> Form {
        match method.form() {
            Form::Frozen => {
                let large = base.layer_weights() >= LARGE_LAYER && has_bf16_products();
                match self.compute_precision {
                    Some(Precision::Bf16) => Form::Bf16,
                    None if large => Form::Bf16,
                    _ => Form::Frozen,
                }
            }
            form => form,
        }
    }

    /// Every hyperparameter there is, for documentation.
    pub fn table() -> &'static [Setting] {
        TABLE
    }

    /// The documentation as a Markdown table.
    pub fn markdown() -> String {
        let mut text = String::from("| name | values | default | meaning |\n|---|---|---|---|\n");
        for setting in TABLE {
            let Setting { name, default, meaning, .. } = setting;
            text += &format!("| `{name}` | {} | {default} | {meaning} |\n", setting.range());
        }
        text
    }
}

/// Checked and merged values.
struct Values<'a>(&'a BTreeMap<String, String>);

impl Values<'_> {
    fn settings(&self) -> Result<Settings> {
        let method = self.method()?;
        let learning_rate = self.number("learningRate")?.unwrap_or(match method {
            TuningMethod::Lora(_) | TuningMethod::Qlora(_) => 2e-4,
            TuningMethod::Adapter(_) | TuningMethod::Head => 1e-4,
            TuningMethod::Prefix(_) => 1e-3,
            TuningMethod::Prompt(_) => 1e-2,
            TuningMethod::LlamaAdapter(_) => 9e-3,
            TuningMethod::Full => 2e-5,
        });
        let (threshold, patience) = (self.number("earlyStoppingThreshold")?, self.integer("earlyStoppingPatience")?);
        Ok(Settings {
            epoch_count: self.integer("epochCount")?.unwrap_or(3),
            step_count: self.integer("stepCount")?,
            batch_size: self.size("batchSize")?.unwrap_or(8),
            learning_rate: learning_rate * self.number("learningRateMultiplier")?.unwrap_or(1.0),
            warmup_steps: self.integer("learningRateWarmupSteps")?,
            schedule: match self.word("learningRateSchedule")?.as_deref() {
                Some("cosine") => Schedule::Cosine,
                Some("constant") => Schedule::Constant,
                _ => Schedule::Linear,
            },
            early_stopping: (threshold.is_some() || patience.is_some())
                .then(|| EarlyStopping { threshold: threshold.unwrap_or(0.001), patience: patience.unwrap_or(2) }),
            eval_percentage: self.number("evalPercentage")?,
            objective: self.objective(&method)?,
            grader: self.checked("grader")?.map(str::to_string),
            method,
            method_given: false,
            weight_decay: self.number("weightDecay")?.unwrap_or(0.0),
            max_gradient_norm: Some(self.number("maxGradientNorm")?.unwrap_or(1.0)).filter(|norm| *norm > 0.0),
            adam_beta1: self.number("adamBeta1")?.unwrap_or(0.9),
            adam_beta2: self.number("adamBeta2")?.unwrap_or(0.999),
            adam_epsilon: self.number("adamEpsilon")?.unwrap_or(1e-8),
            max_sequence_length: self.size("maxSequenceLength")?,
            micro_batch_tokens: self.size("microBatchTokens")?,
            evaluation_interval: self.integer("evaluationInterval")?,
            checkpoint_interval: self.integer("checkpointInterval")?,
            compute_precision: self.precision("computePrecision")?,
            weight_precision: self.precision("weightPrecision")?.unwrap_or(Precision::F32),
            seed: self.integer("seed")?,
            merged_weights: self.truth("mergedWeights")?,
            save_optimizer_state: self.truth("saveOptimizerState")?,
            continue_optimizer_state: self.truth("continueOptimizerState")?,
        })
    }

    /// A value that must be readable. The caller's values were checked with all others; a model
    /// card's are checked here.
    fn checked(&self, name: &str) -> Result<Option<&str>> {
        let Some(value) = self.0.get(name).filter(|value| !is_auto(value)) else { return Ok(None) };
        let fault = TABLE.iter().find(|setting| setting.name == name).and_then(|setting| setting.fault(value));
        match fault {
            Some(fault) => {
                Err(Error::validation(format!("The base model's default hyperparameters are wrong: {fault}")))
            }
            None => Ok(Some(value)),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        Ok(self.checked(name)?.and_then(|value| value.trim().parse().ok()))
    }

    fn integer(&self, name: &str) -> Result<Option<u64>> {
        // Checked: a whole number below 2^53, which a float holds exactly.
        Ok(self.number(name)?.map(|value| value as u64))
    }

    fn size(&self, name: &str) -> Result<Option<usize>> {
        Ok(self.integer(name)?.and_then(|value| usize::try_from(value).ok()))
    }

    fn word(&self, name: &str) -> Result<Option<String>> {
        Ok(self.checked(name)?.map(|value| value.trim().to_ascii_lowercase()))
    }

    fn truth(&self, name: &str) -> Result<bool> {
        Ok(self.word(name)?.as_deref() == Some("true"))
    }

    fn precision(&self, name: &str) -> Result<Option<Precision>> {
        Ok(self.word(name)?.map(|word| if word == "bfloat16" { Precision::Bf16 } else { Precision::F32 }))
    }
}

impl Setting {
    /// What is wrong with `value`, if anything.
    fn fault(&self, value: &str) -> Option<String> {
        let text = value.trim();
        let good = is_auto(text)
            || match self.takes {
                Takes::Integer { min, max } => {
                    text.parse::<f64>().is_ok_and(|v| v.fract() == 0.0 && v >= min as f64 && v <= max as f64)
                }
                Takes::Number { min, max } => text.parse::<f64>().is_ok_and(|v| v >= min && v <= max),
                Takes::Boolean => ["true", "false"].contains(&text.to_ascii_lowercase().as_str()),
                Takes::OneOf(values) => values.contains(&text.to_ascii_lowercase().as_str()),
                Takes::SomeOf(values, all) => text
                    .split(',')
                    .map(|name| name.trim().to_ascii_lowercase())
                    .all(|name| name == all || values.contains(&name.as_str())),
                Takes::Text { max } => value.len() <= max,
            };
        (!good).then(|| format!("{} is {value:?} but must be {}", self.name, self.range()))
    }
}

/// Whether the caller set this to something other than `auto`.
fn is_set(given: &BTreeMap<String, String>, name: &str) -> bool {
    given.get(name).is_some_and(|value| !is_auto(value))
}

/// `auto`, as some of Bedrock's models take it, is the same as leaving the name out.
pub(super) fn is_auto(value: &str) -> bool {
    value.trim().eq_ignore_ascii_case("auto")
}

fn unknown(name: &str) -> String {
    let near = TABLE.iter().find(|setting| setting.name.eq_ignore_ascii_case(name));
    match near {
        Some(setting) => format!("{name:?} is not known; did you mean {}?", setting.name),
        None => {
            let names: Vec<_> = TABLE.iter().map(|setting| setting.name).collect();
            format!("{name:?} is not known; known are {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
