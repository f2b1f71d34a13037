//! What a run is: all that its result depends on, written out one by one, so that a checkpoint knows its run
//! whichever version of the program reads it, and says what differs when it belongs to another.

mod format_1;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Plan, Settings, start};
use crate::data::Objective;
use crate::error::Result;

/// What the result of a run depends on. Its members and their names are part of the checkpoints' format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identity {
    /// What is done with the data.
    task: String,
    /// SHA-256 over the base model's configuration and weights.
    base: String,
    /// SHA-256 of each file that the run goes on from; empty for a new adapter.
    start: String,
    /// The seed of everything drawn.
    seed: u64,
    /// Every hyperparameter that changes the result, by its name.
    hyper_parameters: BTreeMap<String, String>,
    /// SHA-256 over the training data, its tokens and how they were made.
    training: String,
    /// The same of each validation file.
    validation: Vec<String>,
}

impl Identity {
    /// The same with those options of `ours` that the program that wrote it did not know, at their defaults: its run went
    /// as if they had been left out.
    fn completed(&self, ours: &Self) -> Self {
        let mut completed = self.clone();
        // Options that cannot be read are compared as they are.
        if let Ok(settings) = Settings::parse(&self.hyper_parameters, &BTreeMap::new()) {
            let options = settings.identity().into_iter();
            for (name, default) in options.filter(|(name, _)| ours.hyper_parameters.contains_key(name)) {
                completed.hyper_parameters.entry(name).or_insert(default);
            }
        }
        completed
    }

    /// What is not the same in `other`, in words.
    fn differences(&self, other: &Self) -> String {
        // Named one by one, so that a new member is compared too.
        let Self { task, base, start, seed, hyper_parameters, training, validation } = self;
        let mut found = Vec::new();
        let mut compare = |same: bool, what: &str| found.extend((!same).then(|| what.to_string()));
        compare(*task == other.task, "what is done with the data");
        compare(*base == other.base, "the base model");
        compare(*start == other.start, "the adapter that is tuned further");
        compare(*seed == other.seed, "the seed");
        compare(*training == other.training, "the training data or the tokenizer");
        compare(*validation == other.validation, "the validation data");
        let names: std::collections::BTreeSet<&String> =
            hyper_parameters.keys().chain(other.hyper_parameters.keys()).collect();
        for name in names {
            let [ours, theirs] = [hyper_parameters, &other.hyper_parameters]
                .map(|all| all.get(name).map_or("its default", String::as_str));
            if ours != theirs {
                found.push(format!("{name} (now {ours}, then {theirs})"));
            }
        }
        found.join(", ")
    }
}

/// An identity with its digest, and the digest that the checkpoints of format 1 have instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunIdentity {
    identity: Identity,
    digest: String,
    format_1: Option<String>,
}

impl RunIdentity {
    /// Of a run over prepared data with these keys, on a base of this digest.
    ///
    /// # Errors
    /// When what the run goes on from cannot be read.
    pub(super) fn of(plan: &Plan, base: &str, training: &str, validation: Vec<String>) -> Result<Self> {
        let task = match plan.objective {
            Objective::FineTuning => "fineTuning",
            Objective::Preferences => "preferences",
            Objective::ContinuedPreTraining => "continuedPreTraining",
        };
        let start = start::digest(plan)?;
        let format_1 = format_1::digest(plan, base, &start, training, &validation);
        let identity = Identity {
            task: task.into(),
            base: base.into(),
            start,
            seed: plan.seed(),
            hyper_parameters: plan.settings.identity(),
            training: training.into(),
            validation,
        };
        Ok(Self { format_1: Some(format_1), ..Self::new(identity) })
    }

    /// Of a run that is known by nothing but a name: it is measured or tested.
    pub(super) fn named(name: &str) -> Self {
        Self::new(Identity {
            task: name.into(),
            base: String::new(),
            start: String::new(),
            seed: 0,
            hyper_parameters: BTreeMap::new(),
            training: String::new(),
            validation: Vec::new(),
        })
    }

    fn new(identity: Identity) -> Self {
        let text = serde_json::to_vec(&identity).unwrap_or_default();
        Self { identity, digest: hex::encode(Sha256::digest(text)), format_1: None }
    }

    /// SHA-256 over the identity.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// The identity itself.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Why a checkpoint of format 2 and up, which says this of its run, is of another; `None` when it is of this.
    pub(super) fn refuses(&self, theirs: Option<&Identity>) -> Option<String> {
        let Some(theirs) = theirs else { return Some("it does not say of which".into()) };
        let theirs = theirs.completed(&self.identity);
        (theirs != self.identity).then(|| format!("what differs: {}", self.identity.differences(&theirs)))
    }

