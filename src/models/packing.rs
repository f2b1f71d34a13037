//! How a flat stream of tokens is cut into records: where each token stands in its own, and what it
//! may attend to. There is no padding anywhere in this crate.

use candle_core::{Device, Tensor};

use super::rotary::Rotaries;
use crate::error::Result;
use crate::kernels::Spans;

/// What one pass through the decoder needs to know about the stream's records.
#[derive(Debug, Clone)]
pub struct Packing {
    pub(super) spans: Spans,
    /// Cosines and sines of each token's position, `[N, rotary_dim / 2]`: a pair for each distinct rotary
    /// of the model.
    pub(super) angles: Vec<(Tensor, Tensor)>,
}

impl Packing {
    /// Records of these lengths, one after the other, each from position 0.
    pub(super) fn records(rotaries: &Rotaries, lengths: &[usize], device: &Device) -> Result<Self> {
        let positions: Vec<_> = lengths.iter().map(|length| 0..*length).collect();
        Ok(Self { spans: Spans::packed(lengths), angles: rotaries.at(&positions, device)? })
    }

    /// One record of which `held` tokens went through before and `new` come now.
    pub(super) fn continued(rotaries: &Rotaries, held: usize, new: usize, device: &Device) -> Result<Self> {
        let angles = rotaries.at(std::slice::from_ref(&(held..held + new)), device)?;
        Ok(Self { spans: Spans::with_cache(&[new], &[held + new])?, angles })
    }
}
