//! Tuning against peft and torch (`models.py`): adapters that peft wrote, gradients of LoRA and of
//! full tuning.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use tunesmith::models::{Decoder, Form, Weights};
use tunesmith::train::backprop::{Gradients, MicroBatch, loss, loss_and_gradients};
use tunesmith::tune::{Full, Lora, LoraConfig, Method, read_adapter};

use super::models::{assert_logits, expected, fixture};

/// `lora/expected.json`.
#[derive(Deserialize)]
struct LoraRun {
    /// Tokens of each record, and which of them are learned.
    batch: Vec<(Vec<u32>, Vec<bool>)>,
    /// Mean loss before each of three steps, and after them.
    losses: Vec<f64>,
}

/// `gradients.json`: each gradient's length, and its product with cos(0), cos(1), ….
#[derive(Deserialize)]
struct FullRun {
    loss: f64,
    gradients: BTreeMap<String, (f64, f64)>,
}

fn batch() -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (tokens, learn) in expected::<LoraRun>("lora/expected.json").batch {
        let next = tokens[1..].iter().zip(&learn[1..]).map(|(token, learn)| learn.then_some(*token));
        batch.labels.extend(next.chain([None]));
        batch.records.push(batch.lengths.len());
        batch.lengths.push(tokens.len());
        batch.tokens.extend(tokens);
    }
    batch
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f64::from).collect()
}

#[test]
fn adapters_that_peft_wrote_give_the_logits_that_peft_gives() {
    let llama = Decoder::load(&fixture("llama"), &Device::Cpu, Form::Frozen).unwrap();
    let after = read_adapter(&fixture("lora/after"), llama.config(), &Device::Cpu, false).unwrap();
    assert_logits(&llama, &*after.tuning, "lora/after.safetensors");

    let qwen2 = Decoder::load(&fixture("qwen2"), &Device::Cpu, Form::Frozen).unwrap();
    let patterned = read_adapter(&fixture("patterned"), qwen2.config(), &Device::Cpu, false).unwrap();
    assert!(patterned.fixed.unwrap().contains("rank_pattern"), "it cannot be tuned further");
    assert_logits(&qwen2, &*patterned.tuning, "patterned/expected.safetensors");

    let phi3 = Decoder::load(&fixture("phi3"), &Device::Cpu, Form::Frozen).unwrap();
    let fused = read_adapter(&fixture("fused"), phi3.config(), &Device::Cpu, false).unwrap();
    assert_logits(&phi3, &*fused.tuning, "fused/expected.safetensors");
}

#[test]
fn lora_gradients_equal_those_of_peft() {
    let decoder = Decoder::load(&fixture("llama"), &Device::Cpu, Form::Frozen).unwrap();
    let config = LoraConfig { rank: 4, alpha: 8.0, ..Default::default() };
    let lora = Lora::new(&decoder, config, 0).unwrap();
    let before = Weights::open_file(&fixture("lora/before/adapter_model.safetensors")).unwrap();
    for one in lora.trainables() {
        one.var.set(&before.get(&one.name, one.var.dims(), &Device::Cpu).unwrap()).unwrap();
    }
    let run: LoraRun = expected("lora/expected.json");
    let mut gradients = Gradients::new(lora.trainables());
    let sum = loss_and_gradients(&decoder, lora.trainables(), &lora, &batch(), &mut gradients, true).unwrap();
    let count = sum.labelled as f64;
    assert!((sum.loss_sum / count - run.losses[0]).abs() < 1e-5, "{} {}", sum.loss_sum / count, run.losses[0]);
    assert_eq!(loss(&decoder, &lora, &batch()).unwrap(), sum, "evaluation and training agree");

    let expected = Weights::open_file(&fixture("lora/gradients.safetensors")).unwrap();
    assert_eq!(expected.names().count(), lora.trainables().len());
    for (one, gradient) in lora.trainables().iter().zip(gradients.sums()) {
        let want = values(&expected.get(&one.name, one.var.dims(), &Device::Cpu).unwrap());
        let got = values(gradient.as_ref().unwrap());
        let size = want.iter().fold(0f64, |size, value| size.max(value.abs()));
        for (got, want) in got.iter().zip(&want) {
            assert!((got / count - want).abs() < 1e-4 * size, "{}: {} for {want}", one.name, got / count);
        }
    }
}

#[test]
fn full_gradients_equal_those_of_torch_also_of_a_tied_embedding() {
    for family in ["qwen2", "qwen3", "gemma2", "gemma3", "phi3"] {
        let decoder = Decoder::load(&fixture(family), &Device::Cpu, Form::Trainable).unwrap();
        let full = Full::new(&decoder).unwrap();
        let run: FullRun = expected(&format!("{family}/gradients.json"));
        let mut gradients = Gradients::new(full.trainables());
        let sum = loss_and_gradients(&decoder, full.trainables(), &full, &batch(), &mut gradients, true).unwrap();
        let count = sum.labelled as f64;
        assert!((sum.loss_sum / count - run.loss).abs() < 1e-5, "{family}");
        assert_eq!(run.gradients.len(), full.trainables().len(), "{family}");
        for (one, gradient) in full.trainables().iter().zip(gradients.sums()) {
            let got = values(gradient.as_ref().unwrap());
            let length = got.iter().map(|value| value * value).sum::<f64>().sqrt() / count;
            let wave = got.iter().enumerate().map(|(i, value)| value * (i as f64).cos()).sum::<f64>() / count;
            let (want_length, want_wave) = run.gradients[&one.name];
            // The product with a wave grows with the root of the size; its error is measured by the length.
            let near = |got: f64, want: f64| (got - want).abs() < 1e-4 * want_length.max(1e-3);
            assert!(near(length, want_length), "{family} {}: length {length}, torch {want_length}", one.name);
            assert!(near(wave, want_wave), "{family} {}: wave {wave}, torch {want_wave}", one.name);
        }
    }
}
