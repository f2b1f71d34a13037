//! What GRPO makes of a batch: each answer counts by how much better than its group it was.

use super::super::StopFlag;
use super::super::objective::{Grpo, GrpoConfig, Sampled, advantages};
use super::batch::{Batch, Taught};
use super::run::Run;
use crate::data::MicroBatch;
use crate::error::Result;

/// What it measures of a batch, before what its criterion measures.
pub(super) const METRICS: [&str; 1] = ["frac_reward_zero_std"];

/// The answers that move something: one as good as its group moves nothing, unless something holds it.
pub(super) fn counting(config: GrpoConfig, batch: &Batch<'_>) -> Vec<usize> {
    let advantages = advantages(&batch.rewards, batch.group, config.scale);
    (0..advantages.len()).filter(|at| config.kl_beta > 0.0 || advantages[*at] != 0.0).collect()
}

/// What `batch` teaches, whose answers that count lie in `micros`; `None` when the run was asked to stop.
pub(super) fn lesson(
    run: &Run<'_>,
    config: GrpoConfig,
    batch: &Batch<'_>,
    micros: &[MicroBatch],
    stop: &StopFlag,
) -> Result<Option<Taught>> {
    let advantages = advantages(&batch.rewards, batch.group, config.scale);
    let weights = config.weights(&batch.lengths(), run.sources.max_answer_tokens);
    let mut samples: Vec<Sampled> = advantages
        .into_iter()
        .zip(weights)
        .map(|(advantage, weight)| Sampled { advantage, weight, ..Sampled::default() })
        .collect();
    if config.kl_beta > 0.0 {
        let Some(known) = run.reference(micros, samples.len(), stop)? else { return Ok(None) };
        for (sampled, known) in samples.iter_mut().zip(known) {
            sampled.reference = Some(known);
        }
    }
    if run.sources.options.updates_per_batch > 1 {
        for (sampled, one) in samples.iter_mut().zip(&batch.answers) {
            sampled.old.clone_from(&one.completion.log_probabilities);
        }
    }
    let deviations = batch.deviations();
    let same = deviations.iter().filter(|deviation| **deviation < 1e-8).count() as f64;
    let measured = vec![(METRICS[0], same / deviations.len().max(1) as f64)];
    Ok(Some(Taught { criterion: Box::new(Grpo::new(config, samples.into())), measured }))
}
