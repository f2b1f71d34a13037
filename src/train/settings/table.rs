//! The one table of hyperparameters: what may be set, within which range, and what it means. The
//! checks, the `--help` text and the documentation are all made from it.

use super::super::objective::{DpoLoss, TrainingObjective};
use super::super::reinforcement::Algorithm;
use crate::tune::TuningMethod;

/// One hyperparameter.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// As written in `hyperParameters`.
    pub name: &'static str,
    /// What values it takes.
    pub(super) takes: Takes,
    /// The default in words or as a value.
    pub default: &'static str,
    /// One line of documentation.
    pub meaning: &'static str,
    /// The tuning methods that it is an option of; of the run itself when absent.
    pub methods: Option<&'static [&'static str]>,
    /// The training objectives that it is an option of; of all when absent.
    pub objectives: Option<&'static [&'static str]>,
}

/// What values a hyperparameter takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Takes {
    Integer {
        min: u64,
        max: u64,
    },
    Number {
        min: f64,
        max: f64,
    },
    Boolean,
    OneOf(&'static [&'static str]),
    /// Names separated by commas, or a word that stands for all.
    SomeOf(&'static [&'static str], &'static str),
    /// Any text of at most so many bytes.
    Text {
        max: usize,
    },
}

const LORA: &[&str] = &["lora", "qlora"];
const ADAPTER: &[&str] = &["adapter"];
const VIRTUAL: &[&str] = &["prefix", "prompt"];
const PREFIX: &[&str] = &["prefix"];
const LLAMA_ADAPTER: &[&str] = &["llama_adapter"];
pub(super) const FULL: &[&str] = &["full"];
/// The methods whose base is frozen and not in 4 bits.
pub(super) const FROZEN: &[&str] = &["lora", "adapter", "prefix", "prompt", "llama_adapter", "head"];

const DPO: &[&str] = &["dpo"];
const GRPO: &[&str] = &["grpo"];
const PPO: &[&str] = &["ppo"];
/// The objectives of customizationType REINFORCEMENT_FINE_TUNING.
pub(super) const REINFORCED: &[&str] = &Algorithm::NAMES;
const DPO_LOSSES: &[&str] =
    &[DpoLoss::ALL[0].name(), DpoLoss::ALL[1].name(), DpoLoss::ALL[2].name(), DpoLoss::ALL[3].name()];

/// The projections of a decoder layer that LoRA can be put on, by their names in `transformers`. The fused
/// ones stand last: only Phi-3 has them.
pub(super) const PROJECTIONS: &[&str] =
    &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"];

