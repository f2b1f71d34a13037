//! What each token of an answer costs under a policy that does not train.

use std::sync::{Mutex, PoisonError};

use super::super::LossSum;
use super::super::backprop::{self, MicroBatch};
use super::super::objective::{Criterion, Top, TopLoss};
use crate::error::Result;
use crate::models::{Decoder, Tuning};

/// ln p of every labelled token of each record of `micro`, in order, at `temperature`.
pub(super) fn log_probabilities(
    decoder: &Decoder,
    tuning: &dyn Tuning,
    micro: &MicroBatch,
    temperature: f64,
) -> Result<Vec<Vec<f32>>> {
    let seen = Seen { temperature, records: Mutex::default() };
    backprop::evaluate(decoder, &[], tuning, &seen, micro)?;
    Ok(seen.records.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Keeps what it sees.
struct Seen {
    temperature: f64,
    records: Mutex<Vec<Vec<f32>>>,
}

impl Criterion for Seen {
    fn loss(&self, top: &Top<'_>) -> Result<TopLoss> {
        top.at_temperature(self.temperature, |top| {
            top.over_tokens(|losses| {
                let labelled = |rows: std::ops::Range<usize>| rows.filter(|row| top.labels[*row].is_some());
                let records = top.rows().map(|rows| labelled(rows).map(|row| -losses[row]).collect()).collect();
                *self.records.lock().unwrap_or_else(PoisonError::into_inner) = records;
                Ok((LossSum::default(), vec![0.0; losses.len()]))
            })
        })
    }
}
