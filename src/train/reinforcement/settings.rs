//! What reinforcement fine-tuning is asked for, and how Bedrock's typed hyperparameters become those of the one map.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::objective::GrpoConfig;
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

/// The options of reinforcement fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reinforcement {
    /// The loss.
    pub grpo: GrpoConfig,
    /// Answers sampled for each prompt: the group that they are compared within.
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
/// `rft`, which is `customizationConfig.rftConfig`. The objective is `grpo` unless it is given.
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
        if all.insert(ours.into(), value).is_some() {
            return Err(Error::validation(format!(
                "{ours} stands both in hyperParameters and, as {theirs}, in \
                 customizationConfig.rftConfig.hyperParameters: give it once"
            )));
        }
    }
    let objective = all.entry("trainingObjective".into()).or_insert_with(|| "grpo".into());
    match objective.trim().to_ascii_lowercase().as_str() {
        "grpo" => Ok(all),
        other => Err(Error::validation(format!(
            "trainingObjective {other} is for customizationType FINE_TUNING; REINFORCEMENT_FINE_TUNING has grpo"
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
        assert!(other.message().contains("REINFORCEMENT_FINE_TUNING has grpo"), "{other}");
    }
}
