//! Direct preference optimization (Rafailov et al., 2023; <https://arxiv.org/abs/2305.18290>): of two answers to a
//! prompt the chosen one is to gain more, against a reference, than the rejected one. With d the difference of what
//! both gained, the losses are -ln σ(β d) (sigmoid), its conservative and its unbiased form for labels of which a
//! share ε is flipped (sigmoid with label smoothing; robust, <https://arxiv.org/abs/2403.00409>), max(0, 1 - β d)
//! (hinge, <https://arxiv.org/abs/2305.10425>), and (d - 1/(2β))² with log-probabilities per token (ipo,
//! <https://arxiv.org/abs/2310.12036>). Names and definitions are trl's.

use std::sync::Arc;

use super::super::losses::{LossSum, RecordLoss};
use super::{Criterion, Top, TopLoss};
use crate::error::{Error, Result};

/// What DPO measures, by trl's names.
const METRICS: [&str; 6] =
    ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"];

/// The form of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DpoLoss {
    /// -ln σ(β d).
    Sigmoid,
    /// The same, unbiased under flipped labels.
    Robust,
    /// max(0, 1 - β d).
    Hinge,
    /// (d - 1/(2β))², of means over tokens.
    Ipo,
}

impl DpoLoss {
    /// All, the default first.
    pub const ALL: [Self; 4] = [Self::Sigmoid, Self::Robust, Self::Hinge, Self::Ipo];

    /// The name in hyperparameters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Robust => "robust",
            Self::Hinge => "hinge",
            Self::Ipo => "ipo",
        }
    }
}

/// The options of DPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpoConfig {
    /// The form of the loss.
    pub loss: DpoLoss,
    /// How much the model is held to the reference.
    pub beta: f64,
    /// The share of pairs whose label is taken to be flipped, below 0.5.
    pub label_smoothing: f64,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self { loss: DpoLoss::Sigmoid, beta: 0.1, label_smoothing: 0.0 }
    }
}

impl DpoConfig {
    /// The loss of a pair and its slopes. `gains` are by how much the log-probability of the chosen and of the
    /// rejected answer grew over the reference; `tokens` how many tokens each has. The slopes are with respect to
    /// the gains.
    pub fn loss(&self, gains: [f64; 2], tokens: [usize; 2]) -> (f64, [f64; 2]) {
        let (beta, epsilon) = (self.beta, self.label_smoothing);
        let [chosen, rejected] = gains;
        let z = beta * (chosen - rejected);
        let (loss, slope) = match self.loss {
            DpoLoss::Sigmoid => (
                (1.0 - epsilon) * minus_ln_sigmoid(z) + epsilon * minus_ln_sigmoid(-z),
                -(1.0 - epsilon) * sigmoid(-z) + epsilon * sigmoid(z),
            ),
            DpoLoss::Robust => (
                ((1.0 - epsilon) * minus_ln_sigmoid(z) - epsilon * minus_ln_sigmoid(-z)) / (1.0 - 2.0 * epsilon),
                (-(1.0 - epsilon) * sigmoid(-z) - epsilon * sigmoid(z)) / (1.0 - 2.0 * epsilon),
            ),
            // Of a number that is not one, `max` would make a loss of 0.
            DpoLoss::Hinge if z >= 1.0 => (0.0, 0.0),
            DpoLoss::Hinge => (1.0 - z, -1.0),
            DpoLoss::Ipo => {
                let [chosen_tokens, rejected_tokens] = tokens.map(|tokens| tokens.max(1) as f64);
                let off = chosen / chosen_tokens - rejected / rejected_tokens - 1.0 / (2.0 * beta);
                return (off * off, [2.0 * off / chosen_tokens, -2.0 * off / rejected_tokens]);
            }
        };
        (loss, [beta * slope, -beta * slope])
    }
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// -ln σ(z), exact on both sides of 0.
pub(super) fn minus_ln_sigmoid(z: f64) -> f64 {
    (-z).max(0.0) + (-z.abs()).exp().ln_1p() + 0.0 * z
}

/// DPO on a corpus of pairs, whose log-probabilities under the reference are known.
#[derive(Debug, Clone)]
pub struct Dpo {
    config: DpoConfig,
    /// ln p of each record's answer.
    reference: Arc<[f64]>,
}

impl Dpo {
    /// `reference` holds ln p of the learned tokens of every record of the corpus, chosen and rejected in turn.
    pub fn new(config: DpoConfig, reference: Arc<[f64]>) -> Self {
        Self { config, reference }
    }

