//! Runs on a base in bf16: the same course as in f32, and all that is promised of a run. Once as this CPU
//! computes them, and once as a CPU with fast AVX512-BF16 does, by the portable micro-kernel where it has none.

use super::resume::{advance, assert_same};
use super::*;
use crate::kernels::emulated;
use crate::models::{DecoderConfig, Frozen};

const GIVEN: [(&str, &str); 6] = [
    ("stepCount", "50"),
    ("batchSize", "5"),
    ("learningRate", "0.01"),
    ("loraDropout", "0.1"),
    ("evaluationInterval", "50"),
    ("checkpointInterval", "1000"),
];

fn with(
    given: &[(&'static str, &'static str)],
    more: (&'static str, &'static str),
) -> Vec<(&'static str, &'static str)> {
    given.iter().copied().chain([more]).collect()
}

/// The losses of every step, and the last validation loss.
fn curve(given: &[(&str, &str)]) -> (Vec<f64>, f64) {
    let dir = tempfile::tempdir().unwrap();
    let summary = complete(&plan(dir.path(), given));
    (losses(&text(&summary, TRAINING)), summary.validation_losses[0])
}

#[test]
fn a_run_in_bf16_takes_the_course_of_the_run_in_f32() {
    let (expected, _) = curve(&with(&GIVEN, ("computePrecision", "float32")));
    assert!(expected[49] < 0.5 * expected[0], "it learns: {expected:?}");
    let given = with(&GIVEN, ("computePrecision", "bfloat16"));
    let as_is = curve(&given);
    let with_instruction = emulated(2, || curve(&given));
    assert_ne!(as_is.0, expected, "the weights were rounded");
    if !crate::kernels::has_bf16_products() {
        assert_ne!(as_is.0, with_instruction.0, "activations and gradients were rounded too");
    }
    for (curve, _) in [as_is, with_instruction] {
        // bf16 keeps 8 bits: a unit is 0.4 %.
        let apart: Vec<f64> = curve.iter().zip(&expected).map(|(got, want)| (got - want).abs() / want).collect();
        let (largest, mean) = (apart.iter().copied().fold(0.0, f64::max), apart.iter().sum::<f64>() / 50.0);
        eprintln!("steps {mean:.5} apart, at most {largest:.5}");
        assert!(largest < 0.05 && mean < 0.01, "{curve:?}, in f32 {expected:?}");
    }
}

#[test]
fn a_run_in_bf16_goes_on_and_spreads_over_threads_with_the_same_bits() {
    let given = [
        ("stepCount", "5"),
        ("batchSize", "10"),
        ("learningRate", "0.01"),
        ("loraDropout", "0.2"),
        ("evaluationInterval", "2"),
        ("computePrecision", "bfloat16"),
    ];
    let whole = || {
        let dir = tempfile::tempdir().unwrap();
        tree(&complete(&plan(dir.path(), &given)).output)
    };
    let in_parts = || {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path(), &given);
        while !advance(&plan, 2) {}
        (tree(&plan.output()), dir)
    };
    assert_eq!(whole(), in_parts().0);
    let expected = emulated(1, whole);
    for threads in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path(), &given);
        emulated(threads, || while !advance(&plan, 2) {});
        assert_same(&expected, &plan.output());
    }
}

#[test]
fn every_method_on_a_frozen_base_learns_in_bf16() {
    for method in ["lora", "adapter", "prefix", "prompt", "llama_adapter", "head"] {
        let rate = if method == "prompt" { "0.3" } else { "0.02" };
        let given = [
            ("tuningMethod", method),
            ("stepCount", "12"),
            ("batchSize", "10"),
            ("learningRate", rate),
            ("computePrecision", "bfloat16"),
        ];
        let (losses, _) = emulated(2, || curve(&given));
        assert!(losses[11] < 0.95 * losses[0], "{method}: {losses:?}");
    }
}

#[test]
fn the_manifest_says_what_was_computed_in_and_another_precision_is_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |precision| plan(dir.path(), &[("stepCount", "3"), ("computePrecision", precision)]);
    assert!(!advance(&plan("float32"), 2));
    let mut listener = Listener::default();
    let plan = plan("bfloat16");
    run(&plan, &mut listener, &StopFlag::default()).unwrap();
    assert_eq!(listener.steps[0].step, 0);
    assert!(listener.warnings[0].contains("belongs to another run"), "{:?}", listener.warnings);
    let manifest = std::fs::read_to_string(plan.output().join("training_manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["hyperParameters"]["computePrecision"], "bfloat16");
}

#[test]
fn bf16_is_chosen_for_a_large_frozen_base_where_the_cpu_multiplies_it() {
    let small = DecoderConfig::read(&base()).unwrap();
    let large = DecoderConfig { hidden_size: 1024, intermediate_size: 4096, ..small.clone() };
    let form = |given: &[(&str, &str)], base: &DecoderConfig| {
        let settings = settings(given);
        settings.form(&settings.method, base)
    };
    emulated(1, || {
        assert_eq!((form(&[], &small), form(&[], &large)), (Form::Frozen, Form::Bf16));
        assert_eq!(form(&[("computePrecision", "Float32")], &large), Form::Frozen);
        assert_eq!(form(&[("computePrecision", "bfloat16")], &small), Form::Bf16);
        assert_eq!(form(&[("tuningMethod", "qlora")], &large), Form::Nf4);
        assert_eq!(form(&[("tuningMethod", "full")], &large), Form::Trainable);
    });
    if !crate::kernels::has_bf16_products() {
        assert_eq!(form(&[], &large), Form::Frozen);
        assert_eq!(form(&[("computePrecision", "bfloat16")], &large), Form::Bf16);
    }
}

#[test]
fn a_base_of_every_family_in_bf16_gives_nearly_the_logits_of_f32() {
    for family in ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3"] {
        let dir = base().with_file_name(family);
        let logits = |form| {
            let decoder = Decoder::load(&dir, &Device::Cpu, form).unwrap();
            decoder.logits(&[5, 6, 7, 8, 9, 10, 11], &[4, 3], &Frozen).unwrap()
        };
        let exact = logits(Form::Frozen);
        let size = exact.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        let apart = |got: candle_core::Tensor| {
            let squares = (got - &exact).unwrap().sqr().unwrap();
            squares.mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap()
        };
        // A checkpoint that holds bf16 has nothing to round but what meets its weights.
        let (as_is, with_instruction) = (apart(logits(Form::Bf16)), apart(emulated(2, || logits(Form::Bf16))));
        assert!(
            as_is < 0.02 * size && with_instruction < 0.02 * size,
            "{family}: {as_is}, {with_instruction} of {size}"
        );
        assert!(with_instruction > 0.0, "{family}");
    }
}
