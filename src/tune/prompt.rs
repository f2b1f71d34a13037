//! Prompt tuning (Lester et al. 2021, arXiv 2104.08691): embeddings that train stand in front of every
//! record. They take the first positions; nothing in the base changes.

use candle_core::Tensor;

use super::parameters::Parameters;
use super::prefix::PROMPT_EMBEDDINGS;
use super::{Method, Place, Trainable, VirtualTokens};
use crate::error::{Error, Result};
use crate::models::{Decoder, DecoderConfig, Tuning, Weights};

/// What a soft prompt is made with.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptConfig {
    /// How many embeddings.
    pub tokens: usize,
    /// What they begin as.
    pub begin: VirtualTokens,
}

/// A soft prompt.
pub struct SoftPrompt {
    /// `[tokens, hidden]`.
    rows: Tensor,
    tokens: usize,
    trainables: Vec<Trainable>,
}

impl SoftPrompt {
    /// A new one. `text` are the tokens whose embeddings it begins with.
    ///
    /// # Errors
    /// When it has no token, or text is asked for and there is none.
    pub fn new(decoder: &Decoder, config: &PromptConfig, text: Option<&[u32]>, seed: u64) -> Result<Self> {
        let base = decoder.config();
        if config.tokens == 0 {
            return Err(Error::validation("a soft prompt needs at least one virtual token"));
        }
        let parameters = Parameters::new(seed, decoder.device());
        let count = config.tokens * base.hidden_size;
        let rows = if config.begin == VirtualTokens::Random {
            let shape = [config.tokens, base.hidden_size];
            parameters.take(PROMPT_EMBEDDINGS, &shape, Place::Embedding, |rng| rng.normals(count, 1.0))?
        } else {
            let tokens = config.begin.tokens(config.tokens, text, base.vocab_size, seed)?;
            let rows = decoder.embedding_rows(&tokens)?.detach();
            parameters.adopt(PROMPT_EMBEDDINGS, &rows, Place::Embedding)?
        };
        Ok(Self { rows, tokens: config.tokens, trainables: parameters.into_trainables() })
    }

    /// From an artifact.
    pub(super) fn read(base: &DecoderConfig, weights: &Weights, parameters: Parameters<'_>) -> Result<Self> {
        let tokens = weights.shape(PROMPT_EMBEDDINGS).and_then(|shape| shape.first().copied()).unwrap_or(0);
        let rows = parameters.tensor(PROMPT_EMBEDDINGS, &[tokens, base.hidden_size])?;
        let rows = parameters.adopt(PROMPT_EMBEDDINGS, &rows, Place::Embedding)?;
        Ok(Self { rows, tokens, trainables: parameters.into_trainables() })
    }
}

impl Tuning for SoftPrompt {
    fn soft_tokens(&self) -> usize {
        self.tokens
    }

    fn soft_prompt(&self) -> Option<&Tensor> {
        Some(&self.rows)
    }
}

impl Method for SoftPrompt {
    fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }
}
