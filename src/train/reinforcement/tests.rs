//! Whole reinforcement runs on a tiny model: the policy learns what its grader rewards, an interrupted run learns the
//! same, and a grader that fails does no harm it can help.

mod ppo;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;

use super::*;
use crate::kernels::Weight;
use crate::models::{Site, Tuning};
use crate::train::learner::Steps;
use crate::train::settings::Resolved;
use crate::train::tests::out_of_memory::Short;
use crate::train::tests::resume::{Copies, StopAfter, assert_same};
use crate::train::tests::{Listener, TRAINING, VALIDATION, column, tree};
use crate::train::{Grade, Graded, Sample, Settings, Summary};
use crate::tune::{Method, Trainable};

/// A plan in `dir` with ten training and four validation prompts.
fn plan(dir: &Path, given: &[(&str, &str)]) -> Plan {
    let plan = crate::train::tests::plan(dir, &[]);
    let record = |n: usize| {
        format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"say {n}\"}}], \"reference_answer\": \"{n}\"}}\n")
    };
    for (path, numbers) in [(&plan.training, 0..10), (&plan.validation[0], 20..24)] {
        std::fs::write(path, numbers.map(record).collect::<String>()).unwrap();
    }
    let given: BTreeMap<String, String> = given.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let given = reinforcement_hyper_parameters(&given, None).unwrap();
    Plan { settings: Settings::parse(&given, &BTreeMap::new()).unwrap(), ..plan }
}

/// The share of an answer's bytes that are ASCII letters.
struct Letters;

fn letters(sample: &Sample<'_>) -> f64 {
    let letters = sample.output.bytes().filter(u8::is_ascii_alphabetic).count();
    letters as f64 / sample.output.len().max(1) as f64
}

impl Grader for Letters {
    fn parts(&self) -> Vec<String> {
        vec!["letters".into()]
    }

    fn grade(&self, samples: &[Sample<'_>], _: &StopFlag) -> Result<Vec<Graded>> {
        let grade = |sample: &Sample<'_>| {
            assert_eq!(sample.messages.last().unwrap()["content"], sample.output);
            assert!(sample.item.contains_key("reference_answer"));
            Ok(Grade { reward: letters(sample), parts: vec![("letters".into(), letters(sample))] })
        };
        Ok(samples.iter().map(grade).collect())
    }
}

/// Everything that has state is switched on.
type Given = [(&'static str, &'static str); 14];

/// By GRPO.
const GIVEN: Given = [
    ("epochCount", "2"),
    ("batchSize", "4"),
    ("trainingSamplePerPrompt", "4"),
    ("inferenceMaxTokens", "8"),
    ("learningRate", "0.01"),
    ("learningRateSchedule", "cosine"),
    ("learningRateWarmupSteps", "1"),
    ("loraDropout", "0.1"),
    ("klBeta", "0.05"),
    ("updatesPerBatch", "2"),
    ("evaluationInterval", "2"),
    ("checkpointInterval", "2"),
    ("samplingTemperature", "1.2"),
    ("clipEpsilonHigh", "0.3"),
];

/// By PPO.
const PPO: Given = [
    ("rlAlgorithm", "ppo"),
    ("epochCount", "2"),
    ("batchSize", "4"),
    ("trainingSamplePerPrompt", "3"),
    ("inferenceMaxTokens", "8"),
    ("learningRate", "0.01"),
    ("learningRateSchedule", "cosine"),
    ("learningRateWarmupSteps", "1"),
    ("loraDropout", "0.1"),
    ("updatesPerBatch", "3"),
    ("evaluationInterval", "2"),
    ("checkpointInterval", "2"),
    ("samplingTemperature", "1.2"),
    ("valueLossCoef", "0.5"),
];

fn complete(plan: &Plan) -> Summary {
    match reinforce(plan, &Letters, &mut (), &StopFlag::default()).unwrap() {
        Outcome::Completed(summary) => summary,
        Outcome::Interrupted => panic!("nobody asked it to stop"),
    }
}

const TRAJECTORIES: &str = "validation_artifacts/trajectories.jsonl";

