//! A reward model (Bradley and Terry's model of paired comparisons, as in Ouyang et al., 2022;
//! <https://arxiv.org/abs/2203.02155>): a number for each answer, -ln σ(better - worse) for each pair. The number is
//! a linear map of the state at the answer's last token.

use super::super::losses::{LossSum, RecordLoss};
use super::dpo::{minus_ln_sigmoid, pairs};
use super::{Criterion, Top, TopLoss};
use crate::error::Result;
use crate::kernels::scalar_head;
use crate::tune::SCORE;

/// What is measured, by the names that trl's RewardTrainer gives it.
const METRICS: [&str; 3] = ["accuracy", "margin", "mean_reward"];

/// Learning from pairs which answer is the better one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reward;

impl Criterion for Reward {
    fn metrics(&self) -> &'static [&'static str] {
        &METRICS
    }

    fn loss(&self, top: &Top<'_>) -> Result<TopLoss> {
        let place = top.trained(SCORE)?;
        let last = top.rows().map(|rows| rows.end.saturating_sub(1)).collect();
        let scores = scalar_head(top.hidden, top.trainables[place].var.as_tensor(), last)?;
        let mut sum = LossSum { metrics: vec![0.0; METRICS.len()], ..LossSum::default() };
        let mut slopes = Vec::with_capacity(scores.values.len());
        for (_, values) in pairs(top)?.zip(scores.values.chunks_exact(2)) {
            let (better, worse) = (values[0], values[1]);
            let margin = better - worse;
            let loss = minus_ln_sigmoid(margin);
            let slope = -1.0 / (1.0 + margin.exp());
            slopes.extend([slope, -slope]);
            let measured = [f64::from(u8::from(margin > 0.0)), margin, f64::midpoint(better, worse)];
            sum.metrics.iter_mut().zip(measured).for_each(|(sum, value)| *sum += value);
            sum.loss_sum += loss;
            sum.count += 1;
            // A pair's loss stands at its first record.
            sum.records.extend([loss, 0.0].map(|loss_sum| RecordLoss { loss_sum, labelled: 1 }));
        }
        sum.labelled = slopes.len();
        if !top.learns {
            return Ok(TopLoss { loss: sum, grad_hidden: None, grad_weights: Vec::new() });
        }
        let (of_hidden, of_weight) = scores.pull_back(&slopes)?;
        Ok(TopLoss { loss: sum, grad_hidden: Some(of_hidden), grad_weights: vec![(place, of_weight)] })
    }
}