/// All of them, Bedrock's own first.
pub(super) const TABLE: &[Setting] = &[
    // Bedrock's names with Bedrock's meaning.
    integer("epochCount", 1, 1000, "3", "passes over the training data"),
    integer(
        "batchSize",
        1,
        8192,
        "8",
        "records (of preferences: pairs; of plain documents: rows of maxSequenceLength tokens) per optimizer step",
    ),
    number(
        "learningRate",
        1e-8,
        1.0,
        "2e-4 for lora and qlora, 1e-4 for adapter and head, 1e-3 for prefix, 1e-2 for prompt, 9e-3 for llama_adapter, \
         2e-5 for full; a twentieth of that for trainingObjective dpo, grpo and ppo, half for reward",
        "highest learning rate of the schedule",
    ),
    number("learningRateMultiplier", 0.01, 100.0, "1", "multiplies the learning rate"),
    integer("learningRateWarmupSteps", 0, 100_000, "3 % of the steps", "steps in which the learning rate rises from 0"),
    integer("stepCount", 1, 10_000_000, "none", "optimizer steps, instead of epochCount"),
    number(
        "earlyStoppingThreshold",
        0.0,
        1.0,
        "0.001 once earlyStoppingPatience is set",
        "least improvement of the validation loss that counts as one",
    ),
    integer(
        "earlyStoppingPatience",
        1,
        1000,
        "2 once earlyStoppingThreshold is set",
        "validations in a row without improvement after which training ends, with the best weights",
    ),
    number(
        "evalPercentage",
        1.0,
        50.0,
        "none",
        "part of the training records held out for validation when no validation data is given",
    ),
    // Ours, all optional.
    one_of(
        "tuningMethod",
        &TuningMethod::NAMES,
        "lora",
        "what is trained: low-rank updates (over a base in 4 bits: qlora), bottleneck adapters, a prefix of keys and \
         values, a soft prompt, gated prompts (llama_adapter), the output head, or every weight",
    ),
    one_of(
        "trainingObjective",
        &TrainingObjective::NAMES,
        "sft",
        "what fine-tuning learns: the answers of its records (sft), to prefer one of two answers (dpo), or to tell by a \
         number which of two is better (reward); reinforcement fine-tuning has grpo and ppo, what a grader rewards",
    ),
    one_of("dpoLoss", DPO_LOSSES, "sigmoid", "the form of the loss over a pair, by trl's names").for_objective(DPO),
    number("dpoBeta", 1e-4, 100.0, "0.1", "how much the model is held to the reference").for_objective(DPO),
    number(
        "labelSmoothing",
        0.0,
        0.499,
        "0",
        "share of the pairs that is taken to be labelled the wrong way round; of dpoLoss sigmoid and robust",
    )
    .for_objective(DPO),
    one_of(
        "rlAlgorithm",
        REINFORCED,
        "grpo",
        "what reinforcement fine-tuning makes of rewards: answers to one prompt are compared with each other (grpo), or \
         with what a value head expected (ppo)",
    )
    .for_objective(REINFORCED),
    setting(
        "grader",
        Takes::Text { max: 65_536 },
        "graderConfig.lambdaGrader",
        "who judges sampled answers: a grader as JSON, or the s3:// address of such a file",
    )
    .for_objective(REINFORCED),
    integer(
        "trainingSamplePerPrompt",
        1,
        64,
        "8; 1 for ppo",
        "answers sampled for each prompt; grpo compares them with each other and needs at least 2",
    )
    .for_objective(REINFORCED),
    integer(
        "inferenceMaxTokens",
        1,
        1_048_576,
        "512, or half of a shorter context",
        "tokens of a sampled answer, at most",
    )
    .for_objective(REINFORCED),
    integer("maxPromptLength", 1, 1_048_576, "what the context leaves", "tokens of a prompt, at most")
        .for_objective(REINFORCED),
    one_of("reasoningEffort", &["low", "medium", "high"], "none", "what chat templates that ask for it are told")
        .for_objective(REINFORCED),
    number("clipEpsilon", 0.0, 1.0, "0.2", "how far below 1 (ppo: and above) the ratio to the sampling policy counts")
        .for_objective(REINFORCED),
    number("clipEpsilonHigh", 0.0, 10.0, "clipEpsilon", "how far above 1 it counts").for_objective(GRPO),
    number("klBeta", 0.0, 100.0, "0", "how much the policy is held to the reference").for_objective(GRPO),
    one_of("advantageScaling", &["group", "batch", "none"], "group", "whose deviation rewards are divided by")
        .for_objective(GRPO),
    one_of(
        "lossAggregation",
        &["dapo", "grpo", "dr_grpo"],
        "dapo",
        "what tokens are divided by: the number of all, the length of their answer, or a constant",
    )
    .for_objective(GRPO),
    number("klCoef", 0.0, 100.0, "0.05", "what a nat of divergence from the reference takes from a token's reward")
        .for_objective(PPO),
    number("valueClipEpsilon", 0.0, 1e6, "0.2", "how far from what it was before the updates a value counts")
        .for_objective(PPO),
    number("valueLossCoef", 0.0, 100.0, "0.1", "what the loss of the values counts beside that of the policy")
        .for_objective(PPO),
    number("gaeGamma", 0.0, 1.0, "1", "what a reward one token later counts").for_objective(PPO),
    number("gaeLambda", 0.0, 1.0, "0.95", "how far advantages look at rewards (1) rather than at the next value (0)")
        .for_objective(PPO),
    number("samplingTemperature", 0.01, 10.0, "1", "the temperature that answers are sampled at")
        .for_objective(REINFORCED),
    number("samplingTopP", 0.01, 1.0, "1", "sample from the fewest tokens that hold this share of probability")
        .for_objective(REINFORCED),
    integer("samplingTopK", 1, 1_048_576, "all", "sample from this many tokens").for_objective(REINFORCED),
    integer("updatesPerBatch", 1, 64, "1; 4 for ppo", "optimizer updates on the answers of one step")
        .for_objective(REINFORCED),
    number("graderFailureLimit", 0.0, 1.0, "0.1", "share of a step's answers that may stay without a grade")
        .for_objective(REINFORCED),
    integer("loraRank", 1, 1024, "16", "rank of the adapters").of(LORA),
    number("loraAlpha", 1e-3, 65_536.0, "twice the rank", "the adapters' output is scaled by alpha / rank").of(LORA),
    number("loraDropout", 0.0, 0.95, "0", "part of the adapters' input dropped while training").of(LORA),
    setting(
        "loraTargetModules",
        Takes::SomeOf(PROJECTIONS, "all-linear"),
        "all-linear",
        "the projections that get an adapter",
    )
    .of(LORA),
    setting("rsLora", Takes::Boolean, "false", "scale by alpha / sqrt(rank) instead").of(LORA),
    setting("dora", Takes::Boolean, "false", "train the length of every row of the tuned weights by itself (DoRA)")
        .of(LORA),
    one_of(
        "adapterArchitecture",
        &["pfeiffer", "houlsby", "parallel"],
        "pfeiffer",
        "where bottlenecks stand: after the MLP on the sum, after attention and MLP on their results, or beside the MLP",
    )
    .of(ADAPTER),
    number(
        "adapterReductionFactor",
        1.0,
        4096.0,
        "16; 2 for parallel",
        "how many times narrower than the model a bottleneck is",
    )
    .of(ADAPTER),
    one_of(
        "adapterNonLinearity",
        &["relu", "swish", "gelu", "tanh"],
        "swish for houlsby, else relu",
        "what stands between a bottleneck's two maps",
    )
    .of(ADAPTER),
    integer("virtualTokens", 1, 4096, "20", "positions that are trained in front of every record").of(VIRTUAL),
    one_of(
        "virtualTokensInit",
        &["text", "vocabulary", "random"],
        "text",
        "what they begin as: a text, tokens drawn from the vocabulary, or numbers from N(0, 1)",
    )
    .of(VIRTUAL),
    setting(
        "virtualTokensText",
        Takes::Text { max: 16_384 },
        "the first training record",
        "the text that they begin as, repeated or cut",
    )
    .of(VIRTUAL),
    setting("prefixProjection", Takes::Boolean, "false", "a small net makes the prefix while training").of(PREFIX),
    integer("prefixHiddenSize", 1, 65_536, "the model's width", "width inside that net").of(PREFIX),
    integer("adapterLength", 1, 1024, "10", "gated prompts in a layer").of(LLAMA_ADAPTER),
    integer("adapterLayers", 1, 1024, "all but the lowest sixteenth", "how many layers from the top have them")
        .of(LLAMA_ADAPTER),
    one_of(
        "learningRateSchedule",
        &["linear", "cosine", "constant"],
        "linear",
        "course of the learning rate after the warm-up",
    ),
    number("weightDecay", 0.0, 1.0, "0", "decoupled weight decay (AdamW)"),
    number("maxGradientNorm", 0.0, 1e6, "1", "gradients are scaled down to this norm; 0 leaves them"),
    number("adamBeta1", 0.0, 0.9999, "0.9", "decay of the mean of the gradients"),
    number("adamBeta2", 0.0, 0.999_999, "0.999", "decay of the mean of their squares"),
    number("adamEpsilon", 1e-16, 1.0, "1e-8", "added to the root of the mean square"),
    integer(
        "maxSequenceLength",
        8,
        1_048_576,
        "the model's context length; at most 2048 for continued pre-training",
        "longest record in tokens; of plain documents, what a row of the batch holds",
    ),
    integer(
        "microBatchTokens",
        1,
        16_777_216,
        "4096, or what fits into memory",
        "tokens that go through the model at a time; changes memory and speed, not the result",
    ),
    integer("evaluationInterval", 1, 10_000_000, "a tenth of the run", "steps between validations"),
    integer("checkpointInterval", 1, 10_000_000, "30 seconds, at first 1, 2, 4, 8 and 16", "steps between checkpoints"),
    one_of(
        "computePrecision",
        &["float32", "bfloat16"],
        "bfloat16 where the CPU is fast at it and a layer of the base has a million weights or more, else float32",
        "how the frozen base lies in memory and is multiplied with; a CPU without AMX or AMD's AVX512-BF16 makes the \
         products in float32, and bfloat16 only halves the base's memory",
    )
    .of(FROZEN),
    one_of("weightPrecision", &["float32", "bfloat16"], "float32", "how a fully tuned model's weights are stored")
        .of(FULL),
    setting(
        "mergedWeights",
        Takes::Boolean,
        "false",
        "also write the model with what was learned put into its weights, in 16 bits (lora, qlora and head)",
    ),
    setting(
        "saveOptimizerState",
        Takes::Boolean,
        "false",
        "keep the optimizer's moments with the outputs, so that a later job can go on with them",
    ),
    setting(
        "continueOptimizerState",
        Takes::Boolean,
        "false",
        "go on with the moments of the custom model that is the base; its job must have kept them",
    ),
    integer(
        "seed",
        0,
        (1 << 53) - 1,
        "random, recorded in the manifest",
        "seed of shuffling, dropout and initial weights",
    ),
];

