//! What preference objectives hold a run to: the log-probability of every answer under the model that the run
//! begins with, computed once before training. For a new adapter that is the base with the adapter switched off, so
//! there is no second copy of any weight; for a whole model, or an adapter that is tuned further, what the run
//! begins with. The numbers lie in the work folder and in every checkpoint: a run that goes on anywhere has the
//! same ones.

use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::sources::Sources;
use super::{Plan, StopFlag, TuningMethod, backprop};
use crate::data::{Corpus, in_order};
use crate::durable;
use crate::error::{Error, Result};
use crate::models::{Decoder, Frozen, Tuning};
use crate::tune::Method;

/// The file's name, in the work folder and in checkpoints.
pub(super) const REFERENCE: &str = "reference.bin";
/// Of a digest in hexadecimal.
const DIGEST: usize = 64;

/// ln p of the learned tokens of every record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reference {
    pub(super) training: Arc<[f64]>,
    /// Of every validation file.
    pub(super) validation: Vec<Arc<[f64]>>,
}

impl Reference {
    /// What the checkpoint holds, or an earlier attempt left, or else computed now with `method`, whose weights are
    /// those that the run begins with. `None` when the run was asked to stop.
    ///
    /// # Errors
    /// When the device fails, or a file cannot be written.
    pub(super) fn of(
        plan: &Plan,
        sources: &Sources,
        (decoder, method): (&Decoder, &dyn Method),
        checkpoint: Option<&Checkpoint>,
        token_budget: usize,
        stop: &StopFlag,
    ) -> Result<Option<Self>> {
        let corpora = || std::iter::once(&sources.training).chain(&sources.validation);
        let lengths: Vec<usize> = corpora().map(Corpus::len).collect();
        let kept = plan.work_dir.join("prepared").join(REFERENCE);
        // A checkpoint's was written by the program that wrote the checkpoint, which may have named the run otherwise.
        let of_checkpoint =
            checkpoint.map(|checkpoint| (checkpoint.dir.join(REFERENCE), checkpoint.state.run.as_str()));
        for (place, run) in of_checkpoint.into_iter().chain([(kept.clone(), sources.run.digest())]) {
            if let Some(found) = std::fs::read(place).ok().and_then(|bytes| Self::read(&bytes, run, &lengths)) {
                return Ok(Some(found));
            }
        }
        let tuning: &dyn Tuning = match (&plan.start, &sources.method) {
            (None, method) if *method != TuningMethod::Full => &Frozen,
            _ => method,
        };
        let mut all = Vec::with_capacity(lengths.len());
        for corpus in corpora() {
            let Some(one) = log_probabilities(decoder, tuning, corpus, token_budget, stop)? else { return Ok(None) };
            all.push(one);
        }
        let reference = Self::split(all)?;
        durable::replace(&kept, reference.bytes(sources.run.digest()))?;
        Ok(Some(reference))
    }

    fn split(all: Vec<Arc<[f64]>>) -> Result<Self> {
        let mut all = all.into_iter();
        let training = all.next().ok_or_else(|| Error::internal(anyhow::anyhow!("a reference of nothing")))?;
        Ok(Self { training, validation: all.collect() })
    }

    /// The file: the digest of the run, then every number in the order of the records, little-endian.
    pub(super) fn bytes(&self, run: &str) -> Vec<u8> {
        let numbers = std::iter::once(&self.training).chain(&self.validation).flat_map(|one| one.iter());
        run.bytes().chain(numbers.flat_map(|number| number.to_le_bytes())).collect()
    }

    /// Reads the file when it is of this run, for corpora of these lengths.
    fn read(bytes: &[u8], run: &str, lengths: &[usize]) -> Option<Self> {
        let (digest, numbers) = bytes.split_at_checked(DIGEST)?;
        let (numbers, rest) = numbers.as_chunks::<8>();
        if digest != run.as_bytes() || !rest.is_empty() || numbers.len() != lengths.iter().sum::<usize>() {
            return None;
        }
        let mut numbers = numbers.iter().map(|bytes| f64::from_le_bytes(*bytes));
        let all = lengths.iter().map(|length| numbers.by_ref().take(*length).collect()).collect();
        Self::split(all).ok()
    }
}

/// ln p of the learned tokens of every record of `corpus`; `None` when the run was asked to stop.
fn log_probabilities(
    decoder: &Decoder,
    tuning: &dyn Tuning,
    corpus: &Corpus,
    token_budget: usize,
    stop: &StopFlag,
) -> Result<Option<Arc<[f64]>>> {
    let mut found = Vec::with_capacity(corpus.len());
    for micro in in_order(corpus, token_budget) {
        if stop.is_raised() {
            return Ok(None);
        }
        let sum = backprop::loss(decoder, tuning, &micro)?;
        found.extend(sum.records.iter().map(|record| -record.loss_sum));
    }
    Ok(Some(found.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_gives_the_bits_back_to_its_own_run_alone() {
        let reference = Reference { training: vec![-0.1, -1e300].into(), validation: vec![vec![-3.5].into()] };
        let run = "a".repeat(DIGEST);
        let bytes = reference.bytes(&run);
        assert_eq!(Reference::read(&bytes, &run, &[2, 1]), Some(reference));
        for (bytes, run, lengths) in [
            (&bytes[..], "b".repeat(DIGEST), [2, 1]),
            (&bytes[..], run.clone(), [2, 2]),
            (&bytes[..bytes.len() - 1], run.clone(), [2, 1]),
            (&bytes[..9], run, [2, 1]),
        ] {
            assert_eq!(Reference::read(bytes, &run, &lengths), None);
        }
    }
}
