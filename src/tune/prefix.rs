//! Prefix tuning (Li & Liang 2021, arXiv 2101.00190): keys and values that train stand in front of every
//! record in every layer. As in `peft` they carry no rotation and the first token stands behind them. They
//! may be the result of a small net, which goes when training is done: the artifact holds keys and values.

use candle_core::Tensor;

use super::parameters::Parameters;
use super::{Method, Place, Trainable, VirtualTokens};
use crate::error::{Error, Result};
use crate::kernels;
use crate::models::{Decoder, DecoderConfig, Frozen, Memory, Tuning, Weights};

/// What a prefix is made with.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefixConfig {
    /// How many keys and values.
    pub tokens: usize,
    /// What they begin as; not used with a projection.
    pub begin: VirtualTokens,
    /// Width inside the net that makes them, if one does; 0 stands for the model's width.
    pub projection: Option<usize>,
}

/// The tensor of the artifact: `[tokens, layers · 2 · kv_heads · head_dim]`.
pub(super) const PROMPT_EMBEDDINGS: &str = "prompt_embeddings";

/// Trained keys and values in front of every layer's own.
pub struct Prefix {
    tokens: usize,
    /// Heads and width of keys and values.
    heads: (usize, usize),
    parts: Parts,
    trainables: Vec<Trainable>,
}

/// What the keys and values are made of; a layer's part holds its keys, then its values.
enum Parts {
    /// Each `[tokens, kv_heads · head_dim]`.
    Flat(Vec<(Tensor, Tensor)>),
    /// tanh(E·W₁ᵀ + b₁)·W₂ᵀ + b₂, with W₂ and b₂ cut by layers. It is run again in every layer, which costs
    /// `tokens` rows and keeps the gradient of a layer within the layer.
    Projected { embedding: Tensor, inner: (Tensor, Tensor), layers: Vec<(Tensor, Tensor)> },
}

impl Prefix {
    /// A new one. `text` are the tokens whose keys and values in the base it begins with.
    ///
    /// # Errors
    /// When it has no token, or text is asked for and there is none.
    pub fn new(decoder: &Decoder, config: &PrefixConfig, text: Option<&[u32]>, seed: u64) -> Result<Self> {
        let base = decoder.config();
        if config.tokens == 0 {
            return Err(Error::validation("a prefix needs at least one virtual token"));
        }
        let width = base.kv_heads * base.head_dim;
        let parameters = Parameters::new(seed, decoder.device());
        if let Some(inner) = config.projection {
            let inner = if inner == 0 { base.hidden_size } else { inner };
            let parts = projected(base, config.tokens, width, inner, &parameters)?;
            return Ok(Self::with(base, config.tokens, parts, parameters));
        }
        let count = config.tokens * width;
        let shape = [config.tokens, width];
        let mut layers = Vec::with_capacity(base.layers);
        if config.begin == VirtualTokens::Random {
            for layer in 0..base.layers {
                let draw = |what| {
                    parameters.take(&name(layer, what), &shape, Place::Layer(layer), |rng| rng.normals(count, 1.0))
                };
                layers.push((draw("keys")?, draw("values")?));
            }
        } else {
            let tokens = config.begin.tokens(config.tokens, text, base.vocab_size, seed)?;
            for (layer, (keys, values)) in seen(decoder, &tokens)?.into_iter().enumerate() {
                let adopt = |what, tensor: Tensor| {
                    parameters.adopt(&name(layer, what), &tensor.reshape(&shape)?, Place::Layer(layer))
                };
                layers.push((adopt("keys", keys)?, adopt("values", values)?));
            }
        }
        Ok(Self::with(base, config.tokens, Parts::Flat(layers), parameters))
    }

    /// From an artifact.
    pub(super) fn read(base: &DecoderConfig, weights: &Weights, parameters: Parameters<'_>) -> Result<Self> {
        let tokens = weights.shape(PROMPT_EMBEDDINGS).and_then(|shape| shape.first().copied()).unwrap_or(0);
        let width = base.kv_heads * base.head_dim;
        let all = parameters.tensor(PROMPT_EMBEDDINGS, &[tokens, base.layers * 2 * width])?;
        let mut layers = Vec::with_capacity(base.layers);
        for layer in 0..base.layers {
            let cut = |what, index: usize| -> Result<Tensor> {
                let part = all.narrow(1, (2 * layer + index) * width, width)?.contiguous()?;
                parameters.adopt(&name(layer, what), &part, Place::Layer(layer))
            };
            layers.push((cut("keys", 0)?, cut("values", 1)?));
        }
        Ok(Self::with(base, tokens, Parts::Flat(layers), parameters))
    }

