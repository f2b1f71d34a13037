//! Proximal policy optimization (Schulman et al., 2017; <https://arxiv.org/abs/1707.06347>) as it is done with language
//! models (Ziegler et al., 2019; <https://arxiv.org/abs/1909.08593>): a value head says of every state what reward is
//! still to be expected, each token counts by how much better than that it turned out (generalized advantage
//! estimation, <https://arxiv.org/abs/1506.02438>), and a reward for each token holds the policy to a reference.
//! Policy and values are moved together, several times over the same answers, and both are clipped. Names and
//! definitions are trl's, and so is where an answer's reward falls: on the state behind its last token.

use std::ops::Range;
use std::sync::Arc;

use super::super::losses::{LossSum, RecordLoss};
use super::{Criterion, Top, TopLoss, unknown};
use crate::error::Result;
use crate::kernels::scalar_head;
use crate::tune::VALUE_HEAD;

/// What is measured in a pass, by trl's names.
const METRICS: [&str; 5] =
    ["loss/policy_avg", "loss/value_avg", "policy/approxkl_avg", "policy/clipfrac_avg", "val/clipfrac_avg"];
/// Keeps whitened advantages finite where all are the same.
const SMALLEST_VARIANCE: f64 = 1e-8;

/// The options of PPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PpoConfig {
    /// How far from 1 the ratio to the sampling policy counts.
    pub clip: f64,
    /// How far from what it was a value counts.
    pub value_clip: f64,
    /// What the loss of the values counts beside that of the policy.
    pub value_coef: f64,
    /// What a nat of divergence from the reference costs.
    pub kl_coef: f64,
    /// What a reward one token later counts.
    pub gamma: f64,
    /// How far advantages look at rewards rather than at values.
    pub lambda: f64,
    /// The temperature at which answers are sampled, and at which their probabilities are meant.
    pub temperature: f64,
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self { clip: 0.2, value_clip: 0.2, value_coef: 0.1, kl_coef: 0.05, gamma: 1.0, lambda: 0.95, temperature: 1.0 }
    }
}

/// A graded answer as it is before the first update.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Episode {
    /// What the grader said.
    pub reward: f64,
    /// ln p of each token under the policy that sampled it.
    pub old: Vec<f32>,
    /// ln p of each token under the reference, where there is one.
    pub reference: Option<Vec<f32>>,
    /// The value of the state before each token and, where the answer ended before its limit, of the state behind the
    /// last one. The reward is that of the last of these states.
    pub values: Vec<f64>,
}

/// What the updates need to know of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Experience {
    /// ln p of each token under the policy that sampled it.
    pub old: Vec<f32>,
    /// How much better than expected each token was, in deviations of the batch.
    pub advantages: Vec<f64>,
    /// The value of each state, as it was.
    pub values: Vec<f64>,
    /// The reward that followed each state.
    pub returns: Vec<f64>,
}

/// The loss of one token, or of one state's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClippedLoss {
    /// The loss.
    pub loss: f64,
    /// Its derivative with respect to the token's log-probability, or to the value.
    pub slope: f64,
    /// The clipped form was the larger one and stands still.
    pub clipped: bool,
}

impl PpoConfig {
    /// What `episodes` come to.
    pub fn experience(&self, episodes: Vec<Episode>) -> Vec<Experience> {
        let mut all: Vec<Experience> = episodes.into_iter().map(|episode| self.estimate(episode)).collect();
        whiten(&mut all);
        all
    }

