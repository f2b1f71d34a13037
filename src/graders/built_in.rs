//! The graders of a [`Spec`] at work: pure functions of a sample, and a reward model where one is asked for.

use std::collections::BTreeMap;

use super::similarity::{bleu, fuzzy_match, gleu, rouge, rouge_l};
use super::spec::{Metric, Multi, Operation, Spec, StringCheck, TextSimilarity};
use crate::error::{Error, Result};
use crate::train::{Grade, Graded, Grader, Sample, StopFlag};

/// The largest product of the lengths of two texts that are compared: about a second of work.
const MAX_COMPARED: u64 = 1 << 30;

/// A [`Spec`] with the reward models that it asks, by the names it calls them.
pub struct BuiltIn {
    spec: Spec,
    models: BTreeMap<String, Box<dyn Grader>>,
}

impl BuiltIn {
    /// Ready to grade.
    ///
    /// # Errors
    /// When a reward model that it asks is not among `models`.
    pub fn new(spec: Spec, models: BTreeMap<String, Box<dyn Grader>>) -> Result<Self> {
        match spec.reward_models().into_iter().find(|model| !models.contains_key(*model)) {
            Some(model) => Err(Error::validation(format!("the grader asks a reward model {model}, which is not here"))),
            None => Ok(Self { spec, models }),
        }
    }