#[test]
fn a_policy_learns_what_its_grader_rewards_and_leaves_what_a_job_promises() {
    let dir = tempfile::tempdir().unwrap();
    let given = [
        ("stepCount", "30"),
        ("batchSize", "8"),
        ("trainingSamplePerPrompt", "8"),
        ("inferenceMaxTokens", "8"),
        ("learningRate", "0.02"),
        ("learningRateSchedule", "constant"),
    ];
    let summary = complete(&plan(dir.path(), &given));
    let text = |name: &str| std::fs::read_to_string(summary.output.join(name)).unwrap();
    let rewards = column(&text(TRAINING), "reward");
    let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len() as f64;
    let (before, after) = (mean(&rewards[..3]), mean(&rewards[27..]));
    assert!(after > 1.5 * before, "{before} to {after}: {rewards:?}");
    assert_eq!(column(&text(TRAINING), "rewards/letters"), rewards);
    for name in ["reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio", "kl"] {
        assert_eq!(column(&text(TRAINING), name).len(), 30, "{name}");
    }

    // Before the first step, and ten times more.
    let evaluated = column(&text(VALIDATION), "reward");
    assert_eq!(evaluated.len(), 11);
    let lines: Vec<serde_json::Value> =
        text(TRAJECTORIES).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 11 * 4);
    assert_eq!((lines[0]["step"].as_u64(), lines[0]["line"].as_u64()), (Some(0), Some(1)));
    assert_eq!(lines[0]["prompt"][0]["content"], "say 20");
    assert!(lines[0]["answer"].is_string() && lines[0]["reward"].is_number());
    let first: f64 = lines[..4].iter().map(|line| line["reward"].as_f64().unwrap()).sum();
    assert!((first / 4.0 - evaluated[0]).abs() < 1e-9);

    let manifest: serde_json::Value = serde_json::from_str(&text("training_manifest.json")).unwrap();
    assert_eq!(manifest["customizationType"], "REINFORCEMENT_FINE_TUNING");
    assert_eq!(manifest["hyperParameters"]["trainingSamplePerPrompt"], "8");
    assert!(summary.artifact.join("adapter_model.safetensors").exists());
    assert_eq!(summary.validation_losses, [-evaluated[10]]);
}

#[test]
fn a_run_stopped_after_any_number_of_steps_ends_with_the_same_bits() {
    for (given, strides) in [(GIVEN, 1..=3), (PPO, 1..=2)] {
        let dir = tempfile::tempdir().unwrap();
        let expected = tree(&complete(&plan(dir.path(), &given)).output);
        for stride in strides {
            let dir = tempfile::tempdir().unwrap();
            let plan = plan(dir.path(), &given);
            let mut attempts = 0;
            loop {
                attempts += 1;
                let flag = StopFlag::default();
                let mut observer = StopAfter { steps: stride, flag: flag.clone() };
                if reinforce(&plan, &Letters, &mut observer, &flag).unwrap() != Outcome::Interrupted {
                    break;
                }
            }
            assert!(attempts > 6 / stride, "{attempts} attempts of {stride} steps");
            assert_same(&expected, &plan.output());
        }
    }
}