    /// Generalized advantage estimation over the states of one answer; the advantages are not yet whitened.
    fn estimate(&self, episode: Episode) -> Experience {
        let Episode { reward, old, reference, values } = episode;
        let mut rewards = vec![0.0; values.len()];
        if let Some(reference) = &reference {
            for ((reward, old), reference) in rewards.iter_mut().zip(&old).zip(reference) {
                *reward = -self.kl_coef * (f64::from(*old) - f64::from(*reference));
            }
        }
        if let Some(last) = rewards.last_mut() {
            *last += reward;
        }
        let mut advantages = vec![0.0; values.len()];
        let (mut next_value, mut next_advantage) = (0.0, 0.0);
        for at in (0..values.len()).rev() {
            let surprise = rewards[at] + self.gamma * next_value - values[at];
            next_advantage = surprise + self.gamma * self.lambda * next_advantage;
            next_value = values[at];
            advantages[at] = next_advantage;
        }
        let returns = advantages.iter().zip(&values).map(|(advantage, value)| advantage + value).collect();
        // Behind the last token there is nothing to choose.
        advantages.truncate(old.len());
        Experience { old, advantages, values, returns }
    }

    /// The loss of one token by its log-probability now and then.
    pub fn policy(&self, now: f64, old: f64, advantage: f64) -> ClippedLoss {
        let ratio = (now - old).exp();
        let free = -advantage * ratio;
        let held = -advantage * ratio.clamp(1.0 - self.clip, 1.0 + self.clip);
        let clipped = held > free;
        ClippedLoss { loss: if clipped { held } else { free }, slope: if clipped { 0.0 } else { free }, clipped }
    }

    /// The loss of one value that is `now` and was `old`, where `target` followed.
    pub fn value(&self, now: f64, old: f64, target: f64) -> ClippedLoss {
        let free = (now - target).powi(2);
        let held = (now.clamp(old - self.value_clip, old + self.value_clip) - target).powi(2);
        let clipped = held > free;
        let slope = if clipped { 0.0 } else { now - target };
        ClippedLoss { loss: 0.5 * free.max(held), slope, clipped }
    }
}

/// Brings the advantages of all tokens together to a mean of 0 and a deviation of 1.
fn whiten(all: &mut [Experience]) {
    let count = all.iter().map(|one| one.advantages.len()).sum::<usize>() as f64;
    let mean = all.iter().flat_map(|one| &one.advantages).sum::<f64>() / count.max(1.0);
    let squares: f64 = all.iter().flat_map(|one| &one.advantages).map(|advantage| (advantage - mean).powi(2)).sum();
    let scale = (squares / (count - 1.0).max(1.0) + SMALLEST_VARIANCE).sqrt().recip();
    for advantage in all.iter_mut().flat_map(|one| &mut one.advantages) {
        *advantage = (*advantage - mean) * scale;
    }
}

/// How much of the differences between returns the values had told before: 1 is all, and 0 no more than their mean
/// does. 0 as well where all returns are the same.
pub fn explained_variance(all: &[Experience]) -> f64 {
    let variance = |of: &dyn Fn(f64, f64) -> f64| {
        let numbers: Vec<f64> =
            all.iter().flat_map(|one| one.returns.iter().zip(&one.values)).map(|(r, v)| of(*r, *v)).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len().max(1) as f64;
        numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>()
    };
    let of_returns = variance(&|follows, _| follows);
    if of_returns > 0.0 { 1.0 - variance(&|follows, value| follows - value) / of_returns } else { 0.0 }
}

/// The rows of each record at which a value stands: before every labelled token, and behind the last one.
pub fn states<'a>(top: &'a Top<'_>) -> impl Iterator<Item = Range<usize>> + 'a {
    top.rows().map(move |rows| {
        let first = rows.clone().find(|row| top.labels[*row].is_some()).unwrap_or(rows.end);
        first..rows.end
    })
}

/// PPO on a batch of answers, by the numbers of the records. The loss comes out whole: it is not to be divided by
/// anything. What is measured is to be divided by the number of tokens.
#[derive(Debug, Clone)]
pub struct Ppo {
    config: PpoConfig,
    experience: Arc<[Experience]>,
    /// Tokens of the batch.
    tokens: f64,
    /// States of the batch that have a value.
    states: f64,
}

impl Ppo {
    /// `experience` is that of a batch, by the numbers of the records; empty for those that have no part in it.
    pub fn new(config: PpoConfig, experience: Vec<Experience>) -> Self {
        let tokens = experience.iter().map(|one| one.old.len()).sum::<usize>().max(1) as f64;
        let states = experience.iter().map(|one| one.values.len()).sum::<usize>().max(1) as f64;
        Self { config, experience: experience.into(), tokens, states }
    }

