//! What can be read off the states of a micro-batch without learning from it.

use std::sync::{Mutex, PoisonError};

use super::super::LossSum;
use super::super::backprop::{self, MicroBatch};
use super::super::objective::{Criterion, Top, TopLoss};
use crate::error::Result;
use crate::models::{Decoder, Tuning};
use crate::tune::Trainable;

/// What `look` reads of each record of `micro`, in order.
pub(super) fn seen<T: Send>(
    (decoder, tuning): (&Decoder, &dyn Tuning),
    trainables: &[Trainable],
    micro: &MicroBatch,
    look: impl Fn(&Top<'_>) -> Result<Vec<T>> + Send + Sync,
) -> Result<Vec<T>> {
    let seen = Seen { look, records: Mutex::new(Vec::new()) };
    backprop::evaluate(decoder, trainables, tuning, &seen, micro)?;
    Ok(seen.records.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Keeps what it sees.
struct Seen<T, L> {
    look: L,
    records: Mutex<Vec<T>>,
}

impl<T: Send, L: Fn(&Top<'_>) -> Result<Vec<T>> + Send + Sync> Criterion for Seen<T, L> {
    fn loss(&self, top: &Top<'_>) -> Result<TopLoss> {
        let records = (self.look)(top)?;
        *self.records.lock().unwrap_or_else(PoisonError::into_inner) = records;
        Ok(TopLoss { loss: LossSum::default(), grad_hidden: None, grad_weights: Vec::new() })
    }
}
