//! PPO against trl (`tests/golden/ppo.py`): advantages, returns, losses and slopes as pure numbers, and the gradients
//! of a model with its value head; and against finite differences. With `TUNESMITH_GOLDEN` set the cases are those of
//! a fresh draw.

use std::collections::BTreeMap;

use candle_core::Device;
use serde::Deserialize;

use super::*;
use crate::models::{Decoder, Weights};
use crate::train::backprop::{Gradients, MicroBatch, evaluate, pass};
use crate::train::gradcheck::assert_slopes;
use crate::train::objective::golden;
use crate::train::optim::{AdamW, AdamWSettings};
use crate::tune::{ActorCritic, Method};

#[derive(Deserialize)]
struct Options {
    temperature: f64,
    kl_coef: Option<f64>,
    gamma: Option<f64>,
    lam: Option<f64>,
    cliprange: Option<f64>,
    cliprange_value: Option<f64>,
    vf_coef: Option<f64>,
}

#[derive(Deserialize)]
struct Case {
    options: Options,
    prompts: Vec<Vec<u32>>,
    answers: Vec<Vec<u32>>,
    rewards: Vec<f64>,
    old: Vec<Vec<f32>>,
    reference: Vec<Vec<f32>>,
    values: Vec<Vec<f64>>,
    advantages: Vec<Vec<f64>>,
    returns: Vec<Vec<f64>>,
    new_log_probabilities: Vec<Vec<f64>>,
    slopes: Vec<Vec<f64>>,
    new_values: Vec<Vec<f64>>,
    value_slopes: Vec<Vec<f64>>,
    loss: f64,
    policy_loss: f64,
    value_loss: f64,
    clipped: f64,
    values_clipped: f64,
    approx_kl: f64,
}

fn cases() -> BTreeMap<String, Case> {
    let cases: BTreeMap<String, Case> = golden::read_expected("ppo");
    assert!(cases.len() >= 3);
    // The longest answers have no state behind them, the others have one.
    assert!(cases.values().all(|case| case.values.iter().zip(&case.answers).any(|(v, a)| v.len() == a.len())));
    assert!(cases.values().all(|case| case.values.iter().zip(&case.answers).any(|(v, a)| v.len() == a.len() + 1)));
    cases
}

impl Case {
    fn config(&self) -> PpoConfig {
        let Options { temperature, kl_coef, gamma, lam, cliprange, cliprange_value, vf_coef } = &self.options;
        let usual = PpoConfig::default();
        PpoConfig {
            clip: cliprange.unwrap_or(usual.clip),
            value_clip: cliprange_value.unwrap_or(usual.value_clip),
            value_coef: vf_coef.unwrap_or(usual.value_coef),
            kl_coef: kl_coef.unwrap_or(usual.kl_coef),
            gamma: gamma.unwrap_or(usual.gamma),
            lambda: lam.unwrap_or(usual.lambda),
            temperature: *temperature,
        }
    }

    fn experience(&self) -> Vec<Experience> {
        let episode = |n: usize| Episode {
            reward: self.rewards[n],
            old: self.old[n].clone(),
            reference: Some(self.reference[n].clone()),
            values: self.values[n].clone(),
        };
        self.config().experience((0..self.answers.len()).map(episode).collect())
    }

    fn batch(&self) -> MicroBatch {
        golden::micro_batch(&self.prompts, &self.answers)
    }
}

#[track_caller]
fn assert_close(what: &str, got: &[Vec<f64>], want: &[Vec<f64>], tolerance: f64) {
    for (n, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.len(), want.len(), "{what} of answer {n}");
        for (at, (got, want)) in got.iter().zip(want).enumerate() {
            let close = (got - want).abs() < tolerance * want.abs().max(1.0);
            assert!(close, "{what} of answer {n} at {at}: {got}, trl {want}");
        }
    }
}

#[test]
fn advantages_and_returns_are_those_of_trl() {
    for (name, case) in cases() {
        let experience = case.experience();
        let of =
            |part: fn(&Experience) -> &Vec<f64>| experience.iter().map(|one| part(one).clone()).collect::<Vec<_>>();
        assert_close(&format!("{name}: advantages"), &of(|one| &one.advantages), &case.advantages, 1e-5);
        assert_close(&format!("{name}: returns"), &of(|one| &one.returns), &case.returns, 1e-5);
    }
}

