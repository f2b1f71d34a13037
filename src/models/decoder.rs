//! The decoder: embedding, layers, final norm, head. The caller drives it layer by layer, because
//! training keeps only each layer's input and runs the layer again in the backward pass.
//!
//! Reference: transformers' `modeling_<family>.py` of every [`Architecture`](super::Architecture);
//! weights carry their names.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::config::DecoderConfig;
use super::layer::{Layer, Linear, Memory};
use super::packing::Packing;
use super::quantized::{is_quantized, quantize, read};
use super::rotary::Rotaries;
use super::tuning::{Site, Tuning};
use super::weights::{Precision, Weights, save_tensors};
use crate::durable;
use crate::error::{Error, Result};
use crate::kernels::{self, Nf4, Weight, has_bf16_products};
use crate::rng::Rng;

/// How a base model's weights lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// f32, none of them a variable: none costs a gradient.
    Frozen,
    /// f32, every one a variable, for full tuning.
    Trainable,
    /// The layers' maps and the head in bf16, packed for the CPU's bf16 products; the rest in f32, the table of
    /// a tied embedding included, which is the head too where the CPU has no such products. None trains.
    Bf16,
    /// The layers' maps in NF4, the rest in f32; none trains.
    Nf4,
    /// To answer with: the layers' maps and the head in bf16 where that changes none of their values, as with a
    /// checkpoint that was published in bf16, else in f32; the rest in f32. It computes in f32 on every CPU. None
    /// trains.
    Served,
}

/// A base model in memory.
pub struct Decoder {
    config: DecoderConfig,
    device: Device,
    rotaries: Rotaries,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// The embedding itself when the model ties them, unless it is packed.
    head: Weight,
    /// Every weight by its Hugging Face name, in the order of the layers; a tied head is not listed.
    named: Vec<(String, Tensor)>,
    /// The maps in NF4, which are not among `named`.
    quantized: Vec<(String, Arc<Nf4>)>,
}

impl Decoder {
    /// Reads a Hugging Face model directory.
    ///
    /// # Errors
    /// When the configuration is not supported, a weight is missing or has another shape, or weights that
    /// lie there in NF4 are to train; the message names it.
    pub fn load(dir: &Path, device: &Device, form: Form) -> Result<Self> {
        let config = DecoderConfig::read(dir)?;
        let weights = Weights::open(dir)?;
        if config.nf4 && form == Form::Trainable {
            return Err(Error::validation(
                "The base model is quantised: its weights cannot train. Use tuningMethod qlora, or the base that it \
                 was made from",
            ));
        }
        let nf4 = config.nf4;
        Self::build(config, device, form, |name, shape| match read(&weights, name, shape)? {
            Some(quantized) if nf4 => Ok(Weight::Nf4(Arc::new(quantized))),
            _ => Ok(weights.get(name, shape, device)?.into()),
        })
    }

    /// Checks that `dir` holds a whole model that [`Decoder::load`] takes: every weight is there, in its
    /// shape, and finite. A strip of one weight is in memory at a time.
    ///
    /// # Errors
    /// As [`Decoder::load`]; and when a weight is not finite.
    pub fn check(dir: &Path) -> Result<DecoderConfig> {
        let config = DecoderConfig::read(dir)?;
        let weights = Weights::open(dir)?;
        Self::every_weight(config, |name, shape| match read(&weights, name, shape)? {
            Some(_) => Ok(()),
            None => weights.check(name, shape),
        })
    }

    /// Checks that `dir` holds every weight that its configuration asks for, in its shape and in a type that can be
    /// read. The headers of its files are read, and no weight.
    ///
    /// # Errors
    /// As [`Decoder::load`], for as much as headers tell.
    pub fn check_headers(dir: &Path) -> Result<DecoderConfig> {
        let config = DecoderConfig::read(dir)?;
        let weights = Weights::open(dir)?;
        Self::every_weight(config, |name, shape| match is_quantized(&weights, name) {
            true => Ok(()),
            false => weights.expect(name, shape),
        })
    }

