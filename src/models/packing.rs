//! How a flat stream of tokens is cut into records: where each token stands in its own, and what it
//! may attend to. There is no padding anywhere in this crate.

use candle_core::{Device, Tensor};

use super::rotary::Rotary;
use crate::error::Result;
use crate::kernels::Spans;

/// What one pass through the decoder needs to know about the stream's records.
#[derive(Debug, Clone)]
pub struct Packing {
    pub(super) spans: Spans,
    /// Cosine of each token's position, `[N, head_dim / 2]`.
    pub(super) cos: Tensor,
    /// Sine of each token's position, `[N, head_dim / 2]`.
    pub(super) sin: Tensor,
}

impl Packing {
    /// Records of these lengths, one after the other, each from position 0.
    pub(super) fn records(rotary: &Rotary, lengths: &[usize], device: &Device) -> Result<Self> {
        let positions: Vec<usize> = lengths.iter().flat_map(|length| 0..*length).collect();
        let (cos, sin) = rotary.at(&positions, device)?;
        Ok(Self { spans: Spans::packed(lengths), cos, sin })
    }

    /// One record of which `held` tokens went through before and `new` come now.
    pub(super) fn continued(rotary: &Rotary, held: usize, new: usize, device: &Device) -> Result<Self> {
        let positions: Vec<usize> = (held..held + new).collect();
        let (cos, sin) = rotary.at(&positions, device)?;
        Ok(Self { spans: Spans::with_cache(&[new], &[held + new])?, cos, sin })
    }
}
