//! Adapters that libraries wrote, merged: the answers, the numbers, the directory, and what is refused.

use std::path::PathBuf;

use candle_core::Tensor;
use serde_json::json;

use super::*;
use crate::models::{Decoder, Precision, save_tensors};
use crate::tune::QUANTIZATION;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures").join(name)
}

fn model(name: &str) -> PathBuf {
    fixture("models").join(name)
}

/// Every adapter of a library that can be merged, over its base: LoRA, rsLoRA with ranks and alphas of its own over a
/// tied base, LoRA of fused maps, one that was trained further, DoRA, and heads of an untied and of a tied base.
const CASES: [(&str, &str); 7] = [
    ("llama", "models/lora/after"),
    ("qwen2", "models/patterned"),
    ("phi3", "models/fused"),
    ("llama", "methods/lora_continued/after"),
    ("qwen2", "methods/dora/after"),
    ("llama", "methods/head/after"),
    ("qwen2", "methods/head_tied/after"),
];

fn copy(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(dir.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    dir
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
}

fn stored_as(dtype: MergedType) -> MergeOptions {
    MergeOptions { dtype: Some(dtype), ..MergeOptions::default() }
}

fn refusal(base: &Path, adapter: &Path, out: &Path, options: &MergeOptions) -> String {
    let refusal = merge(base, adapter, out, options).unwrap_err();
    assert_eq!(refusal.kind(), crate::error::Kind::Validation, "{refusal}");
    refusal.message().to_string()
}

#[test]
fn a_merged_model_answers_as_the_adapter_over_its_base() {
    let tokens = [5, 17, 200, 33, 90, 41, 256, 7];
    let logits = |dir: &Path, tuning: &dyn Tuning| {
        let decoder = Decoder::load(dir, &Device::Cpu, Form::Frozen).unwrap();
        decoder.logits(&tokens, &[5, 3], tuning).unwrap()
    };
    for (base, adapter) in CASES {
        let (base, dir) = (model(base), tempfile::tempdir().unwrap());
        let out = dir.path().join("merged");
        let merged = merge(&base, &fixture(adapter), &out, &stored_as(MergedType::F32)).unwrap();
        let tuned = read_adapter(&fixture(adapter), &DecoderConfig::read(&base).unwrap(), &Device::Cpu, false).unwrap();
        let (before, after) = (logits(&base, &*tuned.tuning), logits(&out, &Frozen));
        let apart = (&before - after).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(apart < 1e-4, "{adapter}: {apart}");
        // The adapter did something that merging could have lost.
        let untuned = logits(&base, &Frozen);
        let moved = (before - untuned).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(moved > 0.1, "{adapter}: {moved}");
        let Difference { tokens, largest, mean, same_token } = merged.difference;
        assert_eq!((tokens, same_token), (RECORDS * RECORD_TOKENS, 1.0));
        assert!(largest < 1e-4 && mean <= largest, "{adapter}: {merged:?}");
        assert_eq!(merged.difference_to_four_bits, None);
        assert_eq!(dir.path().read_dir().unwrap().count(), 1, "nothing unfinished stays");
    }
}

#[test]
fn merged_weights_are_those_of_peft_and_all_others_those_of_the_base() {
    for (case, base, adapter, dtype) in [
        ("lora", "llama", "models/lora/after", MergedType::F32),
        ("patterned", "qwen2", "models/patterned", MergedType::F32),
        ("dora", "qwen2", "methods/dora/after", MergedType::Bf16),
        ("head_tied", "qwen2", "methods/head_tied/after", MergedType::F32),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("merged");
        let merged = merge(&model(base), &fixture(adapter), &out, &stored_as(dtype)).unwrap();
        let expected = Weights::open_file(&fixture("merged").join(format!("{case}.safetensors"))).unwrap();
        let (ours, unmerged) = (Weights::open(&out).unwrap(), Weights::open(&model(base)).unwrap());
        assert_eq!(expected.names().count(), merged.changed_weights, "{case}");
        let values = |weights: &Weights, name: &str| -> Vec<f32> {
            let shape = weights.shape(name).unwrap().to_vec();
            weights.get(name, &shape, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let (mut seen, mut apart) = (0, 0);
        for name in ours.names() {
            let got = values(&ours, name);
            if !expected.contains(name) {
                let rounded = encode(&values(&unmerged, name), dtype.dtype()).unwrap();
                assert_eq!(encode(&got, dtype.dtype()).unwrap(), rounded, "{case}: {name} changed");
                continue;
            }
            let want = values(&expected, name);
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                // Sums in another order may fall on the other side of a rounding: by one place, and seldom.
                let place =
                    if dtype == MergedType::Bf16 { (want.abs() / 128.0).max(1e-6) } else { 1e-6 * want.abs().max(1.0) };
                assert!((got - want).abs() <= place, "{case}: {name} has {got} for {want}");
                apart += usize::from(dtype == MergedType::Bf16 && got != want);
            }
            seen += got.len();
        }
        assert!(apart * 100 <= seen, "{case}: {apart} of {seen} weights are not peft's");
    }
}

#[test]
fn the_directory_is_the_bases_with_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sharded");
    let adapter = copy(&fixture("methods/head_tied/after"));
    std::fs::write(adapter.path().join("chat_template.jinja"), "of the adapter").unwrap();
    let base = copy(&model("qwen2"));
    std::fs::write(base.path().join("chat_template.jinja"), "of the base").unwrap();
    std::fs::write(base.path().join("generation_config.json"), "{}").unwrap();
    let options = MergeOptions { dtype: Some(MergedType::F16), max_shard_bytes: 20_000 };
    let merged = merge(base.path(), adapter.path(), &out, &options).unwrap();
    assert!(
        merged.untied && merged.files.len() > 1 && merged.files[0].starts_with("model-00001-of-0000"),
        "{merged:?}"
    );
    assert_eq!((merged.dtype.as_str(), merged.method, merged.changed_weights), ("float16", "head", 1));
    let mut expected = config(&model("qwen2"));
    expected["dtype"] = json!("float16");
    expected["tie_word_embeddings"] = json!(false);
    assert_eq!(config(&out), expected);
    assert_eq!(std::fs::read_to_string(out.join("chat_template.jinja")).unwrap(), "of the adapter");
    assert!(out.join("generation_config.json").exists() && out.join("model.safetensors.index.json").exists());
    assert!(merged.difference.largest < 0.05, "{merged:?}");

    // Left to the base, types and configuration stay.
    let out = dir.path().join("as-the-base");
    let merged = merge(&model("qwen2"), &fixture("methods/dora/after"), &out, &MergeOptions::default()).unwrap();
    assert_eq!(
        (merged.dtype.as_str(), merged.untied, merged.files.as_slice()),
        ("bfloat16", false, &["model.safetensors".to_string()][..])
    );
    assert_eq!(config(&out), config(&model("qwen2")));
    assert_eq!(MergedType::sixteen_bits(&model("mistral")).unwrap(), MergedType::F16);
    assert_eq!(MergedType::sixteen_bits(&model("llama")).unwrap(), MergedType::Bf16);
}

#[test]
fn qlora_merges_into_the_base_of_16_bits_and_says_how_far_that_is_from_its_4_bits() {
    let adapter = copy(&fixture("methods/qlora/after"));
    std::fs::write(adapter.path().join(QUANTIZATION), "{}").unwrap();
    let base: Value = serde_json::from_slice(&std::fs::read(fixture("methods/qlora/expected.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let base = model(base["base"].as_str().unwrap());
    let merged = merge(&base, adapter.path(), &dir.path().join("out"), &stored_as(MergedType::F32)).unwrap();
    let four_bits = merged.difference_to_four_bits.unwrap();
    assert_eq!(merged.method, "qlora");
    assert!(merged.difference.largest < 1e-4, "{merged:?}");
    assert!(four_bits.mean > 100.0 * merged.difference.mean && four_bits.largest < 50.0, "{merged:?}");
}

#[test]
fn what_cannot_be_merged_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (adapter, said) in [
        ("methods/prefix/after", "method prefix cannot be merged: a prefix is keys and values"),
        ("methods/prompt/after", "method prompt cannot be merged"),
        ("methods/llama_adapter/after", "method llama_adapter cannot be merged"),
        ("methods/adapter_houlsby/after", "method adapter cannot be merged: bottlenecks"),
    ] {
        let message = refusal(&model("llama"), &fixture(adapter), &out, &MergeOptions::default());
        assert!(message.contains(said), "{message}");
    }
    let lora = fixture("models/lora/after");
    let misfit = refusal(&model("phi3"), &lora, &out, &MergeOptions::default());
    assert!(misfit.contains("has no place in a model"), "{misfit}");

    let quantised = copy(&model("llama"));
    let mut changed = config(quantised.path());
    changed["quantization_config"] = crate::models::quantization_config();
    std::fs::write(quantised.path().join("config.json"), changed.to_string()).unwrap();
    assert!(refusal(quantised.path(), &lora, &out, &MergeOptions::default()).contains("The base is quantised"));

    let full = copy(&model("llama"));
    let message = refusal(&model("llama"), &lora, full.path(), &MergeOptions::default());
    assert!(message.contains("is there: give a folder that is not there yet"), "{message}");
    assert!(!out.exists());
}

#[test]
fn a_number_that_cannot_be_stored_is_named_with_its_weight_and_leaves_nothing() {
    let adapter = copy(&fixture("models/lora/after"));
    let path = adapter.path().join("adapter_model.safetensors");
    let weights = Weights::open_file(&path).unwrap();
    let read = |name: &str| weights.get(name, weights.shape(name).unwrap(), &Device::Cpu).unwrap();
    let tensors: Vec<(String, Tensor)> = weights.names().map(|name| (name.to_string(), read(name))).collect();
    let dir = tempfile::tempdir().unwrap();
    for (factor, dtype, said) in [(f64::NAN, MergedType::F32, "broken"), (1e7, MergedType::F16, "use another type")] {
        let mut broken = tensors.clone();
        let (_, b) = broken.iter_mut().find(|(name, _)| name.contains("layers.1.mlp.up_proj.lora_B")).unwrap();
        *b = (&*b * factor).unwrap();
        save_tensors(&path, &broken, Precision::F32).unwrap();
        let message = refusal(&model("llama"), adapter.path(), &dir.path().join("out"), &stored_as(dtype));
        assert!(message.starts_with("model.layers.1.mlp.up_proj.weight holds ") && message.contains(said), "{message}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}
