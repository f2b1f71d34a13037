//! The decoder: embedding, layers, final norm, head. The caller drives it layer by layer, because
//! training keeps only each layer's input and runs the layer again in the backward pass.
//!
//! Reference: transformers' `modeling_<family>.py` of every [`Architecture`](super::Architecture);
//! weights carry their names.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use super::config::DecoderConfig;
use super::layer::{Layer, Linear, Memory};
use super::packing::Packing;
use super::rotary::Rotaries;
use super::tuning::{Projection, Site, Tuning};
use super::weights::{Precision, Weights, save_tensors};
use crate::error::{Error, Result};
use crate::kernels;
use crate::rng::Rng;

/// A base model in memory, in f32.
pub struct Decoder {
    config: DecoderConfig,
    device: Device,
    rotaries: Rotaries,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// The embedding itself when the model ties them.
    head: Tensor,
    /// Every weight by its Hugging Face name, in the order of the layers; a tied head is not listed.
    named: Vec<(String, Tensor)>,
}

impl Decoder {
    /// Reads a Hugging Face model directory. With `trainable` every weight is a variable, for full
    /// tuning; otherwise none is, and none costs a gradient.
    ///
    /// # Errors
    /// When the configuration is not supported, or a weight is missing or has another shape; the
    /// message names it.
    pub fn load(dir: &Path, device: &Device, trainable: bool) -> Result<Self> {
        let config = DecoderConfig::read(dir)?;
        let weights = Weights::open(dir)?;
        Self::build(config, device, trainable, |name, shape| weights.get(name, shape, device))
    }

    /// Checks that `dir` holds a whole model that [`Decoder::load`] takes: every weight is there, in its
    /// shape, and finite. One weight at a time is in memory.
    ///
    /// # Errors
    /// As [`Decoder::load`]; and when a weight is not finite.
    pub fn check(dir: &Path) -> Result<DecoderConfig> {
        let config = DecoderConfig::read(dir)?;
        let weights = Weights::open(dir)?;
        let checked = Self::build(config, &Device::Cpu, false, |name, shape| {
            weights.check(name, shape)?;
            // Stands for the weight without its memory.
            Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
        })?;
        Ok(checked.config)
    }

    /// A new model: normal weights with the configuration's `initializer_range` as deviation, those that write into the residual stream
    /// divided by √(2·layers) so that its variance does not grow with depth (GPT-2); norms scale by one,
    /// biases zero. The same seed gives the same model.
    ///
    /// # Errors
    /// When the device cannot hold it.
    pub fn random(config: DecoderConfig, seed: u64, device: &Device, trainable: bool) -> Result<Self> {
        let depth = (2.0 * config.layers as f32).sqrt();
        let (range, plain) = (config.initializer_range as f32, 1.0 - config.norm_offset as f32);
        Self::build(config, device, trainable, |name, shape| {
            let count = shape.iter().product();
            let values = if name.ends_with("norm.weight") {
                vec![plain; count]
            } else if name.ends_with("bias") {
                vec![0.0; count]
            } else {
                let into_stream = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let deviation = if into_stream { range / depth } else { range };
                Rng::new(seed, name, 0).normals(count, deviation)
            };
            Ok(Tensor::from_vec(values, shape, device)?)
        })
    }

    /// Asks `source` for each weight by name and shape.
    fn build(
        config: DecoderConfig,
        device: &Device,
        trainable: bool,
        mut source: impl FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut named = Vec::new();
        let mut take = |name: String, shape: &[usize]| -> Result<Tensor> {
            let mut tensor = source(&name, shape)?;
            if trainable {
                tensor = Var::from_tensor(&tensor)?.into_inner();
            }
            named.push((name, tensor.clone()));
            Ok(tensor)
        };
        let embedding = take("model.embed_tokens.weight".into(), &[config.vocab_size, config.hidden_size])?;
        let rotaries = Rotaries::new(&config);
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(layer(&config, index, rotaries.of_layer(index), &mut take)?);
        }
        let norm = take("model.norm.weight".into(), &[config.hidden_size])?;
        let head = if config.tied {
            embedding.clone()
        } else {
            take("lm_head.weight".into(), &[config.vocab_size, config.hidden_size])?
        };
        Ok(Self { config, device: device.clone(), rotaries, embedding, layers, norm, head, named })
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where the weights lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every weight by its Hugging Face name, embedding first. A tied head is not listed.
    pub fn named_weights(&self) -> &[(String, Tensor)] {
        &self.named
    }

