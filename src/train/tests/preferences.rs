//! Learning from pairs of answers: what trl computes from the same start (`tests/golden/preferences.py`), whole runs
//! with every tuning method, and a task that the starter model learns. With `TUNESMITH_GOLDEN` set trl's cases are
//! those of a fresh draw, and the reward model that we train is left beside them for peft to load.

use serde::Deserialize;
use serde_json::Value;

use super::resume::{Copies, advance, assert_same};
use super::whole::{METHODS, further, with};
use super::*;
use crate::data::{Encoder, Record};
use crate::infer::score;
use crate::models::{Frozen, Tokenizer, Tuning};
use crate::train::backprop::{self, MicroBatch};
use crate::train::gradcheck::{assert_slopes, shake};
use crate::train::objective::golden::{fresh, read_expected, root};
use crate::train::objective::{Criterion, Dpo, DpoConfig, DpoLoss, Reward};

/// What trl made of some pairs.
#[derive(Deserialize)]
struct Golden {
    records: Vec<Value>,
    /// Of every pair, of either answer: the prompt's tokens and the answer's.
    tokens: Vec<[[Vec<u32>; 2]; 2]>,
    cases: BTreeMap<String, Case>,
    reward: Vec<BTreeMap<String, f64>>,
    /// What the trained reward model says of every answer.
    scores: Vec<f32>,
}

#[derive(Deserialize)]
struct Case {
    pairs: usize,
    beta: f64,
    label_smoothing: Option<f64>,
    /// Loss and metrics before each step.
    steps: Vec<BTreeMap<String, f64>>,
}

fn folder() -> PathBuf {
    root().join("preferences")
}

fn golden() -> Golden {
    read_expected("preferences")
}

/// Three steps over `pairs` from trl's own start.
fn golden_plan(dir: &Path, start: &str, pairs: &[Value], given: &[(&str, &str)]) -> Plan {
    let like_trl = [
        ("stepCount", "3"),
        ("batchSize", "4"),
        ("learningRate", "0.01"),
        ("learningRateSchedule", "constant"),
        ("learningRateWarmupSteps", "0"),
        ("maxGradientNorm", "0"),
    ];
    let plan = plan(dir, &with(&like_trl, given));
    std::fs::write(&plan.training, pairs.iter().map(|pair| format!("{pair}\n")).collect::<String>()).unwrap();
    Plan {
        base: Base::Directory(root().join("models/llama")),
        start: Some(folder().join(start)),
        validation: Vec::new(),
        ..plan
    }
}

#[track_caller]
fn assert_like_trl(what: &str, steps: &[StepMetrics], expected: &[BTreeMap<String, f64>]) {
    assert_eq!(steps.len(), expected.len());
    for (step, expected) in steps.iter().zip(expected) {
        let found: BTreeMap<&str, f64> = step.extra.iter().copied().chain([("loss", step.loss)]).collect();
        assert_eq!(found.len(), expected.len(), "{what}");
        for (name, value) in expected {
            let near = 1e-4 * value.abs().max(1.0);
            let found = found[name.as_str()];
            assert!((found - value).abs() <= near, "{what}, step {}, {name}: {found}, trl has {value}", step.step);
        }
    }
}

#[test]
fn three_steps_of_every_loss_over_pairs_are_those_of_trl() {
    let golden = golden();
    assert_eq!(golden.cases.len(), 5);
    for (name, case) in &golden.cases {
        let (beta, smoothing) = (case.beta.to_string(), case.label_smoothing.unwrap_or(0.0).to_string());
        let loss = name.split('_').next().unwrap();
        let mut given = vec![("trainingObjective", "dpo"), ("dpoLoss", loss), ("dpoBeta", &beta)];
        if case.label_smoothing.is_some() {
            given.push(("labelSmoothing", &smoothing));
        }
        let dir = tempfile::tempdir().unwrap();
        let plan = golden_plan(dir.path(), "dpo/before", &golden.records[..case.pairs], &given);
        let mut listener = Listener::default();
        run(&plan, &mut listener, &StopFlag::default()).unwrap();
        assert_like_trl(name, &listener.steps, &case.steps);
    }
}

