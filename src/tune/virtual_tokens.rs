//! What virtual tokens begin as. It decides much: from the keys and values of a real text a prefix
//! learns in a fraction of the steps that it needs from noise.

use crate::error::{Error, Result};
use crate::rng::Rng;

/// What the virtual tokens of a prefix or a soft prompt begin as.
#[derive(Debug, Clone, PartialEq)]
pub enum VirtualTokens {
    /// Numbers from N(0, 1).
    Random,
    /// Tokens drawn from the vocabulary.
    Vocabulary,
    /// A text, repeated or cut; the first training record when none is given.
    Text(Option<String>),
}

impl VirtualTokens {
    /// The name in hyperparameters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Vocabulary => "vocabulary",
            Self::Text(_) => "text",
        }
    }

    /// `count` tokens to begin with.
    pub(super) fn tokens(&self, count: usize, text: Option<&[u32]>, vocabulary: usize, seed: u64) -> Result<Vec<u32>> {
        match (self, text) {
            (Self::Text(_), Some(text)) if !text.is_empty() => Ok(text.iter().copied().cycle().take(count).collect()),
            (Self::Text(_), _) => Err(Error::validation("virtualTokensText holds no token for this model")),
            _ => {
                let mut rng = Rng::new(seed, "virtual tokens", 0);
                Ok((0..count).map(|_| rng.below(vocabulary as u64) as u32).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_repeated_or_cut_and_the_vocabulary_is_drawn_from_the_seed() {
        let text = VirtualTokens::Text(None);
        assert_eq!(text.tokens(5, Some(&[7, 8]), 100, 1).unwrap(), [7, 8, 7, 8, 7]);
        assert_eq!(text.tokens(1, Some(&[7, 8]), 100, 1).unwrap(), [7]);
        assert!(text.tokens(3, Some(&[]), 100, 1).is_err());
        let drawn = VirtualTokens::Vocabulary.tokens(50, None, 100, 1).unwrap();
        assert!(drawn.iter().all(|token| *token < 100));
        assert_eq!(drawn, VirtualTokens::Vocabulary.tokens(50, None, 100, 1).unwrap());
        assert_ne!(drawn, VirtualTokens::Vocabulary.tokens(50, None, 100, 2).unwrap());
    }
}