    fn judge(&self, top: &Top<'_>, losses: &[f32]) -> Result<(LossSum, Vec<f32>)> {
        let mut scale = vec![0f32; losses.len()];
        let mut sum = LossSum { metrics: vec![0.0; METRICS.len()], ..LossSum::default() };
        let rows: Vec<_> = top.rows().collect();
        for (records, rows) in pairs(top)?.zip(rows.chunks_exact(2)) {
            let [mut log_probabilities, mut references] = [[0.0; 2]; 2];
            let mut tokens = [0; 2];
            for at in 0..2 {
                let rows = rows[at].clone();
                log_probabilities[at] = -losses[rows.clone()].iter().map(|loss| f64::from(*loss)).sum::<f64>();
                tokens[at] = top.labels[rows].iter().flatten().count();
                references[at] = *self.reference.get(records[at]).ok_or_else(unknown)?;
            }
            let gains = [log_probabilities[0] - references[0], log_probabilities[1] - references[1]];
            let (loss, slopes) = self.config.loss(gains, tokens);
            for at in 0..2 {
                // The head is asked about -ln p, of which a gain is the opposite.
                scale[rows[at].clone()].fill(-slopes[at] as f32);
                sum.labelled += tokens[at];
            }
            let rewards = gains.map(|gain| self.config.beta * gain);
            let better = f64::from(u8::from(rewards[0] > rewards[1]));
            let [chosen, rejected] = rewards;
            let measured = [chosen, rejected, better, chosen - rejected, log_probabilities[0], log_probabilities[1]];
            sum.metrics.iter_mut().zip(measured).for_each(|(sum, value)| *sum += value);
            sum.loss_sum += loss;
            sum.count += 1;
            // A pair's loss stands at its first record.
            sum.records.push(RecordLoss { loss_sum: loss, labelled: tokens[0] });
            sum.records.push(RecordLoss { loss_sum: 0.0, labelled: tokens[1] });
        }
        Ok((sum, scale))
    }
}

impl Criterion for Dpo {
    fn metrics(&self) -> &'static [&'static str] {
        &METRICS
    }

    fn loss(&self, top: &Top<'_>) -> Result<TopLoss> {
        top.over_tokens(|losses| self.judge(top, losses))
    }
}

/// The numbers of the records of each pair.
pub(super) fn pairs<'a>(top: &Top<'a>) -> Result<impl Iterator<Item = &'a [usize]> + use<'a>> {
    let whole = |pair: &[usize]| matches!(pair, [chosen, rejected] if chosen % 2 == 0 && *rejected == chosen + 1);
    if !top.records.chunks(2).all(whole) {
        return Err(Error::internal(anyhow::anyhow!("a micro-batch of preferences holds half a pair")));
    }
    Ok(top.records.chunks_exact(2))
}

fn unknown() -> Error {
    Error::internal(anyhow::anyhow!("a record has no log-probability under the reference"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_losses_on_both_sides_of_every_bend() {
        for loss in DpoLoss::ALL {
            for label_smoothing in [0.0, 0.2] {
                for (beta, gains) in [(0.1, [3.0, -2.0]), (0.5, [-40.0, 7.0]), (2.0, [0.4, 0.1]), (1.0, [30.0, -30.0])]
                {
                    let config = DpoConfig { loss, beta, label_smoothing };
                    let at = |chosen: f64, rejected: f64| config.loss([chosen, rejected], [3, 5]).0;
                    let (_, slopes) = config.loss(gains, [3, 5]);
                    let step = 1e-5;
                    let [chosen, rejected] = gains;
                    let measured = [
                        (at(chosen + step, rejected) - at(chosen - step, rejected)) / (2.0 * step),
                        (at(chosen, rejected + step) - at(chosen, rejected - step)) / (2.0 * step),
                    ];
                    for (slope, measured) in slopes.iter().zip(measured) {
                        assert!((slope - measured).abs() < 1e-6, "{config:?} at {gains:?}: {slope}, {measured}");
                    }
                }
            }
        }
    }

    #[test]
    fn losses_at_the_reference_are_what_the_formulae_say() {
        let at = |loss, label_smoothing| DpoConfig { loss, beta: 0.1, label_smoothing }.loss([0.0; 2], [4, 4]).0;
        for (loss, expected) in [
            (at(DpoLoss::Sigmoid, 0.0), 2f64.ln()),
            (at(DpoLoss::Sigmoid, 0.3), 2f64.ln()),
            (at(DpoLoss::Robust, 0.3), 2f64.ln()),
            (at(DpoLoss::Hinge, 0.0), 1.0),
            (at(DpoLoss::Ipo, 0.0), 25.0),
        ] {
            assert!((loss - expected).abs() < 1e-12, "{loss}, {expected}");
        }
    }

    #[test]
    fn what_is_far_off_stays_finite_and_what_is_no_number_stays_none() {
        for loss in DpoLoss::ALL {
            let config = DpoConfig { loss, ..DpoConfig::default() };
            for gains in [[1e6, -1e6], [-1e6, 1e6]] {
                let (loss, slopes) = config.loss(gains, [1, 1]);
                assert!(loss.is_finite() && slopes.iter().all(|slope| slope.is_finite()), "{config:?}");
            }
            assert!(config.loss([f64::NAN, 0.0], [1, 1]).0.is_nan(), "{config:?}");
        }
    }
}