    /// What one grader of the spec says of every sample.
    fn scores(
        &self,
        spec: &Spec,
        samples: &[Sample<'_>],
        stop: &StopFlag,
    ) -> Result<Vec<std::result::Result<f64, String>>> {
        Ok(match spec {
            Spec::StringCheck(check) => each(samples, stop, |sample| check.score(sample))?,
            Spec::TextSimilarity(similarity) => each(samples, stop, |sample| similarity.score(sample))?,
            Spec::RewardModel { model } => {
                let model = self.models.get(model);
                let model = model.ok_or_else(|| Error::internal(anyhow::anyhow!("a reward model is missing")))?;
                model.grade(samples, stop)?.into_iter().map(|graded| graded.map(|grade| grade.reward)).collect()
            }
            Spec::Multi(_) => return Err(Error::internal(anyhow::anyhow!("a multi grader within another"))),
        })
    }

    fn multi(&self, multi: &Multi, samples: &[Sample<'_>], stop: &StopFlag) -> Result<Vec<Graded>> {
        let mut columns = Vec::with_capacity(multi.graders.len());
        for (_, spec) in &multi.graders {
            columns.push(self.scores(spec, samples, stop)?);
        }
        let grade = |sample: usize| -> Graded {
            let scores = multi.graders.iter().zip(&columns).map(|((name, _), column)| match &column[sample] {
                Ok(score) => Ok((name.clone(), *score)),
                Err(why) => Err(format!("{name}: {why}")),
            });
            let parts = scores.collect::<std::result::Result<Vec<_>, String>>()?;
            let values: Vec<f64> = parts.iter().map(|(_, score)| *score).collect();
            finite(multi.formula.value(&values)).map(|reward| Grade { reward, parts })
        };
        Ok((0..samples.len()).map(grade).collect())
    }
}

impl Grader for BuiltIn {
    fn parts(&self) -> Vec<String> {
        match &self.spec {
            Spec::Multi(multi) => multi.graders.iter().map(|(name, _)| name.clone()).collect(),
            _ => Vec::new(),
        }
    }

    fn grade(&self, samples: &[Sample<'_>], stop: &StopFlag) -> Result<Vec<Graded>> {
        if let Spec::Multi(multi) = &self.spec {
            return self.multi(multi, samples, stop);
        }
        let scores = self.scores(&self.spec, samples, stop)?.into_iter();
        Ok(scores.map(|score| score.and_then(finite).map(|reward| Grade { reward, parts: Vec::new() })).collect())
    }
}

/// What `score` says of each sample.
///
/// # Errors
/// When it is told to stop.
fn each(
    samples: &[Sample<'_>],
    stop: &StopFlag,
    score: impl Fn(&Sample<'_>) -> std::result::Result<f64, String>,
) -> Result<Vec<std::result::Result<f64, String>>> {
    let grade = |sample| match stop.is_raised() {
        true => Err(Error::unavailable(anyhow::anyhow!("the run was asked to stop while samples were graded"))),
        false => Ok(score(sample)),
    };
    samples.iter().map(grade).collect()
}

/// A reward that can be learned from.
pub(super) fn finite(reward: f64) -> std::result::Result<f64, String> {
    if reward.is_finite() { Ok(reward) } else { Err(format!("the reward is {reward}")) }
}

impl StringCheck {
    fn score(&self, sample: &Sample<'_>) -> std::result::Result<f64, String> {
        let (input, reference) = (self.input.fill(sample)?, self.reference.fill(sample)?);
        let holds = match self.operation {
            Operation::Eq => input == reference,
            Operation::Ne => input != reference,
            Operation::Like => input.contains(&reference),
            Operation::Ilike => input.to_lowercase().contains(&reference.to_lowercase()),
        };
        Ok(f64::from(u8::from(holds)))
    }
}

impl TextSimilarity {
    fn score(&self, sample: &Sample<'_>) -> std::result::Result<f64, String> {
        let (input, reference) = (self.input.fill(sample)?, self.reference.fill(sample)?);
        // Some metrics compare everything with everything.
        if (input.len() as u64).saturating_mul(reference.len() as u64) > MAX_COMPARED {
            return Err(format!("texts of {} and {} bytes are too long to compare", input.len(), reference.len()));
        }
        Ok(match self.metric {
            Metric::FuzzyMatch => fuzzy_match(&input, &reference),
            Metric::Bleu => bleu(&input, &reference),
            Metric::Gleu => gleu(&input, &reference),
            Metric::Rouge(n) => rouge(&input, &reference, n),
            Metric::RougeL => rouge_l(&input, &reference),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn grade(spec: &str, outputs: &[&str]) -> Vec<Graded> {
        let item = json!({"reference_answer": "Yes"});
        let samples: Vec<Sample<'_>> = outputs
            .iter()
            .map(|output| Sample { id: "1", messages: &[], output, item: item.as_object().unwrap() })
            .collect();
        let grader = BuiltIn::new(Spec::parse(spec).unwrap(), BTreeMap::new()).unwrap();
        grader.grade(&samples, &StopFlag::default()).unwrap()
    }

    fn rewards(spec: &str, outputs: &[&str]) -> Vec<f64> {
        grade(spec, outputs).into_iter().map(|graded| graded.unwrap().reward).collect()
    }

    fn check(operation: &str) -> String {
        format!(
            r#"{{"type": "string_check", "operation": "{operation}", "input": "{{{{sample.output_text}}}}",
                "reference": "{{{{item.reference_answer}}}}"}}"#
        )
    }

    #[test]
    fn a_string_check_is_one_or_zero() {
        let outputs = ["Yes", "yes", "Yes, sir", "oh YES", "no"];
        assert_eq!(rewards(&check("eq"), &outputs), [1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(rewards(&check("ne"), &outputs), [0.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(rewards(&check("like"), &outputs), [1.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(rewards(&check("ilike"), &outputs), [1.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn a_multi_grader_weighs_its_parts_and_tells_them() {
        let multi = format!(
            r#"{{"type": "multi", "graders": {{"exact": {}, "near": {{"type": "text_similarity",
                "evaluation_metric": "fuzzy_match", "input": "{{{{sample.output_text}}}}", "reference": "Yes"}}}},
                "calculate_output": "max(exact, 0.5 * near)"}}"#,
            check("eq")
        );
        let grades = grade(&multi, &["Yes", "Yet"]);
        assert_eq!(grades[0].as_ref().unwrap().reward, 1.0);
        let near = grades[1].as_ref().unwrap();
        assert!((near.reward - 1.0 / 3.0).abs() < 1e-12, "{near:?}");
        assert_eq!(near.parts[0], ("exact".to_string(), 0.0));
        assert_eq!(near.parts[1].0, "near");
    }

    #[test]
    fn a_reward_that_is_no_number_is_a_failure_and_so_is_a_member_that_the_record_lacks() {
        let division =
            format!(r#"{{"type": "multi", "graders": {{"a": {}}}, "calculate_output": "1 / a"}}"#, check("eq"));
        let grades = grade(&division, &["Yes", "no"]);
        assert!(grades[0].is_ok());
        assert_eq!(grades[1].clone().unwrap_err(), "the reward is inf");
        let missing = r#"{"type": "string_check", "operation": "eq", "input": "", "reference": "{{item.label}}"}"#;
        assert_eq!(grade(missing, &["a"])[0].clone().unwrap_err(), "the record has no member item.label");
    }

    #[test]
    fn texts_that_are_too_long_to_compare_stay_without_a_grade_and_a_stop_is_seen() {
        let spec = r#"{"type": "text_similarity", "evaluation_metric": "fuzzy_match", "input": "{{sample.output_text}}",
            "reference": "{{sample.output_text}}"}"#;
        let long = "x".repeat(100_000);
        assert!(grade(spec, &[&long])[0].as_ref().unwrap_err().contains("too long to compare"));
        let stop = StopFlag::default();
        stop.raise();
        let grader = BuiltIn::new(Spec::parse(spec).unwrap(), BTreeMap::new()).unwrap();
        let item = serde_json::Map::new();
        let sample = Sample { id: "1", messages: &[], output: "a", item: &item };
        assert_eq!(grader.grade(&[sample], &stop).unwrap_err().kind(), crate::error::Kind::Unavailable);
    }

    #[test]
    fn a_reward_model_that_is_not_there_is_refused() {
        let spec = Spec::parse(r#"{"type": "reward_model", "model": "judge"}"#).unwrap();
        assert!(BuiltIn::new(spec, BTreeMap::new()).err().unwrap().message().contains("judge"));
    }
}