/// A decoder of the golden base.
fn golden_decoder() -> Decoder {
    Decoder::load(&root().join("models/llama"), &Device::Cpu, Form::Frozen).unwrap()
}

#[test]
fn three_steps_of_a_reward_model_are_those_of_trl_and_its_artifact_is_read_both_ways() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    let plan = golden_plan(dir.path(), "reward/before", &golden.records, &[("trainingObjective", "reward")]);
    let mut listener = Listener::default();
    let Outcome::Completed(summary) = run(&plan, &mut listener, &StopFlag::default()).unwrap() else { panic!() };
    assert_like_trl("reward", &listener.steps, &golden.reward);

    // What peft wrote says here what it says there; what we wrote from the same start says the same.
    let decoder = golden_decoder();
    let flat = |answer: &[Vec<u32>; 2]| answer.concat();
    let sequences: Vec<Vec<u32>> = golden.tokens.iter().flatten().map(flat).collect();
    let scores_of = |dir: &Path| {
        let adapter = read_adapter(dir, decoder.config(), &Device::Cpu, false).unwrap();
        score(&decoder, &*adapter.tuning, &sequences).unwrap()
    };
    let ours = scores_of(&summary.artifact);
    for (from, scores) in [("peft", scores_of(&folder().join("reward/after"))), ("us", ours.clone())] {
        for (score, expected) in scores.iter().zip(&golden.scores) {
            assert!((score - expected).abs() < 1e-4, "{from}: {score}, peft says {expected}");
        }
    }
    let keys = |path: PathBuf| -> Vec<String> {
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(path.join("adapter_config.json")).unwrap()).unwrap();
        ["task_type", "peft_type", "r", "lora_alpha"].iter().map(|key| config[key].to_string()).collect()
    };
    assert_eq!(keys(summary.artifact.clone()), keys(folder().join("reward/after")));
    if fresh().is_some() {
        let left = folder().join("ours/adapter");
        for (name, bytes) in tree(&summary.artifact) {
            std::fs::create_dir_all(&left).unwrap();
            std::fs::write(left.join(name), bytes).unwrap();
        }
        std::fs::write(folder().join("ours/scores.json"), serde_json::to_string(&ours).unwrap()).unwrap();
    }
}

#[test]
fn a_pair_becomes_the_tokens_that_trl_makes_of_it() {
    let golden = golden();
    let encoder = Encoder::of(&Tokenizer::read(&root().join("models/llama")).unwrap()).unwrap();
    for (record, expected) in golden.records.iter().zip(&golden.tokens) {
        let (_, record) = Record::parse(&record.to_string(), Objective::Preferences).unwrap();
        let found = encoder.sequences(&record).unwrap();
        for (found, [prompt, answer]) in found.iter().zip(expected) {
            assert_eq!(found.tokens, [prompt.as_slice(), answer].concat());
            assert_eq!(found.learn.iter().filter(|learn| **learn).count(), answer.len());
        }
    }
}

/// A plan over ten pairs, and four for validation.
fn pairs(dir: &Path, given: &[(&str, &str)]) -> Plan {
    let plan = plan(dir, given);
    for (path, numbers) in [(&plan.training, 0..10), (&plan.validation[0], 20..24)] {
        let line = |n: usize| {
            let (chosen, rejected) = ("ab".repeat(1 + n % 3), "ba".repeat(1 + n % 4));
            format!("{{\"prompt\": \"say {n}\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\"}}\n")
        };
        std::fs::write(path, numbers.map(line).collect::<String>()).unwrap();
    }
    plan
}

const RUN: [(&str, &str); 6] = [
    ("epochCount", "3"),
    ("batchSize", "4"),
    ("learningRate", "0.01"),
    ("evaluationInterval", "2"),
    ("earlyStoppingPatience", "50"),
    ("checkpointInterval", "2"),
];

