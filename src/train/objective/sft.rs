//! Supervised fine-tuning, and continued pre-training: the cross entropy of every labelled token. Loss and gradient
//! come out of one look at the head.

use super::{Criterion, Top, TopLoss};
use crate::error::Result;

/// The mean of -ln p over all labelled tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sft;

impl Criterion for Sft {
    fn has_perplexity(&self) -> bool {
        true
    }

    fn loss(&self, top: &Top<'_>) -> Result<TopLoss> {
        top.cross_entropy(None)
    }
}
