//! A grader as JSON, in the shapes of OpenAI's graders. What cannot be graded here is refused by its name.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::formula::Formula;
use super::template::Template;
use crate::error::{Error, Result};

/// The largest grader, as JSON in bytes.
pub const MAX_GRADER_BYTES: u64 = 256 << 10;
/// Graders within a multi grader.
const MAX_GRADERS: usize = 64;

/// A grader, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// 1 when one text stands in some relation to another, else 0.
    StringCheck(StringCheck),
    /// How much two texts are alike, from 0 to 1.
    TextSimilarity(TextSimilarity),
    /// Ours: what a reward model says of the conversation.
    RewardModel {
        /// The custom model, by name or ARN.
        model: String,
    },
    /// Several graders and a formula over what they say.
    Multi(Multi),
}

/// The relation that a `string_check` looks for.
#[derive(Debug, Clone, PartialEq)]
pub struct StringCheck {
    pub(super) operation: Operation,
    pub(super) input: Template,
    pub(super) reference: Template,
}

/// The texts that a `text_similarity` compares, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSimilarity {
    pub(super) metric: Metric,
    pub(super) input: Template,
    pub(super) reference: Template,
}

/// Named graders with their formula.
#[derive(Debug, Clone, PartialEq)]
pub struct Multi {
    pub(super) graders: Vec<(String, Spec)>,
    pub(super) formula: Formula,
}

/// What a `string_check` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// The input is the reference.
    Eq,
    /// The input is not the reference.
    #[serde(alias = "neq")]
    Ne,
    /// The input contains the reference.
    Like,
    /// The same whatever the case of the letters.
    Ilike,
}

/// How a `text_similarity` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Characters in common.
    FuzzyMatch,
    /// Precision of runs of words.
    Bleu,
    /// Precision or recall of runs of words, whichever is less.
    Gleu,
    /// F-measure over runs of so many words.
    Rouge(usize),
    /// F-measure over the longest common subsequence of words.
    RougeL,
}

impl Metric {
    fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "fuzzy_match" => Self::FuzzyMatch,
            "bleu" => Self::Bleu,
            "gleu" => Self::Gleu,
            "rouge_1" => Self::Rouge(1),
            "rouge_2" => Self::Rouge(2),
            "rouge_3" => Self::Rouge(3),
            "rouge_4" => Self::Rouge(4),
            "rouge_5" => Self::Rouge(5),
            "rouge_l" => Self::RougeL,
            "cosine" => return Err(refused("evaluation_metric cosine needs an embedding model")),
            "meteor" => return Err(refused("evaluation_metric meteor needs a dictionary of synonyms")),
            other => return Err(refused(&format!("evaluation_metric {other:?} is not known"))),
        })
    }
}

fn refused(what: &str) -> Error {
    Error::validation(format!(
        "{what}; there are fuzzy_match, bleu, gleu, rouge_1, rouge_2, rouge_3, rouge_4, rouge_5 and rouge_l"
    ))
}

/// A grader as it is written.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Written {
    StringCheck {
        #[serde(rename = "name")]
        _name: Option<String>,
        operation: Operation,
        input: String,
        reference: String,
    },
    TextSimilarity {
        #[serde(rename = "name")]
        _name: Option<String>,
        evaluation_metric: String,
        input: String,
        reference: String,
        /// Evaluations judge by it; a reward is the score itself.
        #[serde(rename = "pass_threshold")]
        _pass_threshold: Option<f64>,
    },
    RewardModel {
        #[serde(rename = "name")]
        _name: Option<String>,
        model: String,
    },
    Multi {
        #[serde(rename = "name")]
        _name: Option<String>,
        graders: BTreeMap<String, Value>,
        calculate_output: String,
    },
}