#[test]
fn every_method_learns_preferences_and_an_interrupted_run_of_it_ends_with_the_same_bits() {
    let reward: [&[(&str, &str)]; 2] = [
        &[("trainingObjective", "reward"), ("loraRank", "4"), ("loraDropout", "0.1")],
        &[("trainingObjective", "reward"), ("tuningMethod", "qlora"), ("loraRank", "4")],
    ];
    let cases = METHODS.iter().map(|method| with(method, &[("trainingObjective", "dpo"), ("dpoBeta", "0.3")]));
    for case in cases.chain(reward.map(<[_]>::to_vec)) {
        let given = with(&case, &RUN);
        let dir = tempfile::tempdir().unwrap();
        let summary = complete(&pairs(dir.path(), &given));
        let csv = text(&summary, TRAINING);
        let curve = losses(&csv);
        assert_eq!(curve.len(), 9, "a batch counts pairs");
        assert!(curve[8] < curve[0], "{case:?} learns: {curve:?}");
        let margin = if case.contains(&("trainingObjective", "reward")) { "margin" } else { "rewards/margins" };
        let margins = column(&csv, margin);
        assert!(margins[8] > margins[0], "{case:?}: {margins:?}");
        let validated = column(&text(&summary, VALIDATION), margin);
        assert_eq!(validated.len(), 5, "{case:?}: {validated:?}");
        let expected = tree(&summary.output);
        let again = tempfile::tempdir().unwrap();
        let plan = pairs(again.path(), &given);
        while !advance(&plan, 2) {}
        assert_same(&expected, &plan.output());
    }
}

#[test]
fn a_killed_run_over_pairs_goes_on_on_another_machine_with_the_same_bits() {
    for method in ["lora", "full"] {
        let given = with(&RUN, &[("trainingObjective", "dpo"), ("tuningMethod", method)]);
        let dir = tempfile::tempdir().unwrap();
        let first = pairs(dir.path(), &given);
        let mut killed = Copies { root: dir.path().join("copies"), copies: vec![] };
        run(&first, &mut killed, &StopFlag::default()).unwrap();
        let expected = tree(&first.output());
        for copy in killed.copies {
            let plan = pairs(&copy, &given);
            run(&plan, &mut (), &StopFlag::default()).unwrap();
            assert_same(&expected, &plan.output());
        }
    }
}

#[test]
fn the_reference_is_what_the_run_begins_with_and_lies_in_every_checkpoint() {
    let given = with(&RUN, &[("trainingObjective", "dpo"), ("learningRateSchedule", "constant")]);
    let dir = tempfile::tempdir().unwrap();
    let plan = pairs(dir.path(), &given);
    let first = complete(&plan);
    let loss = |summary: &Summary| losses(&text(summary, TRAINING))[0];
    assert!((loss(&first) - 2f64.ln()).abs() < 1e-6, "{}", loss(&first));
    let kept = std::fs::read(plan.work_dir.join("prepared/reference.bin")).unwrap();
    assert_eq!(kept.len(), 64 + 8 * (20 + 8));
    assert_eq!(kept, std::fs::read(plan.checkpoints().join("step-00000009/reference.bin")).unwrap());

    // Tuned further it is held to where it was, not to the base that it began with.
    let next = tempfile::tempdir().unwrap();
    let second = pairs(next.path(), &given);
    let second = Plan { start: further(next.path(), &first, &given).start, ..second };
    let second = complete(&pairs_in(second));
    assert!((loss(&second) - 2f64.ln()).abs() < 1e-6, "{}", loss(&second));
}

/// The plan with its data written again: another plan in the same folder wrote its own.
fn pairs_in(plan: Plan) -> Plan {
    let dir = plan.training.parent().unwrap();
    let again = pairs(dir, &[]);
    Plan { training: again.training, validation: again.validation, ..plan }
}

#[test]
fn the_halves_of_a_pair_are_never_cut_apart() {
    let losses_with = |budget: &str| {
        let dir = tempfile::tempdir().unwrap();
        let given = with(&RUN, &[("trainingObjective", "dpo"), ("microBatchTokens", budget)]);
        losses(&text(&complete(&pairs(dir.path(), &given)), TRAINING))
    };
    // No pair is as small as one token.
    for (small, large) in losses_with("1").iter().zip(losses_with("4096")) {
        assert!((small - large).abs() < 1e-4, "{small} and {large}");
    }
}