#[test]
fn losses_clipped_shares_and_slopes_of_given_log_probabilities_and_values_are_those_of_trl() {
    for (name, case) in cases() {
        let (config, experience) = (case.config(), case.experience());
        let tokens = case.answers.iter().map(Vec::len).sum::<usize>() as f64;
        let states = case.values.iter().map(Vec::len).sum::<usize>() as f64;
        let (mut policy, mut clipped, mut approx_kl, mut slopes) = (0.0, 0.0, 0.0, Vec::new());
        let (mut value, mut values_clipped, mut value_slopes) = (0.0, 0.0, Vec::new());
        for (n, one) in experience.iter().enumerate() {
            let of_token = |(at, now): (usize, &f64)| {
                let token = config.policy(*now, f64::from(one.old[at]), one.advantages[at]);
                policy += token.loss / tokens;
                clipped += f64::from(u8::from(token.clipped)) / tokens;
                approx_kl += 0.5 * (now - f64::from(one.old[at])).powi(2) / tokens;
                token.slope / tokens
            };
            slopes.push(case.new_log_probabilities[n].iter().enumerate().map(of_token).collect::<Vec<_>>());
            let of_state = |(at, now): (usize, &f64)| {
                let state = config.value(*now, one.values[at], one.returns[at]);
                value += state.loss / states;
                values_clipped += f64::from(u8::from(state.clipped)) / states;
                config.value_coef * state.slope / states
            };
            value_slopes.push(case.new_values[n].iter().enumerate().map(of_state).collect::<Vec<_>>());
        }
        assert_close(&format!("{name}: slopes"), &slopes, &case.slopes, 2e-6);
        assert_close(&format!("{name}: slopes of values"), &value_slopes, &case.value_slopes, 2e-6);
        for (what, got, want) in [
            ("policy", policy, case.policy_loss),
            ("value", value, case.value_loss),
            ("both", policy + config.value_coef * value, case.loss),
            ("clipped", clipped, case.clipped),
            ("values clipped", values_clipped, case.values_clipped),
            ("approximate divergence", approx_kl, case.approx_kl),
        ] {
            assert!((got - want).abs() < 1e-5, "{name}, {what}: {got}, trl {want}");
        }
        assert!(case.clipped > 0.0 && case.values_clipped > 0.0, "{name}: a case clips both");
    }
}

fn model() -> (Decoder, ActorCritic) {
    let (decoder, policy) = golden::policy();
    let head = Weights::open_file(&golden::root().join("ppo/head.safetensors")).unwrap();
    let head = head.get(VALUE_HEAD, &[1, decoder.config().hidden_size], &Device::Cpu).unwrap();
    let critic = ActorCritic::with_head(policy, &head).unwrap();
    (decoder, critic)
}

#[test]
fn losses_and_gradients_of_a_batch_are_those_of_trl_on_the_same_model_with_its_head() {
    let (decoder, critic) = model();
    let trainables = critic.trainables();
    for (name, case) in cases() {
        let criterion = Ppo::new(case.config(), case.experience());
        let mut gradients = Gradients::new(trainables);
        let sum = pass(&decoder, trainables, &critic, &criterion, &case.batch(), &mut gradients, true).unwrap();
        let tokens = case.answers.iter().map(Vec::len).sum::<usize>();
        assert_eq!((sum.count, sum.labelled), (tokens, tokens), "{name}");
        assert!((sum.loss_sum - case.loss).abs() < 1e-5, "{name}: loss {}, trl {}", sum.loss_sum, case.loss);
        let of_records: f64 = sum.records.iter().map(|record| record.loss_sum).sum();
        assert!((of_records - sum.loss_sum).abs() < 1e-9, "{name}: {of_records} in all records");
        let expected = [case.policy_loss, case.value_loss, case.approx_kl, case.clipped, case.values_clipped];
        for ((what, got), want) in criterion.metrics().iter().zip(&sum.metrics).zip(expected) {
            let got = got / tokens as f64;
            assert!((got - want).abs() < 1e-5, "{name}, {what}: {got}, trl {want}");
        }
        golden::assert_gradients("ppo", &name, trainables, &gradients);
    }
}

