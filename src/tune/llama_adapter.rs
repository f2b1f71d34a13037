//! LLaMA-Adapter (Zhang et al. 2023, arXiv 2303.16199) in the form that `peft` computes: in the top layers
//! every query attends, besides the text, to a few trained prompts that go through the layer's own key and
//! value projections without a rotation; the result is multiplied with one gate a layer, which begins at
//! zero, so that training starts from the base exactly. (The paper's code has a gate a head, through tanh.)

use std::sync::OnceLock;

use candle_core::Tensor;

use super::lora::PREFIX;
use super::parameters::{Parameters, zeros};
use super::{Method, Place, Trainable};
use crate::error::{Error, Result};
use crate::kernels::{self, Spans};
use crate::models::{Architecture, Attention, Decoder, DecoderConfig, Tuning};

/// The models that `peft` loads it on.
const ARCHITECTURES: [Architecture; 2] = [Architecture::Llama, Architecture::Mistral];

/// What a LLaMA-Adapter is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LlamaAdapterConfig {
    /// Prompts in every layer.
    pub length: usize,
    /// How many layers from the top have it; all but the lowest sixteenth when absent, as 30 of 32.
    pub layers: Option<usize>,
}

impl LlamaAdapterConfig {
    /// How many of a model's layers have it.
    pub fn layers_of(&self, base: &DecoderConfig) -> usize {
        self.layers.unwrap_or(base.layers - base.layers / 16)
    }

    /// Whether it goes on this base.
    ///
    /// # Errors
    /// When the family is none that it is defined for, or has fewer layers than are asked for.
    pub fn check(&self, base: &DecoderConfig) -> Result<()> {
        if !ARCHITECTURES.contains(&base.architecture) {
            return Err(Error::validation(format!(
                "tuningMethod llama_adapter is defined for {}, not for {}: use prefix or lora",
                ARCHITECTURES.map(Architecture::class).join(" and "),
                base.architecture.class()
            )));
        }
        if self.length == 0 || self.layers_of(base) == 0 || self.layers_of(base) > base.layers {
            let layers = self.layers_of(base);
            return Err(Error::validation(format!(
                "adapterLayers is {layers}, but the base model has {} layers",
                base.layers
            )));
        }
        Ok(())
    }
}

struct Gated {
    /// `[length, hidden]`.
    prompt: Tensor,
    /// `[1]`.
    gate: Tensor,
    /// The prompt's keys and values, of one that does not train.
    seen: OnceLock<(Tensor, Tensor)>,
}

/// Gated prompts in the attention of the top layers.
pub struct LlamaAdapter {
    /// The first layer that has it.
    first: usize,
    layers: Vec<Gated>,
    trainables: Vec<Trainable>,
}

impl LlamaAdapter {
    /// A new one: prompts from N(0, 1), gates zero.
    ///
    /// # Errors
    /// As [`LlamaAdapterConfig::check`].
    pub fn new(decoder: &Decoder, config: LlamaAdapterConfig, seed: u64) -> Result<Self> {
        Self::build(decoder.config(), config, Parameters::new(seed, decoder.device()))
    }

    pub(super) fn build(base: &DecoderConfig, config: LlamaAdapterConfig, parameters: Parameters<'_>) -> Result<Self> {
        config.check(base)?;
        let first = base.layers - config.layers_of(base);
        let count = config.length * base.hidden_size;
        let mut layers = Vec::new();
        for layer in first..base.layers {
            let module = format!("{PREFIX}model.layers.{layer}.self_attn");
            let place = Place::Layer(layer);
            let gate = parameters.take(&format!("{module}.adaption_gate"), &[1], place, zeros(1))?;
            let shape = [1, config.length, base.hidden_size];
            let prompt =
                parameters.take(&format!("{module}.adaption_prompt"), &shape, place, |rng| rng.normals(count, 1.0))?;
            layers.push(Gated { prompt, gate, seen: OnceLock::new() });
        }
        Ok(Self { first, layers, trainables: parameters.into_trainables() })
    }
}

impl Gated {
    /// Keys and values of the prompt, each `[length, kv_heads, head_dim]`.
    fn keys_and_values(&self, attention: &Attention<'_>) -> candle_core::Result<(Tensor, Tensor)> {
        if let Some(seen) = self.seen.get() {
            return Ok(seen.clone());
        }
        let prompt = self.prompt.squeeze(0)?;
        let (length, width) = (prompt.dim(0)?, attention.queries.dim(2)?);
        let heads_of = |x: Tensor| -> candle_core::Result<Tensor> {
            let key_heads = x.dim(1)? / width;
            x.reshape((length, key_heads, width))
        };
        let both = (heads_of((attention.keys)(&prompt)?)?, heads_of((attention.values)(&prompt)?)?);
        if !both.0.track_op() && !both.1.track_op() {
            let _ = self.seen.set(both.clone());
        }
        Ok(both)
    }
}

impl Tuning for LlamaAdapter {
    fn beside_attention(&self, attention: &Attention<'_>, y: Tensor) -> candle_core::Result<Tensor> {
        let Some(gated) = attention.layer.checked_sub(self.first).and_then(|layer| self.layers.get(layer)) else {
            return Ok(y);
        };
        let (tokens, heads, width) = attention.queries.dims3()?;
        let (keys, values) = gated.keys_and_values(attention)?;
        let length = keys.dim(0)?;
        let trains = [attention.queries, &keys, &values].iter().any(|part| part.track_op());
        let spans = if trains { Spans::timeless(tokens, length) } else { Spans::timeless_each(tokens, length) };
        let seen = kernels::attention(attention.queries, &keys, &values, &spans, attention.scale, None, None)?;
        y + seen.reshape((tokens, heads * width))?.broadcast_mul(&gated.gate)?
    }
}

impl Method for LlamaAdapter {
    fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }
}
