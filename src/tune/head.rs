//! Tuning of the output head alone (transfer learning in its oldest form): the body of the base gives the
//! features, and only the map from them to the vocabulary trains. The head begins as the base's; where the
//! base ties it to its embedding, the tie is cut and the embedding stays.

use candle_core::Tensor;

use super::parameters::Parameters;
use super::{Method, Place, Trainable};
use crate::error::Result;
use crate::models::{Decoder, DecoderConfig, Tuning};

/// The tensor's name in the artifact: `peft` loads a replaced weight as the tuning of a norm.
pub(super) const HEAD: &str = "base_model.model.lm_head.ln_tuning_layers.weight";

/// The weight of the base that it takes the place of; a base whose head is its embedding gets one of its own.
const MERGED: &str = "lm_head.weight";

/// A head of its own.
pub struct Head {
    /// `[vocab, hidden]`.
    weight: Tensor,
    trainables: Vec<Trainable>,
}

impl Head {
    /// A copy of the base's head, to be trained.
    ///
    /// # Errors
    /// When the device cannot hold it.
    pub fn new(decoder: &Decoder) -> Result<Self> {
        let parameters = Parameters::new(0, decoder.device());
        let weight = parameters.adopt(HEAD, &decoder.head_values()?.detach().copy()?, Place::Top)?;
        Ok(Self { weight, trainables: parameters.into_trainables() })
    }

    /// From an artifact.
    pub(super) fn read(base: &DecoderConfig, parameters: Parameters<'_>) -> Result<Self> {
        let weight = parameters.tensor(HEAD, &[base.vocab_size, base.hidden_size])?;
        let weight = parameters.adopt(HEAD, &weight, Place::Top)?;
        Ok(Self { weight, trainables: parameters.into_trainables() })
    }
}

impl Tuning for Head {
    fn head(&self) -> Option<&Tensor> {
        Some(&self.weight)
    }
}

impl Method for Head {
    fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }

    fn merged_weights(&self) -> Result<Vec<String>> {
        Ok(vec![MERGED.into()])
    }

    fn merge_rows(&self, _: &str, first: usize, values: &mut [f32]) -> Result<()> {
        let rows = values.len() / self.weight.dim(1)?.max(1);
        let own = self.weight.detach().narrow(0, first, rows)?.flatten_all()?.to_vec1::<f32>()?;
        values.copy_from_slice(&own);
        Ok(())
    }
}
