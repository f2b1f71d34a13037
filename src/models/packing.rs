//! How a flat stream of tokens is cut into records: where each stands, what it may attend to, and
//! which tokens are to be predicted. There is no padding anywhere in this crate.

use candle_core::{Device, Tensor};

use super::rotary::Rotary;
use crate::error::{Error, Result};
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

/// Whole records as one flat stream of `N` tokens, with what each token has to predict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// All records' tokens, `N`.
    pub tokens: Vec<u32>,
    /// For each token, the next token of the same record if that one is to be learned; `N`.
    pub labels: Vec<Option<u32>>,
    /// How long each record is; they sum to `N`.
    pub lengths: Vec<usize>,
}

impl MicroBatch {
    /// Appends a record. `learn[i]` says whether token `i` is to be predicted from those before it.
    ///
    /// # Errors
    /// When the two lists differ in length or are empty.
    pub fn push(&mut self, tokens: &[u32], learn: &[bool]) -> Result<()> {
        if tokens.len() != learn.len() || tokens.is_empty() {
            return Err(Error::internal(anyhow::anyhow!(
                "a record of {} tokens with {} marks of what to learn",
                tokens.len(),
                learn.len()
            )));
        }
        self.tokens.extend_from_slice(tokens);
        self.labels.extend(tokens[1..].iter().zip(&learn[1..]).map(|(token, learn)| learn.then_some(*token)));
        self.labels.push(None);
        self.lengths.push(tokens.len());
        Ok(())
    }

    /// How many tokens are to be predicted.
    pub fn labelled(&self) -> usize {
        self.labels.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_the_next_token_of_the_same_record() {
        let mut batch = MicroBatch::default();
        batch.push(&[5, 6, 7], &[true, false, true]).unwrap();
        batch.push(&[8, 9], &[false, true]).unwrap();
        assert_eq!(batch.tokens, [5, 6, 7, 8, 9]);
        assert_eq!(batch.labels, [None, Some(7), None, Some(9), None]);
        assert_eq!((batch.lengths.as_slice(), batch.labelled()), ([3, 2].as_slice(), 2));
        assert!(batch.push(&[], &[]).is_err() && batch.push(&[1], &[]).is_err());
    }
}