    fn with(base: &DecoderConfig, tokens: usize, parts: Parts, parameters: Parameters<'_>) -> Self {
        let heads = (base.kv_heads, base.head_dim);
        Self { tokens, heads, parts, trainables: parameters.into_trainables() }
    }

    /// A layer's keys and values, each `[tokens, kv_heads · head_dim]`.
    fn layer(&self, layer: usize) -> candle_core::Result<Option<(Tensor, Tensor)>> {
        match &self.parts {
            Parts::Flat(layers) => Ok(layers.get(layer).cloned()),
            Parts::Projected { embedding, inner, layers } => {
                let Some((weight, bias)) = layers.get(layer) else { return Ok(None) };
                let hidden = kernels::linear(embedding, &inner.0, Some(&inner.1))?.tanh()?;
                let both = kernels::linear(&hidden, weight, Some(bias))?;
                let width = self.heads.0 * self.heads.1;
                Ok(Some((both.narrow(1, 0, width)?, both.narrow(1, width, width)?)))
            }
        }
    }
}

fn projected(
    base: &DecoderConfig,
    tokens: usize,
    width: usize,
    inner: usize,
    parameters: &Parameters<'_>,
) -> Result<Parts> {
    // Shared by all layers: the gradient is complete below the lowest.
    let place = Place::Layer(0);
    let linear = |name: &str, outputs: usize, inputs: usize, place: Place| -> Result<(Tensor, Tensor)> {
        // torch's own start of a linear layer.
        let bound = 1.0 / (inputs as f32).sqrt();
        let weight = parameters.take(&format!("{name}.weight"), &[outputs, inputs], place, |rng| {
            rng.uniforms(outputs * inputs, -bound, bound)
        })?;
        let bias =
            parameters.take(&format!("{name}.bias"), &[outputs], place, |rng| rng.uniforms(outputs, -bound, bound))?;
        Ok((weight, bias))
    };
    let embedding =
        parameters.take("embedding.weight", &[tokens, width], place, |rng| rng.normals(tokens * width, 1.0))?;
    let inner_layer = linear("transform.0", inner, width, place)?;
    let layers = (0..base.layers)
        .map(|layer| linear(&format!("transform.2.{layer}"), 2 * width, inner, Place::Layer(layer)))
        .collect::<Result<_>>()?;
    Ok(Parts::Projected { embedding, inner: inner_layer, layers })
}

fn name(layer: usize, what: &str) -> String {
    format!("layers.{layer}.{what}")
}

/// Keys and values of every layer of the base for a text.
fn seen(decoder: &Decoder, tokens: &[u32]) -> Result<Vec<(Tensor, Tensor)>> {
    struct Seen(Vec<(Tensor, Tensor)>);
    impl Memory for Seen {
        fn is_empty(&self, layer: usize) -> bool {
            layer >= self.0.len()
        }

        fn extend(&mut self, _: usize, keys: &Tensor, values: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
            self.0.push((keys.detach(), values.detach()));
            Ok((keys.clone(), values.clone()))
        }
    }
    let packing = decoder.packing(&[tokens.len()], &Frozen)?;
    let mut x = decoder.embed(tokens, &packing, &Frozen)?.detach();
    let mut seen = Seen(Vec::new());
    for layer in 0..decoder.config().layers {
        x = decoder.layer_with_memory(layer, &x, &packing, &Frozen, &mut seen)?.detach();
    }
    Ok(seen.0)
}

impl Tuning for Prefix {
    fn prefix_tokens(&self) -> usize {
        self.tokens
    }

    fn prefix(&self, layer: usize) -> candle_core::Result<Option<(Tensor, Tensor)>> {
        let shape = (self.tokens, self.heads.0, self.heads.1);
        let Some((keys, values)) = self.layer(layer)? else { return Ok(None) };
        Ok(Some((keys.reshape(shape)?, values.reshape(shape)?)))
    }
}

impl Method for Prefix {
    fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }

    fn artifact(&self) -> Result<Vec<(String, Tensor)>> {
        let mut parts = Vec::new();
        let mut layer = 0;
        while let Some((keys, values)) = self.layer(layer)? {
            parts.extend([keys.detach(), values.detach()]);
            layer += 1;
        }
        Ok(vec![(PROMPT_EMBEDDINGS.into(), Tensor::cat(&parts, 1)?)])
    }
}
