//! Group relative policy optimization (Shao et al., 2024; <https://arxiv.org/abs/2402.03300>): several answers to a
//! prompt are graded, and each token of an answer counts by how much better than its group the answer was. The
//! ratio to the policy that sampled is clipped as in PPO, and a KL term may hold the policy to a reference. How tokens
//! add up is DAPO's by default (<https://arxiv.org/abs/2503.14476>); without the deviation in the advantage and with a
//! constant length it is Dr. GRPO (<https://arxiv.org/abs/2503.20783>). Names and definitions are trl's.

use std::sync::Arc;

use super::super::losses::{LossSum, RecordLoss};
use super::{Criterion, Top, TopLoss, unknown};
use crate::error::Result;

/// What is measured for every token, by trl's names.
const METRICS: [&str; 3] = ["kl", "clip_ratio/low_mean", "clip_ratio/high_mean"];
/// Keeps an advantage finite in a group without any difference.
const SMALLEST_DEVIATION: f64 = 1e-4;

/// What the tokens of a batch are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// The number of all tokens: every token counts alike.
    Dapo,
    /// The length of the answer, and then the number of answers: every answer counts alike.
    Grpo,
    /// The most tokens an answer may have, times the number of answers.
    DrGrpo,
}

impl Aggregation {
    /// All, the default first.
    pub const ALL: [Self; 3] = [Self::Dapo, Self::Grpo, Self::DrGrpo];

    /// The name in hyperparameters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dapo => "dapo",
            Self::Grpo => "grpo",
            Self::DrGrpo => "dr_grpo",
        }
    }
}

/// What an advantage is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdvantageScale {
    /// The deviation of the rewards of its group.
    Group,
    /// The deviation of all rewards of the batch.
    Batch,
    /// Nothing.
    None,
}

impl AdvantageScale {
    /// All, the default first.
    pub const ALL: [Self; 3] = [Self::Group, Self::Batch, Self::None];

    /// The name in hyperparameters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Batch => "batch",
            Self::None => "none",
        }
    }
}

/// The options of GRPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GrpoConfig {
    /// How far below 1 a ratio counts.
    pub clip_low: f64,
    /// How far above 1.
    pub clip_high: f64,
    /// How much the policy is held to the reference; 0 for not at all.
    pub kl_beta: f64,
    /// How tokens add up.
    pub aggregation: Aggregation,
    /// What advantages are divided by.
    pub scale: AdvantageScale,
    /// The temperature at which answers are sampled, and at which their probabilities are meant.
    pub temperature: f64,
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            kl_beta: 0.0,
            aggregation: Aggregation::Dapo,
            scale: AdvantageScale::Group,
            temperature: 1.0,
        }
    }
}

/// The advantages of answers in groups of `group`, by their rewards. An answer without a reward has no part in the
/// mean of its group, and an advantage of 0.
pub fn advantages(rewards: &[Option<f64>], group: usize, scale: AdvantageScale) -> Vec<f64> {
    let of_batch = deviation(rewards);
    let of_group = |rewards: &[Option<f64>]| {
        let mean = mean(rewards);
        let divisor = match scale {
            AdvantageScale::Group => deviation(rewards) + SMALLEST_DEVIATION,
            AdvantageScale::Batch => of_batch + SMALLEST_DEVIATION,
            AdvantageScale::None => 1.0,
        };
        rewards.iter().map(|reward| reward.map_or(0.0, |reward| (reward - mean) / divisor)).collect::<Vec<_>>()
    };
    rewards.chunks(group.max(1)).flat_map(of_group).collect()
}

/// The mean of those that are there.
pub fn mean(rewards: &[Option<f64>]) -> f64 {
    let count = rewards.iter().flatten().count();
    if count == 0 { 0.0 } else { rewards.iter().flatten().sum::<f64>() / count as f64 }
}

/// Their standard deviation, by one less than their number; 0 for fewer than two.
pub fn deviation(rewards: &[Option<f64>]) -> f64 {
    let (count, mean) = (rewards.iter().flatten().count(), mean(rewards));
    if count < 2 {
        return 0.0;
    }
    let squares: f64 = rewards.iter().flatten().map(|reward| (reward - mean).powi(2)).sum();
    (squares / (count - 1) as f64).sqrt()
}

/// The loss of one token and what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLoss {
    /// The loss.
    pub loss: f64,
    /// Its derivative with respect to the token's log-probability.
    pub slope: f64,
    /// The estimate of the divergence from the reference (Schulman's k3, times the ratio as in DeepSeek-V3.2, which
    /// makes its gradient unbiased); 0 without one.
    pub kl: f64,
    /// The ratio was clipped below.
    pub clipped_low: bool,
    /// The ratio was clipped above.
    pub clipped_high: bool,
}