    fn of(&self, record: usize) -> Result<&Experience> {
        self.experience.get(record).ok_or_else(unknown)
    }

    /// The policy's part.
    fn judge(&self, top: &Top<'_>, losses: &[f32]) -> Result<(LossSum, Vec<f32>)> {
        let mut scale = vec![0f32; losses.len()];
        let mut sum = LossSum { metrics: vec![0.0; METRICS.len()], ..LossSum::default() };
        for (rows, record) in top.rows().zip(top.records) {
            let known = self.of(*record)?;
            let mut own = RecordLoss::default();
            for (at, row) in rows.filter(|row| top.labels[*row].is_some()).enumerate() {
                let (Some(old), Some(advantage)) = (known.old.get(at), known.advantages.get(at)) else {
                    return Err(unknown());
                };
                let (now, old) = (-f64::from(losses[row]), f64::from(*old));
                let token = self.config.policy(now, old, *advantage);
                // The head is asked about -ln p.
                scale[row] = (-token.slope / self.tokens) as f32;
                own.loss_sum += token.loss / self.tokens;
                own.labelled += 1;
                sum.metrics[0] += token.loss;
                sum.metrics[2] += 0.5 * (now - old).powi(2);
                sum.metrics[3] += f64::from(u8::from(token.clipped));
            }
            sum.loss_sum += own.loss_sum;
            sum.labelled += own.labelled;
            sum.records.push(own);
        }
        sum.count = sum.labelled;
        Ok((sum, scale))
    }

    /// The values' part: adds to the loss, and says the rows and the derivative with respect to each value.
    fn judge_values(&self, top: &Top<'_>, values: &[f64], sum: &mut LossSum) -> Result<Vec<f64>> {
        let mut slopes = vec![0.0; values.len()];
        let weight = self.config.value_coef / self.states;
        // What is measured will be divided by tokens.
        let per_state = self.tokens / self.states;
        let mut first = 0;
        for ((rows, record), own) in states(top).zip(top.records).zip(&mut sum.records) {
            let known = self.of(*record)?;
            // An answer that was cut off has no state behind it that counts.
            for (at, (old, target)) in known.values.iter().zip(&known.returns).enumerate() {
                let now = values.get(first + at).filter(|_| at < rows.len()).ok_or_else(unknown)?;
                let one = self.config.value(*now, *old, *target);
                slopes[first + at] = weight * one.slope;
                own.loss_sum += weight * one.loss;
                sum.loss_sum += weight * one.loss;
                sum.metrics[1] += per_state * one.loss;
                sum.metrics[4] += per_state * f64::from(u8::from(one.clipped));
            }
            first += rows.len();
        }
        Ok(slopes)
    }
}

impl Criterion for Ppo {
    fn metrics(&self) -> &'static [&'static str] {
        &METRICS
    }

    fn loss(&self, top: &Top<'_>) -> Result<TopLoss> {
        let of_policy =
            top.at_temperature(self.config.temperature, |top| top.over_tokens(|losses| self.judge(top, losses)))?;
        let TopLoss { mut loss, grad_hidden, mut grad_weights } = of_policy;
        let place = top.trained(VALUE_HEAD)?;
        let values = scalar_head(top.hidden, top.trainables[place].var.as_tensor(), states(top).flatten().collect())?;
        let slopes = self.judge_values(top, &values.values, &mut loss)?;
        if !top.learns {
            return Ok(TopLoss { loss, grad_hidden: None, grad_weights });
        }
        let (of_hidden, of_weight) = values.pull_back(&slopes)?;
        grad_weights.push((place, of_weight));
        let grad_hidden = match grad_hidden {
            Some(of_policy) => (of_policy + of_hidden)?,
            None => of_hidden,
        };
        Ok(TopLoss { loss, grad_hidden: Some(grad_hidden), grad_weights })
    }
}

#[cfg(test)]
mod tests;
