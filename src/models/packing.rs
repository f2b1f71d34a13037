//! How a flat stream of tokens is cut into records: where each token stands in its own, and what it
//! may attend to. There is no padding anywhere in this crate.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::rotary::Rotaries;
use super::tuning::Tuning;
use crate::error::Result;
use crate::kernels::Spans;

/// What one pass through the decoder needs to know about the stream's records.
#[derive(Debug, Clone)]
pub struct Packing {
    /// Rows of each record in the stream, its soft prompt counted.
    pub(super) lengths: Vec<usize>,
    /// How many rows in front of each record are a soft prompt, which the embedding puts there.
    pub(super) soft: usize,
    pub(super) spans: Spans,
    /// Cosines and sines of each row's position, `[N, rotary_dim / 2]`: a pair for each distinct rotary
    /// of the model.
    pub(super) angles: Vec<(Tensor, Tensor)>,
}

impl Packing {
    /// Whole records of so many tokens, one after the other, each behind its soft prompt or its prefix.
    pub(super) fn records(
        rotaries: &Rotaries,
        lengths: &[usize],
        tuning: &dyn Tuning,
        device: &Device,
    ) -> Result<Self> {
        let (soft, prefix) = (tuning.soft_tokens(), tuning.prefix_tokens());
        let lengths: Vec<usize> = lengths.iter().map(|length| soft + length).collect();
        let keys: Vec<usize> = lengths.iter().map(|length| prefix + length).collect();
        let positions: Vec<_> = lengths.iter().map(|length| prefix..prefix + length).collect();
        let spans = Spans::with_cache(&lengths, &keys)?;
        Ok(Self { angles: rotaries.at(&positions, device)?, lengths, soft, spans })
    }

    /// One new token for each of some records. The keys of a record lie at its place among `rows` rows, that of
    /// the new token last; all but that one went through before.
    pub(super) fn next(rotaries: &Rotaries, places: &[Range<usize>], rows: usize, device: &Device) -> Result<Self> {
        let positions: Vec<_> = places.iter().map(|place| place.len().saturating_sub(1)..place.len()).collect();
        let spans = Spans::placed(places, rows)?;
        Ok(Self { angles: rotaries.at(&positions, device)?, lengths: vec![1; places.len()], soft: 0, spans })
    }

    /// The rows of every record, its soft prompt counted.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }
}