impl Spec {
    /// Reads a grader.
    ///
    /// # Errors
    /// `Validation` that says what cannot be used.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() as u64 > MAX_GRADER_BYTES {
            return Err(Error::validation(format!(
                "The grader takes {} bytes; it may take at most {MAX_GRADER_BYTES}",
                text.len()
            )));
        }
        let value: Value = serde_json::from_str(text)
            .map_err(|cause| Error::validation(format!("The grader is not JSON: {cause}")))?;
        Self::read(&value, true).map_err(|error| Error::validation(format!("The grader: {}", error.message())))
    }

    fn read(value: &Value, outermost: bool) -> Result<Self> {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
        if matches!(kind, "python" | "score_model" | "label_model" | "endpoint") {
            return Err(Error::validation(format!(
                "type {kind} is not run here; put such a grader behind the Lambda API and name it in \
                 graderConfig.lambdaGrader"
            )));
        }
        let written = Written::deserialize(value).map_err(|cause| {
            Error::validation(format!(
                "{cause}; there are string_check {{operation, input, reference}}, text_similarity {{evaluation_metric, \
                 input, reference}}, reward_model {{model}} and multi {{graders, calculate_output}}"
            ))
        })?;
        match written {
            Written::StringCheck { operation, input, reference, .. } => Ok(Self::StringCheck(StringCheck {
                operation,
                input: Template::parse(&input)?,
                reference: Template::parse(&reference)?,
            })),
            Written::TextSimilarity { evaluation_metric, input, reference, .. } => {
                Ok(Self::TextSimilarity(TextSimilarity {
                    metric: Metric::named(&evaluation_metric)?,
                    input: Template::parse(&input)?,
                    reference: Template::parse(&reference)?,
                }))
            }
            Written::RewardModel { model, .. } => Ok(Self::RewardModel { model }),
            Written::Multi { .. } if !outermost => Err(Error::validation("a multi grader holds no other multi grader")),
            Written::Multi { graders, .. } if graders.len() > MAX_GRADERS => Err(Error::validation(format!(
                "a multi grader holds at most {MAX_GRADERS} graders, not {}",
                graders.len()
            ))),
            Written::Multi { graders, calculate_output, .. } => {
                let names: Vec<String> = graders.keys().cloned().collect();
                let formula = Formula::parse(&calculate_output, &names)?;
                let read = |(name, grader): (&String, &Value)| {
                    let spec = Self::read(grader, false);
                    let spec = spec.map_err(|error| Error::validation(format!("{name}: {}", error.message())))?;
                    Ok((name.clone(), spec))
                };
                Ok(Self::Multi(Multi { graders: graders.iter().map(read).collect::<Result<_>>()?, formula }))
            }
        }
    }

    /// The custom models that it asks, by name or ARN.
    pub fn reward_models(&self) -> Vec<&str> {
        match self {
            Self::RewardModel { model } => vec![model],
            Self::Multi(multi) => multi.graders.iter().flat_map(|(_, grader)| grader.reward_models()).collect(),
            Self::StringCheck(_) | Self::TextSimilarity(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Spec::parse(text).unwrap_err().message().to_string()
    }

    #[test]
    fn graders_are_read_in_openais_shapes() {
        let check = r#"{"type": "string_check", "name": "n", "operation": "ilike", "input": "{{sample.output_text}}",
            "reference": "{{item.reference_answer}}"}"#;
        assert!(matches!(Spec::parse(check).unwrap(), Spec::StringCheck(one) if one.operation == Operation::Ilike));
        let similar = r#"{"type": "text_similarity", "name": "n", "evaluation_metric": "rouge_3", "pass_threshold": 0.5,
            "input": "{{sample.output_text}}", "reference": "x"}"#;
        assert!(matches!(Spec::parse(similar).unwrap(), Spec::TextSimilarity(one) if one.metric == Metric::Rouge(3)));
        let multi = format!(
            r#"{{"type": "multi", "graders": {{"a": {check}, "b": {similar},
                "c": {{"type": "reward_model", "model": "m"}}}}, "calculate_output": "a + 0.5 * b + c"}}"#
        );
        assert_eq!(Spec::parse(&multi).unwrap().reward_models(), ["m"]);
    }

    #[test]
    fn what_cannot_be_graded_is_refused_by_name() {
        assert!(refusal("{").contains("not JSON"));
        assert!(refusal(r#"{"type": "python", "source": ""}"#).contains("type python is not run here"));
        assert!(refusal(r#"{"type": "guess"}"#).contains("unknown variant `guess`"));
        assert!(refusal(r#"{"type": "string_check", "operation": "eq", "input": ""}"#).contains("`reference`"));
        assert!(
            refusal(r#"{"type": "string_check", "operation": "is", "input": "", "reference": ""}"#).contains("`is`")
        );
        for (metric, why) in [("cosine", "embedding"), ("meteor", "synonyms"), ("rouge_9", "not known")] {
            let text = format!(
                r#"{{"type": "text_similarity", "evaluation_metric": "{metric}", "input": "", "reference": ""}}"#
            );
            assert!(refusal(&text).contains(why), "{metric}");
        }
        let nested = r#"{"type": "multi", "graders": {"a": {"type": "multi", "graders": {}, "calculate_output": "1"}},
            "calculate_output": "a"}"#;
        assert!(refusal(nested).contains("a: a multi grader holds no other"));
        let unknown = r#"{"type": "multi", "graders": {}, "calculate_output": "a"}"#;
        assert!(refusal(unknown).contains("there is no grader a"));
    }

    #[test]
    fn a_grader_is_bounded_in_bytes_in_depth_and_in_parts() {
        let large = format!(r#"{{"type": "multi", "graders": {{}}, "calculate_output": "1{}"}}"#, "+1".repeat(200_000));
        assert!(refusal(&large).contains("it may take at most 262144"));
        let deep = format!(r#"{{"type": "multi", "graders": {}1{}}}"#, r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
        assert!(refusal(&deep).contains("recursion limit exceeded"), "{}", refusal(&deep));
        let model = r#"{"type": "reward_model", "model": "m"}"#;
        let graders: Vec<String> = (0..65).map(|n| format!(r#""g{n}": {model}"#)).collect();
        let many = format!(r#"{{"type": "multi", "graders": {{{}}}, "calculate_output": "g1"}}"#, graders.join(","));
        assert!(refusal(&many).contains("at most 64 graders, not 65"));
    }
}
