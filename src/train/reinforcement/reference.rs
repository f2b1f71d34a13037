//! What each token of an answer costs under a policy that does not train.

use std::ops::Range;

use super::super::LossSum;
use super::super::backprop::MicroBatch;
use super::seen::seen;
use crate::error::Result;
use crate::models::{Decoder, Tuning};

/// ln p of every labelled token of each record of `micro`, in order, at `temperature`.
pub(super) fn log_probabilities(
    decoder: &Decoder,
    tuning: &dyn Tuning,
    micro: &MicroBatch,
    temperature: f64,
) -> Result<Vec<Vec<f32>>> {
    seen((decoder, tuning), &[], micro, |top| {
        let mut records: Vec<Vec<f32>> = Vec::new();
        top.at_temperature(temperature, |top| {
            top.over_tokens(|losses| {
                let labelled = |rows: Range<usize>| rows.filter(|row| top.labels[*row].is_some());
                records = top.rows().map(|rows| labelled(rows).map(|row| -losses[row]).collect()).collect();
                Ok((LossSum::default(), vec![0.0; losses.len()]))
            })
        })?;
        Ok(records)
    })
}