    /// Asks for each weight by name and shape.
    fn every_weight(config: DecoderConfig, mut ask: impl FnMut(&str, &[usize]) -> Result<()>) -> Result<DecoderConfig> {
        let asked = Self::build(config, &Device::Cpu, Form::Frozen, |name, shape| {
            ask(name, shape)?;
            // Stands for the weight without its memory.
            Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?.broadcast_as(shape)?.into())
        })?;
        Ok(asked.config)
    }

    /// A new model: normal weights with the configuration's `initializer_range` as deviation, those that write into the residual stream
    /// divided by √(2·layers) so that its variance does not grow with depth (GPT-2); norms scale by one,
    /// biases zero. One to answer with is rounded to bf16, as checkpoints are published. The same seed gives the
    /// same model.
    ///
    /// # Errors
    /// When the device cannot hold it.
    pub fn random(config: DecoderConfig, seed: u64, device: &Device, form: Form) -> Result<Self> {
        let depth = (2.0 * config.layers as f32).sqrt();
        let (range, plain) = (config.initializer_range as f32, 1.0 - config.norm_offset as f32);
        Self::build(config, device, form, |name, shape| {
            let count = shape.iter().product();
            let values = if name.ends_with("norm.weight") {
                vec![plain; count]
            } else if name.ends_with("bias") {
                vec![0.0; count]
            } else {
                let into_stream = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let deviation = if into_stream { range / depth } else { range };
                let mut values = Rng::new(seed, name, 0).normals(count, deviation);
                if form == Form::Served {
                    values.iter_mut().for_each(|value| *value = kernels::to_bf16(*value));
                }
                values
            };
            Ok(Tensor::from_vec(values, shape, device)?.into())
        })
    }

    /// Asks `source` for each weight by name and shape.
    fn build(
        config: DecoderConfig,
        device: &Device,
        form: Form,
        mut source: impl FnMut(&str, &[usize]) -> Result<Weight>,
    ) -> Result<Self> {
        let (mut named, mut quantized) = (Vec::new(), Vec::new());
        let mut take = |name: String, shape: &[usize], map: bool| -> Result<Weight> {
            let weight = in_form(form, map, &name, shape, source(&name, shape)?)?;
            match &weight {
                Weight::Dense(tensor) => named.push((name, tensor.clone())),
                Weight::Bf16(_) => {}
                Weight::Nf4(weight) => quantized.push((name, weight.clone())),
            }
            Ok(weight)
        };
        let embedding = dense(&mut take, "model.embed_tokens.weight", &[config.vocab_size, config.hidden_size])?;
        let rotaries = Rotaries::new(&config);
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(layer(&config, index, rotaries.of_layer(index), &mut take)?);
        }
        let norm = dense(&mut take, "model.norm.weight", &[config.hidden_size])?;
        let size = [config.vocab_size, config.hidden_size];
        let head = match (config.tied, form) {
            // Beside the table it would only cost memory on a CPU that cannot multiply it as it is.
            (true, Form::Bf16) if has_bf16_products() => Weight::packed(&embedding)?,
            (true, Form::Served) => Weight::lossless(&embedding)?,
            (true, _) => Weight::from(&embedding),
            (false, Form::Bf16 | Form::Served) => take("lm_head.weight".into(), &size, true)?,
            (false, _) => dense(&mut take, "lm_head.weight", &size)?.into(),
        };
        Ok(Self { config, device: device.clone(), rotaries, embedding, layers, norm, head, named, quantized })
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where the weights lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every dense weight by its Hugging Face name, embedding first. A tied head is not listed.
    pub fn named_weights(&self) -> &[(String, Tensor)] {
        &self.named
    }

    /// The maps in NF4 by their Hugging Face names.
    pub fn quantized_weights(&self) -> &[(String, Arc<Nf4>)] {
        &self.quantized
    }

    /// Bytes that the weights take in memory.
    pub fn bytes(&self) -> usize {
        let dense = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let layers = self.layers.iter().map(|layer| layer.bytes());
        let shared = self.head.tensor().is_some_and(|head| head.id() == self.embedding.id());
        let head = if shared { 0 } else { self.head.bytes() };
        dense(&self.embedding) + dense(&self.norm) + head + layers.sum::<usize>()
    }

    /// The weight of a linear map, if there is one.
    pub fn weight(&self, site: Site) -> Option<&Weight> {
        self.layers.get(site.layer)?.linears.get(&site.projection).map(|linear| &linear.weight)
    }

    /// The packing of whole records of so many tokens, each behind what the method puts in front.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn packing(&self, lengths: &[usize], tuning: &dyn Tuning) -> Result<Packing> {
        Packing::records(&self.rotaries, lengths, tuning, &self.device)
    }

    /// The packing of one new token for each of some records, whose keys lie at `places` among `rows` rows of
    /// keys, that of the new token last in its place.
    ///
    /// # Errors
    /// When a place is empty or reaches past the rows.
    pub fn next_tokens(&self, places: &[Range<usize>], rows: usize) -> Result<Packing> {
        Packing::next(&self.rotaries, places, rows, &self.device)
    }

    /// Token ids to `[N, hidden]`, every record behind its soft prompt.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary.
    pub fn embed(&self, tokens: &[u32], packing: &Packing, tuning: &dyn Tuning) -> Result<Tensor> {
        let mut x = self.embedding_rows(tokens)?;
        if let Some(prompt) = tuning.soft_prompt().filter(|_| packing.soft > 0) {
            let lengths: Vec<usize> = packing.lengths.iter().map(|length| length - packing.soft).collect();
            x = kernels::lead(prompt, &x, &lengths)?;
        }
        let late = self.config.scales_soft_prompts();
        Ok(if late && self.config.embedding_scale != 1.0 { (x * self.config.embedding_scale)? } else { x })
    }

    /// The embeddings of some tokens as a soft prompt begins with them, `[N, hidden]`.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary.
    pub fn embedding_rows(&self, tokens: &[u32]) -> Result<Tensor> {
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(Error::validation(format!(
                "token id {id} lies outside the model's vocabulary of {}; the tokenizer does not belong to this model",
                self.config.vocab_size
            )));
        }
        let ids = Tensor::from_slice(tokens, tokens.len(), &self.device)?;
        let embedded = kernels::embedding(&self.embedding, &ids)?;
        let scale = self.config.embedding_scale;
        Ok(if scale == 1.0 || self.config.scales_soft_prompts() { embedded } else { (embedded * scale)? })
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

    /// Makes now what gradients need beside the weights that go down through the head and the layers from `first` on.
    pub fn prepare_to_pull_back(&self, first: usize) {
        let maps = self.layers.iter().skip(first).flat_map(|layer| layer.linears.values()).map(|linear| &linear.weight);
        maps.chain([&self.head]).for_each(Weight::prepare_to_pull_back);
    }

    /// The output head, `[vocab, hidden]`: the method's own, or the base's.
    pub fn head(&self, tuning: &dyn Tuning) -> Weight {
        tuning.head().map_or_else(|| self.head.clone(), Weight::from)
    }

    /// The values of the base's own head, `[vocab, hidden]`, in f32.
    ///
    /// # Errors
    /// When the device cannot hold them.
    pub fn head_values(&self) -> Result<Tensor> {
        Ok(if self.config.tied { self.embedding.clone() } else { self.head.values()? })
    }

    /// The logits of normalised states: `[N, hidden]` to `[N, vocab]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits_of(&self, states: &Tensor, tuning: &dyn Tuning) -> Result<Tensor> {
        let logits = self.head(tuning).apply(states, None)?;
        Ok(match self.config.final_softcap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        })
    }

    /// Logits of every row, `[N, vocab]`: for tests and short inputs, since it holds them all.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits(&self, tokens: &[u32], lengths: &[usize], tuning: &dyn Tuning) -> Result<Tensor> {
        let packing = self.packing(lengths, tuning)?;
        let mut x = self.embed(tokens, &packing, tuning)?;
        for index in 0..self.layers.len() {
            x = self.layer(index, &x, &packing, tuning)?.detach();
        }
        self.logits_of(&self.finish(&x)?, tuning)
    }

    /// Writes `config.json` and `model.safetensors` into `dir`, which transformers can load.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path, precision: Precision) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        self.save_config(dir, precision)?;
        save_tensors(&dir.join("model.safetensors"), &self.named, precision)
    }

    /// Writes `config.json` alone into `dir`, for weights of this precision.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_config(&self, dir: &Path, precision: Precision) -> Result<()> {
        let mut config = self.config.to_json();
        let dtype = if precision == Precision::F32 { "float32" } else { "bfloat16" };
        config["torch_dtype"] = dtype.into();
        Ok(durable::write(&dir.join("config.json"), format!("{config:#}\n"))?)
    }
}

