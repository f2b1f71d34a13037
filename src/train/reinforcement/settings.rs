//! What reinforcement fine-tuning is asked for, and how Bedrock's typed hyperparameters become those of the one map.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::objective::{GrpoConfig, PpoConfig};
use super::super::settings::is_auto;
use crate::error::{Error, Result};

/// How long a model may reason before it answers; chat templates that know the word are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Not long.
    Low,
    /// Neither.
    Medium,
    /// Long.
    High,
}

impl Effort {
    /// All.
    pub const ALL: [Self; 3] = [Self::Low, Self::Medium, Self::High];

    /// The name in hyperparameters and for templates.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// How what a grader says becomes an update, with its options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Algorithm {
    /// By comparing answers to the same prompt (group relative policy optimization).
    Grpo(GrpoConfig),
    /// By comparing an answer with what a value head expected (proximal policy optimization).
    Ppo(PpoConfig),
}

impl Algorithm {
    /// The names in hyperparameters, the default first.
    pub const NAMES: [&'static str; 2] = ["grpo", "ppo"];

    /// The name in hyperparameters.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Grpo(_) => "grpo",
            Self::Ppo(_) => "ppo",
        }
    }

    /// The temperature at which answers are sampled, and at which their probabilities are meant.
    pub fn temperature(&self) -> f64 {
        match self {
            Self::Grpo(config) => config.temperature,
            Self::Ppo(config) => config.temperature,
        }
    }

    /// The option that holds the policy to the reference, where it does.
    pub fn held_by(&self) -> Option<&'static str> {
        match self {
            Self::Grpo(config) => Some("klBeta").filter(|_| config.kl_beta > 0.0),
            Self::Ppo(config) => Some("klCoef").filter(|_| config.kl_coef > 0.0),
        }
    }
}

/// The options of reinforcement fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reinforcement {
    /// What is made of rewards.
    pub algorithm: Algorithm,
    /// Answers sampled for each prompt; of GRPO the group that they are compared within.
    pub samples_per_prompt: usize,
    /// The most tokens of a prompt; what the context leaves when absent.
    pub max_prompt_tokens: Option<usize>,
    /// The most tokens of an answer; 512, or half of a shorter context, when absent.
    pub max_answer_tokens: Option<usize>,
    /// Sample only from the fewest tokens that hold this share of probability.
    pub top_p: f32,
    /// Sample only from this many tokens.
    pub top_k: Option<usize>,
    /// Optimizer updates on the answers of one step.
    pub updates_per_batch: usize,
    /// The share of a step's answers that may stay without a grade.
    pub failure_limit: f64,
    /// What chat templates are told.
    pub effort: Option<Effort>,
}

/// Bedrock's names, and ours where ours is another.
const TYPED: [(&str, &str); 8] = [
    ("epochCount", "epochCount"),
    ("batchSize", "batchSize"),
    ("learningRate", "learningRate"),
    ("maxPromptLength", "maxPromptLength"),
    ("trainingSamplePerPrompt", "trainingSamplePerPrompt"),
    ("inferenceMaxTokens", "inferenceMaxTokens"),
    ("reasoningEffort", "reasoningEffort"),
    ("evalInterval", "evaluationInterval"),
];

/// The hyperparameters of a reinforcement job as one map: those that were `given` as strings, and the typed ones of
/// `rft`, which is `customizationConfig.rftConfig`. The objective is the algorithm that `rlAlgorithm` names.
///
/// # Errors
/// `Validation` when both say the same thing, or the objective is another.
pub fn reinforcement_hyper_parameters(
    given: &BTreeMap<String, String>,
    rft: Option<&Value>,
) -> Result<BTreeMap<String, String>> {
    let mut all = given.clone();
    let typed = rft.and_then(|rft| rft.get("hyperParameters"));
    for (theirs, ours) in TYPED {
        let Some(value) = typed.and_then(|typed| typed.get(theirs)).filter(|value| !value.is_null()) else { continue };
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        if all.insert(ours.into(), value).is_some_and(|earlier| !is_auto(&earlier)) {
            return Err(Error::validation(format!(
                "{ours} stands both in hyperParameters and, as {theirs}, in \
                 customizationConfig.rftConfig.hyperParameters: give it once"
            )));
        }
    }
    // What is no algorithm is told together with all other wrong values.
    let named = all.get("rlAlgorithm").map(|name| name.trim().to_ascii_lowercase());
    let algorithm = Algorithm::NAMES.into_iter().find(|name| Some(*name) == named.as_deref()).unwrap_or("grpo");
    // What is auto is left out.
    let objective = all.entry("trainingObjective".into()).or_insert_with(|| "auto".into());
    if is_auto(objective) {
        *objective = algorithm.into();
    }
    match objective.trim().to_ascii_lowercase().as_str() {
        "grpo" | "ppo" => Ok(all),
        other => Err(Error::validation(format!(
            "trainingObjective {other} is for customizationType FINE_TUNING; REINFORCEMENT_FINE_TUNING has grpo and ppo"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn typed_hyperparameters_join_those_of_the_map_and_nothing_is_said_twice() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let rft = json!({"hyperParameters": {"batchSize": 16, "learningRate": 0.001, "evalInterval": 5,
            "reasoningEffort": "low"}});
        let all = reinforcement_hyper_parameters(&map(&[("loraRank", "4")]), Some(&rft)).unwrap();
        let expected = map(&[
            ("batchSize", "16"),
            ("evaluationInterval", "5"),
            ("learningRate", "0.001"),
            ("loraRank", "4"),
            ("reasoningEffort", "low"),
            ("trainingObjective", "grpo"),
        ]);
        assert_eq!(all, expected);
        let twice = reinforcement_hyper_parameters(&map(&[("batchSize", "4")]), Some(&rft)).unwrap_err();
        assert!(twice.message().contains("batchSize stands both"), "{twice}");
        let other = reinforcement_hyper_parameters(&map(&[("trainingObjective", "dpo")]), None).unwrap_err();
        assert!(other.message().contains("REINFORCEMENT_FINE_TUNING has grpo and ppo"), "{other}");
        let ppo = reinforcement_hyper_parameters(&map(&[("rlAlgorithm", "PPO")]), None).unwrap();
        assert_eq!(ppo["trainingObjective"], "ppo");
    }

    #[test]
    fn what_is_auto_is_left_out_of_a_reinforcement_job_too() {
        let of = |given: &[(&str, &str)], rft: Option<&Value>| {
            let given = given.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            reinforcement_hyper_parameters(&given, rft).unwrap()
        };
        let ppo = [("trainingObjective", "Auto"), ("rlAlgorithm", "ppo")];
        assert_eq!(of(&ppo, None)["trainingObjective"], "ppo");
        let neither = [("trainingObjective", "auto"), ("rlAlgorithm", "auto")];
        assert_eq!(of(&neither, None)["trainingObjective"], "grpo");
        let rft = json!({"hyperParameters": {"batchSize": 16}});
        assert_eq!(of(&[("batchSize", "auto")], Some(&rft))["batchSize"], "16");
    }
}