#[test]
fn what_does_not_go_with_preferences_is_refused() {
    let said = |plan: &Plan| run(plan, &mut (), &StopFlag::default()).unwrap_err().message().to_string();
    let dir = tempfile::tempdir().unwrap();
    let dpo = [("trainingObjective", "dpo")];
    let message = said(&plan(dir.path(), &dpo));
    assert!(message.contains("train.jsonl:1") && message.contains("supervised fine-tuning"), "{message}");
    let documents = Plan { objective: Objective::ContinuedPreTraining, ..pairs(dir.path(), &dpo) };
    assert!(said(&documents).contains("set customizationType to FINE_TUNING"));
    let message = said(&pairs(dir.path(), &[]));
    assert!(message.contains("trainingObjective dpo or reward"), "{message}");

    let dir = tempfile::tempdir().unwrap();
    let judge = complete(&pairs(dir.path(), &[("trainingObjective", "reward"), ("stepCount", "1")]));
    let next = tempfile::tempdir().unwrap();
    let message = said(&further(next.path(), &judge, &[]));
    assert!(message.contains("tuned further with trainingObjective reward only"), "{message}");
}

/// Two drawn pairs of answers behind prompts of three tokens.
fn two_pairs() -> MicroBatch {
    let mut batch = MicroBatch::default();
    for record in 0..4 {
        let mut rng = crate::rng::Rng::new(9, "record", record as u64);
        let length = 5 + record * 2;
        let tokens: Vec<u32> = (0..length).map(|_| rng.below(270) as u32).collect();
        batch.labels.extend((1..length).map(|i| (i > 2).then_some(tokens[i])).chain([None]));
        batch.tokens.extend(tokens);
        batch.lengths.push(length);
        batch.records.push(record);
    }
    batch
}

#[test]
fn gradients_of_preferences_are_the_slopes_of_their_losses_through_the_whole_decoder() {
    let decoder = golden_decoder();
    let build = || settings(&[("loraRank", "2")]).method.build(&decoder, None, 1).unwrap();
    let check = |method: &dyn crate::tune::Method, criterion: &dyn Criterion| {
        shake(method.trainables());
        assert_slopes(&decoder, method, criterion, &two_pairs(), 0.01);
    };
    for loss in DpoLoss::ALL {
        let label_smoothing = if matches!(loss, DpoLoss::Sigmoid | DpoLoss::Robust) { 0.1 } else { 0.0 };
        let config = DpoConfig { loss, beta: 0.05, label_smoothing };
        let reference = vec![-20.0, -24.0, -31.0, -40.0].into();
        check(&*build(), &Dpo::new(config, reference));
    }
    let mut judge = build();
    judge.take_score(&crate::tune::new_score(32, 1, &Device::Cpu).unwrap()).unwrap();
    check(&*judge, &Reward);
}

/// The pairs of `assets/demo/preferences`.
fn task(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/preferences").join(name)
}

fn starter() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/starter")
}

/// A run of the task on the starter with its own defaults, and what it left.
fn learn(dir: &Path, objective: &str) -> crate::tune::Adapter {
    let defaults = crate::models::recommended_hyper_parameters(&starter()).unwrap();
    let given = [("trainingObjective", objective), ("evaluationInterval", "40")];
    let given: BTreeMap<_, _> = given.map(|(name, value)| (name.to_string(), value.to_string())).into();
    let plan = Plan {
        base: Base::Directory(starter()),
        training: task("train.jsonl"),
        validation: vec![task("held_out.jsonl")],
        settings: Settings::parse(&given, &defaults).unwrap(),
        ..plan(dir, &[])
    };
    let mut listener = Listener::default();
    let began = plan.clock.monotonic();
    let Outcome::Completed(summary) = run(&plan, &mut listener, &StopFlag::default()).unwrap() else { panic!() };
    let seconds = plan.clock.monotonic().duration_since(began).as_secs_f64();
    let steps = listener.steps.len();
    eprintln!("{objective}: {steps} steps in {seconds:.1} s\n{}", text(&summary, VALIDATION));
    read_adapter(&summary.artifact, &crate::models::DecoderConfig::read(&starter()).unwrap(), &Device::Cpu, false)
        .unwrap()
}