#[test]
fn a_batch_in_two_micro_batches_loses_what_it_loses_in_one() {
    let (decoder, critic) = model();
    let trainables = critic.trainables();
    let case = &cases()["warm"];
    let criterion = Ppo::new(case.config(), case.experience());
    let whole = evaluate(&decoder, trainables, &critic, &criterion, &case.batch()).unwrap();
    let batch = case.batch();
    let (tokens, records) = (batch.lengths[..2].iter().sum::<usize>(), 2);
    let first = MicroBatch {
        tokens: batch.tokens[..tokens].to_vec(),
        labels: batch.labels[..tokens].to_vec(),
        lengths: batch.lengths[..records].to_vec(),
        records: batch.records[..records].to_vec(),
    };
    let second = MicroBatch {
        tokens: batch.tokens[tokens..].to_vec(),
        labels: batch.labels[tokens..].to_vec(),
        lengths: batch.lengths[records..].to_vec(),
        records: batch.records[records..].to_vec(),
    };
    let both = [first, second].map(|half| evaluate(&decoder, trainables, &critic, &criterion, &half).unwrap());
    assert!((both[0].loss_sum + both[1].loss_sum - whole.loss_sum).abs() < 1e-6);
    for (at, whole) in whole.metrics.iter().enumerate() {
        assert!((both[0].metrics[at] + both[1].metrics[at] - whole).abs() < 1e-4 * whole.abs().max(1.0), "{at}");
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss_through_head_and_decoder() {
    let (decoder, critic) = model();
    let case = &cases()["usual"];
    // Nothing is clipped, so that the loss has no corners where it is looked at.
    let config = PpoConfig { clip: 10.0, value_clip: 1e3, value_coef: 0.5, temperature: 0.8, ..case.config() };
    let criterion = Ppo::new(config, case.experience());
    let batch = case.batch();
    let sum = evaluate(&decoder, critic.trainables(), &critic, &criterion, &batch).unwrap();
    assert_eq!((sum.metrics[3], sum.metrics[4]), (0.0, 0.0), "something is clipped");
    assert_slopes(&decoder, &critic, &criterion, &batch, 0.01);
}

#[test]
fn a_new_value_head_learns_what_followed_and_the_policy_what_was_better() {
    let (decoder, critic) = model();
    let trainables = critic.trainables();
    let head = &trainables.last().unwrap().var;
    head.set(&head.zeros_like().unwrap()).unwrap();
    let case = &cases()["usual"];
    // What is gone over often moves far: only the policy is held back.
    let config = PpoConfig { value_clip: 1e3, value_coef: 1.0, ..case.config() };
    let criterion = Ppo::new(config, case.experience());
    let settings = AdamWSettings { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.0, paged: false };
    let mut optimizer = AdamW::new(trainables, settings).unwrap();
    let mut losses = Vec::new();
    for _ in 0..150 {
        let mut gradients = Gradients::new(trainables);
        let sum = pass(&decoder, trainables, &critic, &criterion, &case.batch(), &mut gradients, true).unwrap();
        losses.push((sum.metrics[0], sum.metrics[1]));
        optimizer.update(trainables, gradients.sums(), 1.0, 0.01).unwrap();
    }
    let ((policy, value), (policy_after, value_after)) = (losses[0], losses[149]);
    assert!(value_after < 0.1 * value, "values lose {value}, then {value_after}: {losses:?}");
    assert!(policy_after < policy, "the policy loses {policy}, then {policy_after}");
}

#[test]
fn the_reward_falls_on_the_last_state_and_a_batch_without_differences_moves_nothing() {
    let config = PpoConfig { gamma: 1.0, lambda: 1.0, kl_coef: 0.5, ..PpoConfig::default() };
    let episode = |reward: f64, values: usize| Episode {
        reward,
        old: vec![-1.0, -2.0],
        reference: Some(vec![-1.5, -2.0]),
        values: vec![0.0; values],
    };
    // With and without a state behind the last token; the divergence of the first token costs a quarter.
    let experience = config.experience(vec![episode(1.0, 3), episode(1.0, 2)]);
    assert_eq!(experience[0].returns, [0.75, 1.0, 1.0]);
    assert_eq!(experience[1].returns, [0.75, 1.0]);
    assert_eq!(experience[0].advantages.len(), 2);
    let same = PpoConfig { kl_coef: 0.0, ..config }.experience(vec![episode(2.0, 2), episode(2.0, 2)]);
    assert!(same.iter().all(|one| one.advantages == [0.0, 0.0]), "{same:?}");
    let one = Episode { old: vec![-1.0], reward: 3.0, values: vec![0.5], ..Episode::default() };
    assert_eq!(config.experience(vec![one])[0].advantages, [0.0], "one token has no company to differ from");
}

#[test]
fn explained_variance_is_one_for_values_that_tell_all_and_none_for_those_that_tell_nothing() {
    let with = |values: [f64; 4]| {
        explained_variance(&[Experience {
            values: values.to_vec(),
            returns: vec![1.0, 2.0, 3.0, 4.0],
            ..Experience::default()
        }])
    };
    assert_eq!((with([1.0, 2.0, 3.0, 4.0]), with([0.0; 4]), with([5.0, 6.0, 7.0, 8.0])), (1.0, 0.0, 1.0));
    assert!(with([4.0, 3.0, 2.0, 1.0]) < 0.0);
    assert_eq!(explained_variance(&[]), 0.0);
}

#[test]
fn what_is_clipped_stands_still_and_what_may_return_moves() {
    let config = PpoConfig::default();
    for (now, advantage, clipped) in [(0.5, 1.0, true), (0.5, -1.0, false), (-0.5, -1.0, true), (-0.5, 1.0, false)] {
        let token = config.policy(now, 0.0, advantage);
        assert_eq!((token.slope == 0.0, token.clipped), (clipped, clipped), "{now} {advantage}");
    }
    // A value that went further towards its target than it may stands still, one that went away comes back.
    for (now, target, clipped) in [(0.5, 1.0, true), (0.5, -1.0, false), (0.1, 1.0, false)] {
        let value = config.value(now, 0.0, target);
        assert_eq!((value.slope == 0.0, value.clipped), (clipped, clipped), "{now} {target}");
    }
}
