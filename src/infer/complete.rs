//! Many prompts answered through one batch: as many sequences at once as the caller has memory for, the next
//! joining as others end.

use std::collections::{HashMap, VecDeque};

use super::answer::StopReason;
use super::batch::{Batch, SequenceId};
use super::sampling::Sampling;
use crate::error::Result;

/// A prompt and the ways to go on from it, each of which gives a completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// The prompt's tokens.
    pub prompt: &'a [u32],
    /// How each completion is drawn.
    pub ways: Vec<Sampling>,
}

/// One way on from a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The tokens drawn, the one that ended the answer included.
    pub tokens: Vec<u32>,
    /// ln of the probability the model gave each, at the temperature it was drawn with, among all tokens.
    pub log_probabilities: Vec<f32>,
    /// Why it ended.
    pub stop_reason: StopReason,
}

/// Completes all of `requests`, at most `at_once` sequences at a time where a prompt has no more ways than that.
/// `goes_on` is asked before every token; when it says no, the result is `None`.
///
/// # Errors
/// As [`Batch::join`] and [`Batch::step`].
pub fn complete(
    batch: &mut Batch<'_>,
    requests: &[Request<'_>],
    at_once: usize,
    goes_on: &dyn Fn() -> bool,
) -> Result<Option<Vec<Vec<Completion>>>> {
    let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
    let unwritten =
        || Completion { tokens: Vec::new(), log_probabilities: Vec::new(), stop_reason: StopReason::MaxTokens };
    let mut done: Vec<Vec<Completion>> =
        requests.iter().map(|request| request.ways.iter().map(|_| unwritten()).collect()).collect();
    let mut places: HashMap<SequenceId, (usize, usize)> = HashMap::new();
    while !(waiting.is_empty() && places.is_empty()) {
        while let Some(next) = waiting.front().copied() {
            let ways = &requests[next].ways;
            if !places.is_empty() && places.len() + ways.len() > at_once {
                break;
            }
            waiting.pop_front();
            let joined = batch.join(requests[next].prompt, ways)?;
            places.extend(joined.into_iter().enumerate().map(|(way, id)| (id, (next, way))));
        }
        if !goes_on() {
            places.into_keys().for_each(|id| batch.leave(id));
            return Ok(None);
        }
        for drawn in batch.step()? {
            let Some((request, way)) = places.get(&drawn.sequence).copied() else { continue };
            let completion = &mut done[request][way];
            completion.tokens.push(drawn.token);
            completion.log_probabilities.extend(drawn.log_probability);
            if let Some(reason) = drawn.ended {
                completion.stop_reason = reason;
                places.remove(&drawn.sequence);
            }
        }
    }
    Ok(Some(done))
}