    /// The packing of whole records, each from position 0.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn packing(&self, lengths: &[usize]) -> Result<Packing> {
        Packing::records(&self.rotaries, lengths, &self.device)
    }

    /// The packing of `new` tokens of one record after the `held` that went through before.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn continuation(&self, held: usize, new: usize) -> Result<Packing> {
        Packing::continued(&self.rotaries, held, new, &self.device)
    }

    /// Token ids to `[N, hidden]`.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(Error::validation(format!(
                "token id {id} lies outside the model's vocabulary of {}; the tokenizer does not belong to this model",
                self.config.vocab_size
            )));
        }
        let ids = Tensor::from_slice(tokens, tokens.len(), &self.device)?;
        let embedded = kernels::embedding(&self.embedding, &ids)?;
        let scale = self.config.embedding_scale;
        Ok(if scale == 1.0 { embedded } else { (embedded * scale)? })
    }

    /// Layer `index`: `[N, hidden]` to `[N, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn layer(&self, index: usize, x: &Tensor, packing: &Packing, tuning: &dyn Tuning) -> Result<Tensor> {
        Ok(self.layers[index].forward(&self.config, x, packing, tuning, None)?)
    }

    /// As [`Decoder::layer`], with the keys and values of earlier tokens in `memory`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn layer_with_memory(
        &self,
        index: usize,
        x: &Tensor,
        packing: &Packing,
        tuning: &dyn Tuning,
        memory: &mut dyn Memory,
    ) -> Result<Tensor> {
        Ok(self.layers[index].forward(&self.config, x, packing, tuning, Some(memory))?)
    }

    /// The final norm: `[N, hidden]` to `[N, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn finish(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::rms_norm(x, &self.norm, self.config.norm_eps, self.config.norm_offset)?)
    }

    /// The output head, `[vocab, hidden]`.
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// The logits of normalised states: `[N, hidden]` to `[N, vocab]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits_of(&self, states: &Tensor) -> Result<Tensor> {
        let logits = kernels::linear(states, &self.head, None)?;
        Ok(match self.config.final_softcap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        })
    }

    /// Logits of every token, `[N, vocab]`: for tests and short inputs, since it holds them all.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits(&self, tokens: &[u32], lengths: &[usize], tuning: &dyn Tuning) -> Result<Tensor> {
        let packing = self.packing(lengths)?;
        let mut x = self.embed(tokens)?;
        for index in 0..self.layers.len() {
            x = self.layer(index, &x, &packing, tuning)?.detach();
        }
        self.logits_of(&self.finish(&x)?)
    }

    /// Writes `config.json` and `model.safetensors` into `dir`, which transformers can load.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path, precision: Precision) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        let mut config = self.config.to_json();
        let dtype = if precision == Precision::F32 { "float32" } else { "bfloat16" };
        config["torch_dtype"] = dtype.into();
        std::fs::write(dir.join("config.json"), format!("{config:#}\n"))?;
        save_tensors(&dir.join("model.safetensors"), &self.named, precision)
    }
}

fn layer(
    config: &DecoderConfig,
    index: usize,
    rotary: Option<usize>,
    take: &mut impl FnMut(String, &[usize]) -> Result<Tensor>,
) -> Result<Layer> {
    let prefix = format!("model.layers.{index}");
    let mut linears = BTreeMap::new();
    for projection in config.projections().iter().copied() {
        let (outputs, inputs) = config.sizes(projection);
        let name = Site { layer: index, projection }.name();
        let weight = take(format!("{name}.weight"), &[outputs, inputs])?;
        let biased = match projection {
            Projection::Query | Projection::Key | Projection::Value | Projection::QueryKeyValue => config.qkv_bias,
            Projection::Output => config.output_bias,
            Projection::Gate | Projection::Up | Projection::GateUp | Projection::Down => config.mlp_bias,
        };
        let bias = if biased { Some(take(format!("{name}.bias"), &[outputs])?) } else { None };
        linears.insert(projection, Linear { weight, bias });
    }
    let mut norm = |name: &str| take(format!("{prefix}.{name}_layernorm.weight"), &[config.hidden_size]);
    let attention_norm = norm("input")?;
    // Where there are norms after the sub-blocks too, this name is the one after attention.
    let second = norm("post_attention")?;
    let (mlp_norm, post_norms) = if config.post_norms {
        (norm("pre_feedforward")?, Some((second, norm("post_feedforward")?)))
    } else {
        (second, None)
    };
    let query_key_norms = if config.qk_norm() {
        let query = take(format!("{prefix}.self_attn.q_norm.weight"), &[config.head_dim])?;
        Some((query, take(format!("{prefix}.self_attn.k_norm.weight"), &[config.head_dim])?))
    } else {
        None
    };
    let window = config.windows[index];
    Ok(Layer { index, linears, attention_norm, mlp_norm, post_norms, query_key_norms, window, rotary })
}