#[test]
fn a_killed_run_goes_on_elsewhere_with_the_same_bits() {
    for given in [GIVEN, PPO] {
        let dir = tempfile::tempdir().unwrap();
        let first = plan(dir.path(), &given);
        let mut killed = Copies { root: dir.path().join("copies"), copies: vec![] };
        reinforce(&first, &Letters, &mut killed, &StopFlag::default()).unwrap();
        let expected = tree(&first.output());
        assert_eq!(killed.copies.len(), 3, "after 2, 4 and 6 steps");
        for copy in killed.copies {
            let plan = plan(&copy, &given);
            let mut listener = Listener::default();
            reinforce(&plan, &Letters, &mut listener, &StopFlag::default()).unwrap();
            assert!(listener.steps.len() <= 4, "it went on and did not begin again: {}", listener.steps.len());
            assert_same(&expected, &plan.output());
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for given in [GIVEN, PPO] {
        let with = |threads| {
            let dir = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let plan = plan(dir.path(), &given);
            pool.install(|| complete(&plan));
            tree(&plan.output())
        };
        assert_eq!(with(1), with(3));
    }
}

/// Fails for some of the samples, and raises a flag, if it has one, when it is first asked.
struct Failing {
    every: usize,
    asked: AtomicUsize,
    flag: Option<StopFlag>,
}

impl Grader for Failing {
    fn grade(&self, samples: &[Sample<'_>], stop: &StopFlag) -> Result<Vec<Graded>> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(flag) = self.flag.as_ref().filter(|_| asked == 0) {
            flag.raise();
            assert!(stop.is_raised());
            return Err(Error::unavailable(anyhow::anyhow!("told to stop")));
        }
        let grade = |(n, sample): (usize, &Sample<'_>)| {
            // All goes well at first.
            if asked > 2 && n % self.every == 0 {
                Err("it is tired".to_string())
            } else {
                Ok(Grade { reward: if n == 1 { f64::NAN } else { letters(sample) }, parts: vec![] })
            }
        };
        Ok(samples.iter().enumerate().map(grade).collect())
    }
}

fn failing(every: usize) -> Failing {
    Failing { every, asked: AtomicUsize::new(0), flag: None }
}

#[test]
fn few_failures_of_the_grader_are_counted_and_told_and_many_end_the_run_with_its_best_weights_kept() {
    let given: Vec<_> = GIVEN.into_iter().chain([("graderFailureLimit", "0.4")]).collect();
    let dir = tempfile::tempdir().unwrap();
    let lenient = plan(dir.path(), &given);
    let mut listener = Listener::default();
    reinforce(&lenient, &failing(4), &mut listener, &StopFlag::default()).unwrap();
    let csv = std::fs::read_to_string(lenient.output().join(TRAINING)).unwrap();
    // A reward that is no number is one failure, a quarter of sixteen are four.
    assert_eq!(column(&csv, "grader/failed")[..2], [1.0, 1.0]);
    assert!(column(&csv, "grader/failed").contains(&5.0), "{csv}");
    assert!(
        listener.warnings.iter().any(|text| text.contains("failed for 5 of 16 answers")),
        "{:?}",
        listener.warnings
    );
    assert!(listener.warnings.iter().any(|text| text.contains("the reward is NaN")), "{:?}", listener.warnings);

    let dir = tempfile::tempdir().unwrap();
    let strict = plan(dir.path(), &given);
    let error = reinforce(&strict, &failing(2), &mut (), &StopFlag::default()).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Validation);
    for part in ["failed for 5 of 8 answers", "it is tired", "graderFailureLimit", "best_checkpoint/"] {
        assert!(error.message().contains(part), "{error}");
    }
    assert!(strict.output().join("best_checkpoint/adapter/adapter_model.safetensors").exists());
}

#[test]
fn a_step_that_meets_too_little_memory_is_repeated_in_smaller_parts() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), &[("batchSize", "4"), ("trainingSamplePerPrompt", "4"), ("inferenceMaxTokens", "8")]);
    std::fs::create_dir_all(plan.output()).unwrap();
    let sources = Sources::read(&plan, &mut (), &StopFlag::default()).unwrap();
    // All answers together, as on a device; cores would share them out.
    let resolved = Resolved { parts: 1, lanes: 1, ..sources.resolve(&plan, None).unwrap() };
    let tuned = (&sources.method, &sources.config);
    let decoder = recipe::load(&plan, tuned, &plan.device().open().unwrap()).unwrap();
    let losses = |rows: usize, warnings: &mut Vec<String>| {
        let inner = start::method_on(&plan, (&sources.method, None), &decoder).unwrap();
        let method = Box::new(Short { inner, rows: Arc::new(AtomicUsize::new(rows)) });
        let mut run = Run::resume(&plan, &Letters, &sources, &decoder, method, resolved, None).unwrap();
        let mut listener = Listener::default();
        let step = run.step(&mut listener, &StopFlag::default()).unwrap().unwrap();
        warnings.extend(listener.warnings);
        (step.loss, step.gradient_norm, run.learner.state.token_budget)
    };
    let (mut quiet, mut warned) = (Vec::new(), Vec::new());
    let whole = losses(usize::MAX, &mut quiet);
    // Enough for the prompts and for every token drawn, too little for all answers at once.
    let cut = losses(120, &mut warned);
    assert!(quiet.is_empty() && warned.iter().any(|one| one.contains("has no memory for")), "{warned:?}");
    assert!(cut.2 < whole.2 && cut.2 <= 120, "{} tokens at a time, then {}", whole.2, cut.2);
    assert!((cut.0 - whole.0).abs() < 1e-6 && (cut.1 - whole.1).abs() < 1e-4 * whole.1, "{cut:?}, {whole:?}");
}

/// A method that, once its weights are not the first ones any more, raises the flag, or gives no numbers.
struct Disturbed {
    inner: Box<dyn Method>,
    first: Vec<f32>,
    flag: Option<StopFlag>,
}

