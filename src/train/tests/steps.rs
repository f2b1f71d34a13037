//! Single steps: the same numbers as torch and peft, however the batch is cut, and never a weight
//! that is not a number.

use candle_core::Tensor;
use serde::Deserialize;

use super::*;
use crate::data::corpus::Writer;
use crate::data::{Corpus, Format};
use crate::models::Weights;
use crate::tune::{Lora, LoraConfig, Method};

use super::super::objective::Criteria;
use super::super::run::Run;
use crate::train::identity::RunIdentity;
use crate::train::learner::Steps;

/// `lora/expected.json`: a batch, and what peft and torch's AdamW made of it.
#[derive(Deserialize)]
struct Golden {
    batch: Vec<(Vec<u32>, Vec<bool>)>,
    /// Mean loss before each of three steps, and after them.
    losses: Vec<f64>,
}

fn golden() -> Golden {
    let path = base().join("../lora/expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(super) fn corpus(dir: &Path, records: &[(Vec<u32>, Vec<bool>)]) -> Corpus {
    let mut writer = Writer::create(&dir.join("corpus")).unwrap();
    for (line, (tokens, learn)) in (1..).zip(records) {
        writer.push(tokens, learn, 0, line).unwrap();
    }
    let source = crate::data::corpus::SourceFacts {
        name: "train.jsonl".into(),
        sha256: String::new(),
        records: records.len() as u64,
        blank_lines: 0,
    };
    writer.finish("key".into(), Objective::FineTuning, Format::Completion, vec![source]).unwrap()
}

/// Tokens of the golden batch.
pub(super) fn golden_tokens() -> usize {
    golden().batch.iter().map(|(tokens, _)| tokens.len()).sum()
}

fn with_run(given: &[(&str, &str)], test: impl FnOnce(&mut Run<'_>)) {
    with_method(given, |method| method, test);
}

/// The golden run: rank 4 on every map, from the adapter that peft began with.
pub(super) fn with_method(
    given: &[(&str, &str)],
    wrap: impl FnOnce(Box<dyn Method>) -> Box<dyn Method>,
    test: impl FnOnce(&mut Run<'_>),
) {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path(), &golden().batch);
    let plan = plan(dir.path(), given);
    std::fs::create_dir_all(plan.checkpoints()).unwrap();
    let decoder = Decoder::load(&base(), &Device::Cpu, Form::Frozen).unwrap();
    let config = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
    let lora = Lora::new(&decoder, config, 0).unwrap();
    let before = Weights::open_file(&base().join("../lora/before/adapter_model.safetensors")).unwrap();
    for one in lora.trainables() {
        one.var.set(&before.get(&one.name, one.var.dims(), &Device::Cpu).unwrap()).unwrap();
    }
    let resolved = resolved(&plan);
    let method = wrap(Box::new(lora));
    let mut run = Run::resume(
        &plan,
        &decoder,
        (method, Criteria::sft(0)),
        (&corpus, &[]),
        resolved,
        &RunIdentity::named("run"),
        None,
    )
    .unwrap();
    test(&mut run);
}

const LIKE_TORCH: [(&str, &str); 5] = [
    ("learningRate", "0.01"),
    ("learningRateSchedule", "constant"),
    ("weightDecay", "0.01"),
    ("maxGradientNorm", "0"),
    ("batchSize", "3"),
];

fn step(run: &mut Run<'_>) -> f64 {
    run.step(&mut (), &StopFlag::default()).unwrap().unwrap().loss
}

#[test]
fn three_steps_give_the_losses_and_the_adapter_of_peft_and_torch() {
    with_run(&LIKE_TORCH, |run| {
        for (index, expected) in golden().losses.iter().enumerate() {
            if index == 3 {
                let after = Weights::open_file(&base().join("../lora/after/adapter_model.safetensors")).unwrap();
                for (name, tensor) in run.learner.weights() {
                    let expected = after.get(&name, tensor.dims(), &Device::Cpu).unwrap();
                    let difference: f32 =
                        (tensor - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
                    assert!(difference < 1e-4, "{name} differs by {difference}");
                }
            }
            let loss = step(run);
            assert!((loss - expected).abs() < 1e-4, "before step {index}: {loss}, torch {expected}");
        }
    });
}

#[test]
fn a_batch_cut_into_micro_batches_is_the_same_batch() {
    let mut whole = Vec::new();
    with_run(&LIKE_TORCH, |run| whole = (0..4).map(|_| step(run)).collect());
    let cut = LIKE_TORCH.iter().copied().chain([("microBatchTokens", "1")]).collect::<Vec<_>>();
    with_run(&cut, |run| {
        for (index, expected) in whole.iter().enumerate() {
            let loss = step(run);
            assert!((loss - expected).abs() < 1e-5, "step {index}: {loss} in parts, {expected} as one");
        }
    });
}

#[test]
fn a_step_that_is_stopped_changes_nothing() {
    with_run(&LIKE_TORCH, |run| {
        let stop = StopFlag::default();
        stop.raise();
        assert_eq!(run.step(&mut (), &stop).unwrap(), None);
        assert_eq!((run.learner.state.step, run.learner.state.cursor), (0, Default::default()));
    });
}

#[test]
fn values_that_are_not_finite_skip_the_step_name_the_record_and_end_the_run_at_last() {
    with_run(&LIKE_TORCH, |run| {
        let poisoned = run.learner.method.trainables()[1].var.clone();
        let healthy = poisoned.as_detached_tensor().copy().unwrap();
        let nan = Tensor::full(f32::NAN, poisoned.shape(), &Device::Cpu).unwrap();
        let other = run.learner.weights()[0].1.copy().unwrap();
        let mut listener = Listener::default();
        let mut attempt = |run: &mut Run<'_>| run.step(&mut listener, &StopFlag::default());

        poisoned.set(&nan).unwrap();
        assert!(!attempt(run).unwrap().unwrap().loss.is_finite());
        assert!(attempt(run).is_ok());
        // One good step between them: the count begins again.
        poisoned.set(&healthy).unwrap();
        assert!(attempt(run).unwrap().unwrap().loss.is_finite());
        poisoned.set(&nan).unwrap();
        assert!(attempt(run).is_ok() && attempt(run).is_ok());
        let error = attempt(run).unwrap_err();
        assert_eq!(error.kind(), Kind::Validation);
        assert!(error.message().starts_with("Training diverged: in step 5, and the 2 before it"), "{error}");
        assert!(error.message().contains("train.jsonl:1"), "{error}");
        assert!(listener.warnings[0].starts_with("step 0: the loss is not finite, at train.jsonl:"));

        let finite = |tensor: &Tensor| {
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|value| value.is_finite())
        };
        assert!(finite(&other) && finite(&run.learner.weights()[0].1), "no weight took up a NaN");
    });
}

#[test]
fn a_run_in_which_no_step_was_finite_fails_however_short_it_is() {
    for steps in [1, 2] {
        with_run(&LIKE_TORCH, |run| {
            run.learner.resolved.steps = steps;
            let poisoned = run.learner.method.trainables()[1].var.clone();
            poisoned.set(&Tensor::full(f32::NAN, poisoned.shape(), &Device::Cpu).unwrap()).unwrap();
            let error = crate::train::learner::train(run, &mut (), &StopFlag::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::Validation);
            let said = format!("Nothing was learned: in none of the {steps} steps");
            assert!(error.message().starts_with(&said), "{error}");
        });
    }
    // One finite step is something learned.
    with_run(&LIKE_TORCH, |run| {
        run.learner.resolved.steps = 2;
        step(run);
        let poisoned = run.learner.method.trainables()[1].var.clone();
        poisoned.set(&Tensor::full(f32::NAN, poisoned.shape(), &Device::Cpu).unwrap()).unwrap();
        assert!(crate::train::learner::train(run, &mut (), &StopFlag::default()).unwrap());
    });
}
