//! GRPO against trl (`tests/golden/grpo.py`): advantages, losses and slopes as pure numbers, and the gradients of a
//! model. With `TUNESMITH_GOLDEN` set the cases are those of a fresh draw.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::*;
use crate::models::{Decoder, Form, Weights};
use crate::train::backprop::{Gradients, MicroBatch, pass};
use crate::tune::read_adapter;

#[derive(Deserialize)]
struct Options {
    loss_type: String,
    beta: Option<f64>,
    epsilon: Option<f64>,
    epsilon_high: Option<f64>,
    scale_rewards: Option<String>,
    temperature: Option<f64>,
}

#[derive(Deserialize)]
struct Case {
    options: Options,
    prompts: Vec<Vec<u32>>,
    answers: Vec<Vec<u32>>,
    rewards: Vec<Option<f64>>,
    advantages: Vec<f64>,
    old: Option<Vec<Vec<f32>>>,
    reference: Option<Vec<Vec<f32>>>,
    log_probabilities: Vec<Vec<f32>>,
    slopes: Vec<Vec<f64>>,
    loss: f64,
    kl: Option<f64>,
    clip_low: f64,
    clip_high: f64,
}

fn fixtures() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "a run against a fresh seed names its folder so")]
    let fresh = std::env::var_os("TUNESMITH_GOLDEN").map(|folder| PathBuf::from(folder).join("grpo"));
    fresh.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/grpo"))
}

fn cases() -> BTreeMap<String, Case> {
    let text = std::fs::read_to_string(fixtures().join("expected.json")).unwrap();
    let cases: BTreeMap<String, Case> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 5);
    cases
}

const GROUP: usize = 4;
const LONGEST: usize = 8;

impl Case {
    fn config(&self) -> GrpoConfig {
        let Options { loss_type, beta, epsilon, epsilon_high, scale_rewards, temperature } = &self.options;
        let clip_low = epsilon.unwrap_or(0.2);
        GrpoConfig {
            clip_low,
            clip_high: epsilon_high.unwrap_or(clip_low),
            kl_beta: beta.unwrap_or(0.0),
            aggregation: Aggregation::ALL.into_iter().find(|one| one.name() == loss_type).unwrap(),
            scale: scale_rewards.as_ref().map_or(AdvantageScale::Group, |name| {
                AdvantageScale::ALL.into_iter().find(|one| one.name() == name).unwrap()
            }),
            temperature: temperature.unwrap_or(1.0),
        }
    }

    fn samples(&self) -> Vec<Sampled> {
        let config = self.config();
        let lengths: Vec<usize> = self.answers.iter().map(Vec::len).collect();
        let advantages = advantages(&self.rewards, GROUP, config.scale);
        let weights = config.weights(&lengths, LONGEST);
        (0..lengths.len())
            .map(|n| Sampled {
                advantage: advantages[n],
                weight: weights[n],
                old: self.old.as_ref().map(|old| old[n].clone()).unwrap_or_default(),
                reference: self.reference.as_ref().map(|reference| reference[n].clone()),
            })
            .collect()
    }

    /// All answers behind their prompts, as one micro-batch.
    fn batch(&self) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for (record, (prompt, answer)) in self.prompts.iter().zip(&self.answers).enumerate() {
            let tokens = [&prompt[..], answer].concat();
            batch.labels.extend((1..tokens.len()).map(|at| (at >= prompt.len()).then_some(tokens[at])).chain([None]));
            batch.lengths.push(tokens.len());
            batch.records.push(record);
            batch.tokens.extend(tokens);
        }
        batch
    }
}

#[test]
fn advantages_are_those_of_trl_also_in_a_group_without_difference_and_for_an_answer_without_reward() {
    for (name, case) in cases() {
        let got = advantages(&case.rewards, GROUP, case.config().scale);
        for (got, want) in got.iter().zip(&case.advantages) {
            assert!((got - want).abs() < 1e-5 * want.abs().max(1.0), "{name}: {got}, trl {want}");
        }
    }
}