/// A weight as it lies in memory in a form; `map` says that it is a linear map of a layer.
pub(super) fn in_form(form: Form, map: bool, name: &str, shape: &[usize], weight: Weight) -> Result<Weight> {
    Ok(match weight {
        Weight::Dense(tensor) if form == Form::Nf4 && map => {
            Weight::Nf4(quantize(name, &tensor.flatten_all()?.to_vec1::<f32>()?, shape)?)
        }
        Weight::Dense(tensor) if form == Form::Bf16 && map => Weight::packed(&tensor)?,
        Weight::Dense(tensor) if form == Form::Served && map => Weight::lossless(&tensor)?,
        Weight::Dense(tensor) if form == Form::Trainable => Var::from_tensor(&tensor)?.into_inner().into(),
        other => other,
    })
}

/// A weight that is no linear map of a layer, and so never quantised.
pub(super) fn dense(
    take: &mut impl FnMut(String, &[usize], bool) -> Result<Weight>,
    name: &str,
    shape: &[usize],
) -> Result<Tensor> {
    match take(name.to_string(), shape, false)? {
        Weight::Dense(tensor) => Ok(tensor),
        Weight::Bf16(_) | Weight::Nf4(_) => {
            Err(Error::validation(format!("the tensor {name} is quantised; only layers' maps may be")))
        }
    }
}