fn numbers(trainables: &[Trainable]) -> Vec<f32> {
    trainables.iter().flat_map(|one| one.var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

impl Tuning for Disturbed {
    fn linear(&self, site: Site, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> candle_core::Result<Tensor> {
        let y = self.inner.linear(site, x, weight, bias)?;
        match &self.flag {
            _ if numbers(self.inner.trainables()) == self.first => Ok(y),
            Some(flag) => {
                flag.raise();
                Ok(y)
            }
            None => y * f64::NAN,
        }
    }
}

impl Method for Disturbed {
    fn trainables(&self) -> &[Trainable] {
        self.inner.trainables()
    }
}

#[test]
fn a_step_that_is_stopped_or_spoilt_after_some_of_its_updates_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let given =
        [("batchSize", "4"), ("trainingSamplePerPrompt", "4"), ("inferenceMaxTokens", "8"), ("updatesPerBatch", "2")];
    let plan = plan(dir.path(), &given);
    std::fs::create_dir_all(plan.output()).unwrap();
    let sources = Sources::read(&plan, &mut (), &StopFlag::default()).unwrap();
    let resolved = sources.resolve(&plan, None).unwrap();
    let decoder = recipe::load(&plan, (&sources.method, &sources.config), &plan.device().open().unwrap()).unwrap();
    for stops in [true, false] {
        let inner = start::method_on(&plan, (&sources.method, None), &decoder).unwrap();
        let (first, stop) = (numbers(inner.trainables()), StopFlag::default());
        let method = Box::new(Disturbed { inner, first: first.clone(), flag: stops.then(|| stop.clone()) });
        let mut run = Run::resume(&plan, &Letters, &sources, &decoder, method, resolved, None).unwrap();
        let mut listener = Listener::default();
        let step = run.step(&mut listener, &stop).unwrap();
        let learner = &run.learner;
        assert_eq!(numbers(learner.method.trainables()), first, "stops: {stops}");
        let moments = learner.optimizer.tensors(learner.method.trainables()).unwrap();
        assert!(
            moments.iter().all(|(_, all)| all.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() == 0.0)
        );
        assert_eq!((learner.optimizer.updates(), stop.is_raised()), (0, stops));
        // The spoilt one is over and counted; the stopped one is taken again.
        let expected = if stops { (0, 0) } else { (1, 1) };
        assert_eq!((learner.state.step, learner.state.skipped as u64), expected, "stops: {stops}");
        assert_eq!((step.is_none(), listener.warnings.is_empty()), (stops, stops), "{:?}", listener.warnings);
    }
}

#[test]
fn a_stop_while_answers_are_graded_keeps_the_run_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), &GIVEN);
    let stop = StopFlag::default();
    let grader = Failing { flag: Some(stop.clone()), ..failing(1000) };
    assert_eq!(reinforce(&plan, &grader, &mut (), &stop).unwrap(), Outcome::Interrupted);
    let mut listener = Listener::default();
    reinforce(&plan, &Letters, &mut listener, &StopFlag::default()).unwrap();
    assert_eq!((listener.steps[0].step, listener.steps.len()), (0, 6));
}

#[test]
fn without_validation_prompts_the_answers_of_training_are_shown_and_the_last_weights_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path(), &GIVEN);
    plan.validation.clear();
    let summary = complete(&plan);
    assert!(summary.validation_losses.is_empty() && !summary.output.join(VALIDATION).exists());
    let lines = std::fs::read_to_string(summary.output.join(TRAJECTORIES)).unwrap();
    assert!(lines.contains("\"file\":\"train.jsonl\"") && lines.lines().count() >= 16, "{lines}");
}

#[test]
fn what_cannot_be_reinforced_is_refused_before_anything_is_computed() {
    let refused = |given: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        reinforce(&plan(dir.path(), given), &Letters, &mut (), &StopFlag::default()).unwrap_err().message().to_string()
    };
    assert!(refused(&[("klBeta", "0.1"), ("tuningMethod", "full")]).contains("set klBeta 0, or tune an adapter"));
    let full = refused(&[("rlAlgorithm", "ppo"), ("tuningMethod", "full")]);
    assert!(full.contains("klCoef holds the policy to the base") && full.contains("set klCoef 0"), "{full}");
    assert!(refused(&[("inferenceMaxTokens", "64")]).contains("leaves no room for a prompt"));
    assert!(
        refused(&[("inferenceMaxTokens", "32"), ("maxPromptLength", "40")])
            .contains("are more than the model's context")
    );
    assert!(refused(&[("maxPromptLength", "3")]).contains("exceeds limit of 3"));
    assert!(refused(&[("saveOptimizerState", "true")]).contains("leave them out"));
    assert!(refused(&[("tuningMethod", "prompt")]).contains("set virtualTokensInit vocabulary or random"));
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), &[]);
    std::fs::write(&plan.training, "{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap();
    let error = reinforce(&plan, &Letters, &mut (), &StopFlag::default()).unwrap_err();
    assert!(error.message().contains("\"messages\" is missing"), "{error}");
    assert!(plan.output().join("data_report.jsonl").exists());
}
