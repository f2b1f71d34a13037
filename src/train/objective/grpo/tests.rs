//! GRPO against trl (`tests/golden/grpo.py`): advantages, losses and slopes as pure numbers, and the gradients of a
//! model. With `TUNESMITH_GOLDEN` set the cases are those of a fresh draw.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::train::backprop::{Gradients, pass};
use crate::train::objective::golden;

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

fn cases() -> BTreeMap<String, Case> {
    let cases: BTreeMap<String, Case> = golden::read_expected("grpo");
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
    let (decoder, method) = golden::policy();
    let trainables = method.trainables();
    for (name, case) in cases() {
        let criterion = Grpo::new(case.config(), case.samples().into());
        let mut gradients = Gradients::new(trainables);
        let batch = golden::micro_batch(&case.prompts, &case.answers);
        let sum = pass(&decoder, trainables, &*method, &criterion, &batch, &mut gradients, true).unwrap();
        assert!((sum.loss_sum - case.loss).abs() < 1e-5, "{name}: loss {}, trl {}", sum.loss_sum, case.loss);
        let tokens: usize = case.answers.iter().map(Vec::len).sum();
        assert_eq!(sum.count, tokens, "{name}");
        golden::assert_gradients("grpo", &name, trainables, &gradients);
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
