//! What GRPO makes of a batch: each answer counts by how much better than its group it was.

use super::super::StopFlag;
use super::super::objective::{Criterion, Grpo, GrpoConfig, Sampled, advantages};
use super::batch::{Batch, Lesson};
use super::run::Run;
use crate::error::Result;

/// What it measures of a batch, before what its criterion measures.
pub(super) const METRICS: [&str; 1] = ["frac_reward_zero_std"];

/// The lesson of `batch`; `None` when the run was asked to stop.
pub(super) fn lesson(run: &Run<'_>, config: GrpoConfig, batch: &Batch<'_>, stop: &StopFlag) -> Result<Option<Lesson>> {
    let advantages = advantages(&batch.rewards, batch.group, config.scale);
    let weights = config.weights(&batch.lengths(), run.sources.max_answer_tokens);
    let mut samples: Vec<Sampled> = advantages
        .into_iter()
        .zip(weights)
        .map(|(advantage, weight)| Sampled { advantage, weight, ..Sampled::default() })
        .collect();
    let held = config.kl_beta > 0.0;
    // An answer as good as its group moves nothing, unless something holds it.
    let counting: Vec<usize> = (0..samples.len()).filter(|at| held || samples[*at].advantage != 0.0).collect();
    let micros = run.micro_batches(batch, &counting);
    if held {
        let Some(known) = run.reference(&micros, samples.len(), stop)? else { return Ok(None) };
        for at in &counting {
            samples[*at].reference = Some(known[*at].clone());
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
    let criterion: Box<dyn Criterion> = Box::new(Grpo::new(config, samples.into()));
    Ok(Some(Lesson { criterion, counting, micros, measured }))
}