#[test]
fn loss_and_slopes_of_given_log_probabilities_are_those_of_trl() {
    for (name, case) in cases() {
        let config = case.config();
        let (mut loss, mut tokens, mut kl, mut low, mut high) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (n, sampled) in case.samples().iter().enumerate() {
            for (at, now) in case.log_probabilities[n].iter().enumerate() {
                let now = f64::from(*now);
                let old = if sampled.old.is_empty() { now } else { f64::from(sampled.old[at]) };
                let reference = sampled.reference.as_ref().map(|reference| f64::from(reference[at]));
                let token = config.token(now, old, reference, sampled.advantage);
                loss += token.loss * sampled.weight;
                let (slope, want) = (token.slope * sampled.weight, case.slopes[n][at]);
                assert!((slope - want).abs() < 2e-6, "{name}, answer {n}, token {at}: slope {slope}, trl {want}");
                tokens += 1.0;
                kl += token.kl;
                low += f64::from(u8::from(token.clipped_low));
                high += f64::from(u8::from(token.clipped_high));
            }
        }
        assert!((loss - case.loss).abs() < 1e-5, "{name}: loss {loss}, trl {}", case.loss);
        assert!((kl / tokens - case.kl.unwrap_or(0.0)).abs() < 1e-5, "{name}: kl {}, trl {:?}", kl / tokens, case.kl);
        assert!((low / tokens - case.clip_low).abs() < 1e-6 && (high / tokens - case.clip_high).abs() < 1e-6, "{name}");
    }
}

#[test]
fn loss_and_gradients_of_a_batch_are_those_of_trl_on_the_same_model() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models");
    let decoder = Decoder::load(&models.join("llama"), &Device::Cpu, Form::Frozen).unwrap();
    let adapter = read_adapter(&models.join("lora/after"), decoder.config(), &Device::Cpu, true).unwrap();
    let trainables = adapter.tuning.trainables();
    for (name, case) in cases() {
        let criterion = Grpo::new(case.config(), case.samples().into());
        let mut gradients = Gradients::new(trainables);
        let sum =
            pass(&decoder, trainables, &*adapter.tuning, &criterion, &case.batch(), &mut gradients, true).unwrap();
        assert!((sum.loss_sum - case.loss).abs() < 1e-5, "{name}: loss {}, trl {}", sum.loss_sum, case.loss);
        let tokens: usize = case.answers.iter().map(Vec::len).sum();
        assert_eq!(sum.count, tokens, "{name}");
        let expected = Weights::open_file(&fixtures().join(format!("{name}.safetensors"))).unwrap();
        assert_eq!(expected.names().count(), trainables.len(), "{name}");
        for (one, gradient) in trainables.iter().zip(gradients.sums()) {
            let values = |tensor: &Tensor| -> Vec<f32> { tensor.flatten_all().unwrap().to_vec1().unwrap() };
            let want = values(&expected.get(&one.name, one.var.dims(), &Device::Cpu).unwrap());
            let got = values(gradient.as_ref().unwrap());
            let size = want.iter().fold(0f32, |size, value| size.max(value.abs()));
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 1e-4 * size, "{name}, {}: {got}, trl {want}", one.name);
            }
        }
    }
}

#[test]
fn a_clipped_ratio_moves_nothing_and_a_ratio_that_may_return_does() {
    let config = GrpoConfig::default();
    for (now, advantage, clipped) in [(0.5, 1.0, true), (0.5, -1.0, false), (-0.5, -1.0, true), (-0.5, 1.0, false)] {
        let token = config.token(now, 0.0, None, advantage);
        assert_eq!(token.slope == 0.0, clipped, "{now} {advantage}");
        assert_eq!(token.clipped_low || token.clipped_high, clipped);
    }
}