pub(super) fn layer(
    config: &DecoderConfig,
    index: usize,
    rotary: Option<usize>,
    take: &mut impl FnMut(String, &[usize], bool) -> Result<Weight>,
) -> Result<Layer> {
    let prefix = format!("model.layers.{index}");
    let mut linears = BTreeMap::new();
    for projection in config.projections().iter().copied() {
        let (outputs, inputs) = config.sizes(projection);
        let name = Site { layer: index, projection }.name();
        let weight = take(format!("{name}.weight"), &[outputs, inputs], true)?;
        let bias =
            if config.biased(projection) { Some(dense(take, &format!("{name}.bias"), &[outputs])?) } else { None };
        linears.insert(projection, Linear { weight, bias });
    }
    let mut norm = |name: &str| dense(take, &format!("{prefix}.{name}_layernorm.weight"), &[config.hidden_size]);
    let attention_norm = norm("input")?;
    // Where there are norms after the sub-blocks too, this name is the one after attention.
    let second = norm("post_attention")?;
    let (mlp_norm, post_norms) = if config.post_norms {
        (norm("pre_feedforward")?, Some((second, norm("post_feedforward")?)))
    } else {
        (second, None)
    };
    let query_key_norms = if config.qk_norm() {
        let query = dense(take, &format!("{prefix}.self_attn.q_norm.weight"), &[config.head_dim])?;
        Some((query, dense(take, &format!("{prefix}.self_attn.k_norm.weight"), &[config.head_dim])?))
    } else {
        None
    };
    let window = config.windows[index];
    Ok(Layer { index, linears, attention_norm, mlp_norm, post_norms, query_key_norms, window, rotary })
}