/// In how many of the held-out pairs `better` says that the chosen answer is the better one.
fn accuracy(encoder: &Encoder, better: impl Fn(&[crate::data::Encoded]) -> bool) -> f64 {
    let text = std::fs::read_to_string(task("held_out.jsonl")).unwrap();
    let right = text.lines().filter(|line| {
        let (_, record) = Record::parse(line, Objective::Preferences).unwrap();
        better(&encoder.sequences(&record).unwrap())
    });
    right.count() as f64 / text.lines().count() as f64
}

/// Whether the chosen answer is the likelier one.
fn likelier(decoder: &Decoder, tuning: &dyn Tuning, pair: &[crate::data::Encoded]) -> bool {
    let mut batch = MicroBatch { records: vec![0, 1], ..MicroBatch::default() };
    for one in pair {
        let next = one.tokens.iter().zip(&one.learn).skip(1).map(|(token, learn)| learn.then_some(*token));
        batch.labels.extend(next.chain([None]));
        batch.lengths.push(one.tokens.len());
        batch.tokens.extend(&one.tokens);
    }
    let sum = backprop::loss(decoder, tuning, &batch).unwrap();
    sum.records[0].loss_sum < sum.records[1].loss_sum
}

#[test]
fn the_starter_learns_a_preference_task_with_its_defaults() {
    let decoder = Decoder::load(&starter(), &Device::Cpu, Form::Frozen).unwrap();
    let encoder = Encoder::of(&Tokenizer::read(&starter()).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tuned = learn(dir.path(), "dpo");
    let before = accuracy(&encoder, |pair| likelier(&decoder, &Frozen, pair));
    let after = accuracy(&encoder, |pair| likelier(&decoder, &*tuned.tuning, pair));
    eprintln!("the chosen answer is the likelier one in {before} of the held-out pairs before and {after} after");
    assert!(before <= 0.6 && after >= 0.95, "{before} before, {after} after");
}

#[test]
fn a_reward_model_on_the_starter_tells_the_better_answers_of_a_task() {
    let decoder = Decoder::load(&starter(), &Device::Cpu, Form::Frozen).unwrap();
    let encoder = Encoder::of(&Tokenizer::read(&starter()).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let judge = learn(dir.path(), "reward");
    let right = accuracy(&encoder, |pair| {
        let sequences: Vec<Vec<u32>> = pair.iter().map(|one| one.tokens.clone()).collect();
        let scores = score(&decoder, &*judge.tuning, &sequences).unwrap();
        scores[0] > scores[1]
    });
    eprintln!("the reward model is right in {right} of the held-out pairs");
    assert!(right >= 0.95, "{right}");
}

#[test]
fn a_reward_model_answers_with_numbers_and_refuses_to_give_text() {
    let dir = tempfile::tempdir().unwrap();
    let judge = complete(&pairs(dir.path(), &[("trainingObjective", "reward"), ("stepCount", "1")]));
    let engine = crate::infer::Engine::new(Device::Cpu, crate::infer::Capacity::default(), None);
    let adapter = crate::infer::Adapter { id: "judge".into(), dir: judge.artifact };
    let target = crate::infer::Target { base_dir: base(), context_length: None, adapter: Some(adapter) };
    let record = |answer: &str| Record::Completion { prompt: "say 1".into(), completion: answer.into() };
    let both = engine.score(&target, &[record("ab"), record("ba")], &|| Ok(())).unwrap();
    assert_eq!(both.len(), 2);
    // Alone it has the number that it has among others.
    let alone = engine.score(&target, &[record("ba")], &|| Ok(())).unwrap();
    assert!((both[1] - alone[0]).abs() < 1e-5 && both[0] != both[1], "{both:?} and {alone:?}");

    let cancel = std::sync::atomic::AtomicBool::new(false);
    let prompt = crate::infer::Prompt::Text("say 1".into());
    let options = crate::infer::Options::default();
    let error = engine.answer(&target, &prompt, &options, &cancel, &mut |_| ()).unwrap_err();
    assert!(error.kind() == Kind::Validation && error.message().contains("is a reward model"), "{error}");
    let none = crate::infer::Target { adapter: None, ..target };
    assert!(engine.score(&none, &[record("ab")], &|| Ok(())).unwrap_err().message().contains("no reward model"));
}
