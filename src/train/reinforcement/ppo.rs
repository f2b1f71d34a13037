//! What PPO makes of a batch: the values of all states under the policy as it is, and from them and the rewards how
//! much better than expected each token was.

use super::super::StopFlag;
use super::super::objective::{Episode, Ppo, PpoConfig, explained_variance, states};
use super::batch::{Batch, Taught};
use super::run::Run;
use super::seen::seen;
use crate::data::MicroBatch;
use crate::error::Result;
use crate::kernels::scalar_head;
use crate::models::Decoder;
use crate::tune::{Method, VALUE_HEAD};

/// What it measures of a batch, before what its criterion measures: by trl's names where trl has them.
pub(super) const METRICS: [&str; 3] = ["objective/kl", "objective/entropy", "val/explained_variance"];

/// The answers that move something: of one without a grade nothing is known, not even what its states are worth.
pub(super) fn counting(batch: &Batch<'_>) -> Vec<usize> {
    (0..batch.answers.len()).filter(|at| batch.rewards[*at].is_some()).collect()
}

/// What `batch` teaches, whose answers that count lie in `micros`; `None` when the run was asked to stop.
pub(super) fn lesson(
    run: &Run<'_>,
    config: PpoConfig,
    batch: &Batch<'_>,
    micros: &[MicroBatch],
    stop: &StopFlag,
) -> Result<Option<Taught>> {
    let mut reference = None;
    if config.kl_coef > 0.0 {
        let Some(known) = run.reference(micros, batch.answers.len(), stop)? else { return Ok(None) };
        reference = Some(known);
    }
    let (decoder, method) = (run.learner.decoder, &*run.learner.method);
    let found = run.learner.look(micros, stop, |micro| values(decoder, method, micro))?;
    let Some(found) = found else { return Ok(None) };
    let mut episodes = vec![Episode::default(); batch.answers.len()];
    let counting = || micros.iter().flat_map(|micro| &micro.records);
    for (at, values) in counting().zip(found.into_iter().flatten()) {
        episodes[*at].values = values;
    }
    for at in counting() {
        let (episode, completion) = (&mut episodes[*at], &batch.answers[*at].completion);
        episode.reward = batch.rewards[*at].unwrap_or_default();
        episode.old.clone_from(&completion.log_probabilities);
        episode.reference = reference.as_ref().map(|known| known[*at].clone());
        // Where an answer was cut off, nothing is known behind it.
        if completion.tokens.len() >= run.sources.max_answer_tokens {
            episode.values.truncate(completion.tokens.len());
        }
    }

    let answers = counting().count().max(1) as f64;
    let (kl, entropy) = episodes.iter().map(divergence_and_entropy).fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
    let experience = config.experience(episodes);
    let values = [kl / answers, entropy / answers, explained_variance(&experience)];
    let measured = METRICS.into_iter().zip(values).collect();
    Ok(Some(Taught { criterion: Box::new(Ppo::new(config, experience)), measured }))
}

/// What an answer estimates of the divergence from the reference (Schulman's k1; 0 without one) and of the policy's
/// entropy, both summed over its tokens.
fn divergence_and_entropy(episode: &Episode) -> (f64, f64) {
    let sum = |numbers: &[f32]| numbers.iter().map(|number| f64::from(*number)).sum::<f64>();
    let old = sum(&episode.old);
    (episode.reference.as_ref().map_or(0.0, |reference| old - sum(reference)), -old)
}

/// The value of the state before each labelled token of each record of `micro`, and behind the last one.
fn values(decoder: &Decoder, method: &dyn Method, micro: &MicroBatch) -> Result<Vec<Vec<f64>>> {
    seen((decoder, method), method.trainables(), micro, |top| {
        let head = top.trainables[top.trained(VALUE_HEAD)?].var.as_tensor();
        let rows: Vec<_> = states(top).collect();
        let all = scalar_head(top.hidden, head, rows.iter().cloned().flatten().collect())?.values;
        let mut rest = &all[..];
        let records = rows.iter().map(|rows| {
            let (own, later) = rest.split_at(rows.len());
            rest = later;
            own.to_vec()
        });
        Ok(records.collect())
    })
}