impl GrpoConfig {
    /// The loss of one token with `advantage`. The log-probabilities are those of the policy, of the policy that
    /// sampled the token, and of the reference where there is one.
    pub fn token(&self, now: f64, old: f64, reference: Option<f64>, advantage: f64) -> TokenLoss {
        let ratio = (now - old).exp();
        let (low, high) = (1.0 - self.clip_low, 1.0 + self.clip_high);
        let (free, clipped) = (ratio * advantage, ratio.clamp(low, high) * advantage);
        let clipped_low = ratio < low && advantage < 0.0;
        let clipped_high = ratio > high && advantage > 0.0;
        let (mut loss, mut slope) = if clipped_low || clipped_high { (-clipped, 0.0) } else { (-free, -free) };
        let mut kl = 0.0;
        if let Some(reference) = reference.filter(|_| self.kl_beta != 0.0) {
            let gap = reference - now;
            kl = ratio * (gap.exp() - gap - 1.0);
            loss += self.kl_beta * kl;
            // The two parts, of the estimate and of the ratio before it, come to the gradient of the divergence itself.
            slope -= self.kl_beta * ratio * gap;
        }
        TokenLoss { loss, slope, kl, clipped_low, clipped_high }
    }

    /// What each token of each of these answers counts in the loss of their batch; `longest` is the most tokens an
    /// answer may have.
    pub fn weights(&self, lengths: &[usize], longest: usize) -> Vec<f64> {
        let (all, answers) = (lengths.iter().sum::<usize>().max(1) as f64, lengths.len().max(1) as f64);
        let weight = |length: &usize| match self.aggregation {
            Aggregation::Dapo => 1.0 / all,
            Aggregation::Grpo => 1.0 / ((*length).max(1) as f64 * answers),
            Aggregation::DrGrpo => 1.0 / (longest.max(1) as f64 * answers),
        };
        lengths.iter().map(weight).collect()
    }
}

/// What is known of one sampled answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampled {
    /// How much better than its group it was.
    pub advantage: f64,
    /// What each of its tokens counts in the batch's loss.
    pub weight: f64,
    /// ln p of each token under the policy that sampled it; empty where that is the policy as it is now.
    pub old: Vec<f32>,
    /// ln p of each token under the reference, where there is one.
    pub reference: Option<Vec<f32>>,
}

/// GRPO on a batch of sampled answers, by the numbers of the records. The loss comes out whole: it is not to be
/// divided by anything. What is measured is summed over tokens.
#[derive(Debug, Clone)]
pub struct Grpo {
    config: GrpoConfig,
    samples: Arc<[Sampled]>,
}

impl Grpo {
    /// `samples` are the answers of a batch, by the numbers of the records.
    pub fn new(config: GrpoConfig, samples: Arc<[Sampled]>) -> Self {
        Self { config, samples }
    }

    fn judge(&self, top: &Top<'_>, losses: &[f32]) -> Result<(LossSum, Vec<f32>)> {
        let mut scale = vec![0f32; losses.len()];
        let mut sum = LossSum { metrics: vec![0.0; METRICS.len()], ..LossSum::default() };
        for (rows, record) in top.rows().zip(top.records) {
            let sampled = self.samples.get(*record).ok_or_else(unknown)?;
            let labelled = rows.filter(|row| top.labels[*row].is_some());
            let mut own = RecordLoss::default();
            for (at, row) in labelled.enumerate() {
                let now = -f64::from(losses[row]);
                let old =
                    if sampled.old.is_empty() { now } else { f64::from(*sampled.old.get(at).ok_or_else(unknown)?) };
                let reference = match &sampled.reference {
                    Some(reference) => Some(f64::from(*reference.get(at).ok_or_else(unknown)?)),
                    None => None,
                };
                let token = self.config.token(now, old, reference, sampled.advantage);
                // The head is asked about -ln p.
                scale[row] = (-token.slope * sampled.weight) as f32;
                own.loss_sum += token.loss * sampled.weight;
                own.labelled += 1;
                let measured =
                    [token.kl, f64::from(u8::from(token.clipped_low)), f64::from(u8::from(token.clipped_high))];
                sum.metrics.iter_mut().zip(measured).for_each(|(sum, value)| *sum += value);
            }
            sum.loss_sum += own.loss_sum;
            sum.labelled += own.labelled;
            sum.records.push(own);
        }
        sum.count = sum.labelled;
        Ok((sum, scale))
    }
}

impl Criterion for Grpo {
    fn metrics(&self) -> &'static [&'static str] {
        &METRICS
    }

    fn loss(&self, top: &Top<'_>) -> Result<TopLoss> {
        top.at_temperature(self.config.temperature, |top| top.over_tokens(|losses| self.judge(top, losses)))
    }
}

#[cfg(test)]
mod tests;