const fn setting(name: &'static str, takes: Takes, default: &'static str, meaning: &'static str) -> Setting {
    Setting { name, takes, default, meaning, methods: None, objectives: None }
}

const fn integer(name: &'static str, min: u64, max: u64, default: &'static str, meaning: &'static str) -> Setting {
    setting(name, Takes::Integer { min, max }, default, meaning)
}

const fn number(name: &'static str, min: f64, max: f64, default: &'static str, meaning: &'static str) -> Setting {
    setting(name, Takes::Number { min, max }, default, meaning)
}

const fn one_of(
    name: &'static str,
    values: &'static [&'static str],
    default: &'static str,
    meaning: &'static str,
) -> Setting {
    setting(name, Takes::OneOf(values), default, meaning)
}

impl Setting {
    const fn of(self, methods: &'static [&'static str]) -> Self {
        Self { methods: Some(methods), ..self }
    }

    const fn for_objective(self, objectives: &'static [&'static str]) -> Self {
        Self { objectives: Some(objectives), ..self }
    }

    /// The values it takes, in words: `1 to 1000`, `linear, cosine or constant`.
    pub fn range(&self) -> String {
        match self.takes {
            Takes::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Takes::Number { min, max } => format!("a number from {} to {}", plain(min), plain(max)),
            Takes::Boolean => "true or false".into(),
            Takes::OneOf(values) => either(values),
            Takes::SomeOf(values, all) => format!("{all}, or some of {} separated by commas", values.join(", ")),
            Takes::Text { max } => format!("a text of at most {max} bytes"),
        }
    }
}

/// Small and large numbers in the way people write them.
fn plain(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:e}") } else { value.to_string() }
}

pub(super) fn either(values: &[&str]) -> String {
    match values {
        [] => String::new(),
        [one] => (*one).into(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
