//! What is PPO's own: a value head that learns, is kept in checkpoints and never leaves the run, and rewards that rise
//! with it.

use super::*;
use crate::models::Weights;
use crate::tune::{TuningMethod, VALUE_HEAD};

#[test]
fn a_policy_learns_by_ppo_what_its_grader_rewards() {
    let dir = tempfile::tempdir().unwrap();
    let given = [
        ("rlAlgorithm", "ppo"),
        ("stepCount", "24"),
        ("batchSize", "10"),
        ("trainingSamplePerPrompt", "4"),
        ("inferenceMaxTokens", "8"),
        ("learningRate", "0.01"),
        ("learningRateSchedule", "constant"),
    ];
    let summary = complete(&plan(dir.path(), &given));
    let text = |name: &str| std::fs::read_to_string(summary.output.join(name)).unwrap();
    let of = |name: &str| column(&text(TRAINING), name);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let rewards = of("reward");
    let (before, after) = (mean(&rewards[..3]), mean(&rewards[21..]));
    assert!(after > 1.5 * before, "{before} to {after}: {rewards:?}");

    assert_eq!(of("val/explained_variance")[0], 0.0, "a head of zeros explains nothing");
    assert!(of("objective/entropy").iter().all(|entropy| *entropy > 0.0));
    assert!(of("objective/kl")[0].abs() < 1e-3, "an adapter begins as its reference");
    assert!(mean(&of("objective/kl")[21..]) > 0.0, "and then leaves it: {:?}", of("objective/kl"));
    for name in ["policy/clipfrac_avg", "val/clipfrac_avg"] {
        assert!(of(name).iter().all(|share| (0.0..=1.0).contains(share)), "{name}: {:?}", of(name));
    }
    for name in [
        "loss/policy_avg",
        "loss/value_avg",
        "policy/approxkl_avg",
        "reward_std",
        "completions/mean_length",
        "rewards/letters",
    ] {
        assert_eq!(of(name).len(), 24, "{name}");
    }
    assert!(!text(TRAINING).contains("frac_reward_zero_std"), "groups are GRPO's");

    assert!(!column(&text(VALIDATION), "reward").is_empty());
    assert!(text(TRAJECTORIES).lines().count() > 4);
    let manifest: serde_json::Value = serde_json::from_str(&text("training_manifest.json")).unwrap();
    assert_eq!(manifest["hyperParameters"]["rlAlgorithm"], "ppo");
    assert_eq!(manifest["hyperParameters"]["klCoef"], "0.05");
}

#[test]
fn the_value_head_is_kept_in_checkpoints_and_is_no_part_of_the_artifact() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), &PPO);
    let summary = complete(&plan);
    let kept = Weights::open_file(&plan.checkpoints().join("step-00000006/weights.safetensors")).unwrap();
    let head = kept.get(VALUE_HEAD, &[1, 32], &candle_core::Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
    assert!(head[0].iter().all(|value| *value != 0.0), "it trains: {head:?}");
    let artifact = Weights::open_file(&summary.artifact.join("adapter_model.safetensors")).unwrap();
    let (of_run, of_artifact): (Vec<&str>, Vec<&str>) = (kept.names().collect(), artifact.names().collect());
    assert_eq!(of_artifact.len() + 1, of_run.len());
    assert!(of_artifact.iter().all(|name| *name != VALUE_HEAD));
    // Whoever goes on from it begins with a new head.
    let next = tempfile::tempdir().unwrap();
    let further = Plan { start: Some(summary.artifact), ..super::plan(next.path(), &PPO) };
    let mut listener = Listener::default();
    reinforce(&further, &Letters, &mut listener, &StopFlag::default()).unwrap();
    let first: BTreeMap<_, _> = listener.steps[0].extra.iter().copied().collect();
    assert_eq!(first["val/explained_variance"], 0.0);
    assert!(first["objective/kl"].abs() < 1e-3, "the reference is the adapter that it began with: {first:?}");
}

#[test]
fn every_tuning_method_learns_by_ppo() {
    for method in TuningMethod::NAMES {
        let dir = tempfile::tempdir().unwrap();
        let mut given = vec![
            ("rlAlgorithm", "ppo"),
            ("stepCount", "2"),
            ("batchSize", "4"),
            ("inferenceMaxTokens", "4"),
            ("tuningMethod", method),
        ];
        match method {
            "full" => given.push(("klCoef", "0")),
            "prefix" | "prompt" => given.extend([("virtualTokensInit", "random"), ("virtualTokens", "3")]),
            _ => {}
        }
        let summary = complete(&plan(dir.path(), &given));
        let losses = column(&std::fs::read_to_string(summary.output.join(TRAINING)).unwrap(), "training_loss");
        assert!(losses.len() == 2 && losses.iter().all(|loss| loss.is_finite()), "{method}: {losses:?}");
        assert!(summary.artifact.exists(), "{method}");
    }
}

/// Grades nothing.
struct Silent;

impl Grader for Silent {
    fn grade(&self, samples: &[Sample<'_>], _: &StopFlag) -> Result<Vec<Graded>> {
        Ok(samples.iter().map(|_| Err("it says nothing".to_string())).collect())
    }
}

#[test]
fn an_answer_without_a_grade_moves_nothing_neither_policy_nor_values() {
    let dir = tempfile::tempdir().unwrap();
    let given: Vec<_> = PPO.into_iter().chain([("graderFailureLimit", "1")]).collect();
    let plan = plan(dir.path(), &given);
    reinforce(&plan, &Silent, &mut (), &StopFlag::default()).unwrap();
    let kept = Weights::open_file(&plan.checkpoints().join("step-00000006/weights.safetensors")).unwrap();
    let values = |name: &str, shape: &[usize]| -> Vec<f32> {
        kept.get(name, shape, &candle_core::Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    for name in kept.names() {
        // Halves of an adapter that begin at zero, and the head.
        if name == VALUE_HEAD || name.ends_with("lora_B.weight") {
            assert!(values(name, kept.shape(name).unwrap()).iter().all(|value| *value == 0.0), "{name}");
        }
    }

    // Of a batch with some failures the others are learned from, as if they were alone.
    let dir = tempfile::tempdir().unwrap();
    let plan = super::plan(dir.path(), &given);
    std::fs::create_dir_all(plan.output()).unwrap();
    let sources = Sources::read(&plan, &mut (), &StopFlag::default()).unwrap();
    let resolved = sources.resolve(&plan, None).unwrap();
    let decoder = recipe::load(&plan, (&sources.method, &sources.config), &plan.device().open().unwrap()).unwrap();
    let method = start::method_on(&plan, (&sources.method, None), &decoder).unwrap();
    let grader = Failing { every: 3, asked: AtomicUsize::new(9), flag: None };
    let mut run = Run::resume(&plan, &grader, &sources, &decoder, method, resolved, None).unwrap();
    let step = run.step(&mut (), &StopFlag::default()).unwrap().unwrap();
    let extra: BTreeMap<_, _> = step.extra.iter().copied().collect();
    assert_eq!(extra["grader/failed"], 5.0, "every third of twelve, and one whose reward is no number");
    assert!(step.loss.is_finite() && step.gradient_norm > 0.0);
}