    /// The same of a checkpoint of format 1, which has one digest over all.
    pub(super) fn refuses_format_1(&self, theirs: &str) -> Option<String> {
        let same = self.format_1.as_deref() == Some(theirs);
        (!same).then(|| "the base model, the data or the hyperparameters are not the same".into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    fn identity(given: &[(&str, &str)]) -> RunIdentity {
        let dir = tempfile::tempdir().unwrap();
        RunIdentity::of(&plan(dir.path(), given), "b", "t", vec!["v".into()]).unwrap()
    }

    #[test]
    fn what_a_checkpoint_says_of_its_run_keeps_its_form() {
        let of = |given: &[(&str, &str)]| serde_json::to_string(identity(given).identity()).unwrap();
        assert_eq!(
            of(&[("stepCount", "7"), ("learningRate", "1e-3"), ("loraDropout", "0.1"), ("checkpointInterval", "3")]),
            concat!(
                r#"{"task":"fineTuning","base":"b","start":"","seed":11,"hyperParameters":{"adamBeta1":"0.9","#,
                r#""adamBeta2":"0.999","adamEpsilon":"0.00000001","batchSize":"8","dora":"false","#,
                r#""learningRate":"0.001","learningRateSchedule":"linear","loraAlpha":"32","loraDropout":"0.1","#,
                r#""loraRank":"16","loraTargetModules":"all-linear","maxGradientNorm":"1","rsLora":"false","#,
                r#""stepCount":"7","tuningMethod":"lora","weightDecay":"0"},"training":"t","validation":["v"]}"#,
            )
        );
        let policy = of(&[("trainingObjective", "grpo"), ("tuningMethod", "full"), ("grader", "g")]);
        for part in [r#""trainingObjective":"grpo""#, r#""grader":"g""#, r#""weightPrecision":"float32""#] {
            assert!(policy.contains(part), "{policy}");
        }
    }

    #[test]
    fn what_is_written_beside_the_result_makes_no_other_run() {
        let one = identity(&[("stepCount", "7")]);
        let other = identity(&[
            ("stepCount", "7"),
            ("checkpointInterval", "2"),
            ("mergedWeights", "true"),
            ("saveOptimizerState", "true"),
        ]);
        assert_eq!(one.identity(), other.identity());
        assert_eq!(one.digest(), other.digest());
    }

    #[test]
    fn another_run_is_refused_by_the_names_of_what_differs() {
        let (one, other) = (identity(&[("loraRank", "4")]), identity(&[("loraRank", "8"), ("microBatchTokens", "64")]));
        assert_eq!(one.refuses(Some(one.identity())), None);
        let why = one.refuses(Some(other.identity())).unwrap();
        assert_eq!(
            why,
            "what differs: loraAlpha (now 8, then 16), loraRank (now 4, then 8), \
             microBatchTokens (now its default, then 64)"
        );
        let data = Identity { training: "x".into(), ..one.identity().clone() };
        assert!(one.refuses(Some(&data)).unwrap().contains("the training data"));
    }

    #[test]
    fn an_option_that_a_stored_identity_lacks_counts_as_its_default() {
        let all: [&[(&str, &str)]; 9] = [
            &[("stepCount", "7")],
            &[("tuningMethod", "qlora"), ("dora", "true"), ("loraAlpha", "5")],
            &[("tuningMethod", "adapter"), ("adapterArchitecture", "houlsby")],
            &[("tuningMethod", "prefix"), ("prefixProjection", "true"), ("prefixHiddenSize", "9")],
            &[("tuningMethod", "llama_adapter"), ("adapterLayers", "2"), ("microBatchTokens", "64")],
            &[("tuningMethod", "full"), ("weightPrecision", "bfloat16"), ("earlyStoppingPatience", "3")],
            &[("trainingObjective", "dpo"), ("dpoLoss", "ipo")],
            &[("trainingObjective", "grpo"), ("lossAggregation", "dr_grpo"), ("grader", "g")],
            &[("trainingObjective", "ppo"), ("updatesPerBatch", "2"), ("grader", "g"), ("learningRate", "1e-3")],
        ];
        let mut defaults = 0;
        for given in all {
            let run = identity(given);
            assert_eq!(run.identity().completed(run.identity()), *run.identity(), "{given:?}");
            for name in run.identity().hyper_parameters.keys() {
                let mut stored = run.identity().clone();
                stored.hyper_parameters.remove(name);
                let refused = run.refuses(Some(&stored));
                match given.iter().any(|(one, _)| one == name) {
                    true => assert!(refused.is_some_and(|why| why.contains("what differs")), "{given:?} {name}"),
                    false => {
                        defaults += 1;
                        assert_eq!(refused, None, "{given:?} {name}");
                    }
                }
            }
        }
        assert!(defaults > 100, "{defaults}");
        // What differs is named without what is the same by default.
        let mut stored = identity(&[("loraRank", "8")]).identity().clone();
        stored.hyper_parameters.remove("rsLora");
        let why = identity(&[("loraRank", "4")]).refuses(Some(&stored)).unwrap();
        assert_eq!(why, "what differs: loraAlpha (now 8, then 16), loraRank (now 4, then 8)");
    }
}
