//! An adapter put into the weights of its base, as `peft`'s `merge_and_unload` does it: a model directory of its own
//! that transformers, or anything else that reads such directories, loads without knowing of adapters. What changes is
//! computed in f32 and rounded once. Weights go through memory a strip at a time, so a model of any size can be
//! merged; and how far the answers moved by the rounding is measured on the way, a layer at a time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::Device;
use safetensors::tensor::Dtype;
use serde::Serialize;
use serde_json::Value;

use crate::durable;
use crate::error::{Error, Result};
use crate::models::{
    DecoderConfig, Form, Frozen, Outline, Tuning, Weights, copy_tokenizer, encode, layerwise_logits, write_shards,
};
use crate::rng::Rng;
use crate::tune::{Adapter, Method, read_adapter};

/// The largest finite number of f16.
const F16_MAX: f32 = 65_504.0;
/// Where differences are measured: records of drawn tokens, always the same of one vocabulary.
const RECORDS: usize = 4;
const RECORD_TOKENS: usize = 16;

/// How a merged model is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeOptions {
    /// The type of every weight; each as in the base when `None`.
    pub dtype: Option<MergedType>,
    /// The most bytes of a file of weights.
    pub max_shard_bytes: u64,
}

impl Default for MergeOptions {
    fn default() -> Self {
        // transformers' own limit.
        Self { dtype: None, max_shard_bytes: 5_000_000_000 }
    }
}

/// A type that weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergedType {
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// float32.
    F32,
}

impl MergedType {
    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    /// 16 bits, of the kind that the base in `dir` has; bfloat16 where it has 32.
    ///
    /// # Errors
    /// When its weights cannot be read.
    pub fn sixteen_bits(dir: &Path) -> Result<Self> {
        let weights = Weights::open(dir)?;
        let f16 = matches!(weights.stored(EMBEDDING), Some((Dtype::F16, _)));
        Ok(if f16 { Self::F16 } else { Self::Bf16 })
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// What merging came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Merged {
    /// How the adapter was trained.
    pub method: &'static str,
    /// The types that the weights are stored in.
    pub dtype: String,
    /// The files with weights.
    pub files: Vec<String>,
    /// Bytes of weights.
    pub bytes: u64,
    /// How many weights are others than the base's.
    pub changed_weights: usize,
    /// The base's head was its embedding, and the merged model has one of its own.
    pub untied: bool,
    /// The merged model against the adapter over the same base.
    pub difference: Difference,
    /// The merged model against the adapter over the base in 4 bits, which it was trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference_to_four_bits: Option<Difference>,
}

/// How far the logits of two models lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// After how many tokens the next one's logits were looked at.
    pub tokens: usize,
    /// The largest difference of a logit.
    pub largest: f64,
    /// The mean of all.
    pub mean: f64,
    /// At which share of the tokens both hold the same next token for the likeliest.
    pub same_token: f64,
}

/// Merges the adapter in `adapter` into the base in `base`, both as files, and writes the model into `out`, which must
/// not be there yet or be empty.
///
/// # Errors
/// `Validation` when the adapter does not fit the base or cannot be merged, the base is quantised, `out` holds
/// something, or a merged number is not finite; the message says what to do.
pub fn merge(base: &Path, adapter: &Path, out: &Path, options: &MergeOptions) -> Result<Merged> {
    let config = DecoderConfig::read(base)?;
    let tuned = read_adapter(adapter, &config, &Device::Cpu, false)?;
    check_mergeable(&tuned, &config)?;
    if out.exists() && !out.read_dir().is_ok_and(|mut held| held.next().is_none()) {
        return Err(Error::validation("The place of the merged model is there: give a folder that is not there yet")
            .at(out.display().to_string()));
    }
    let weights = Weights::open(base)?;
    let changed = tuned.tuning.merged_weights()?;
    let plan = Planned::new(&config, &weights, &changed, options)?;

    let name = out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let staging = out.with_file_name(format!(".{name}.unfinished-{}", std::process::id()));
    let written = plan.write((base, adapter), &staging, (&weights, &*tuned.tuning), options).and_then(|files| {
        let (difference, difference_to_four_bits) = differences(base, &staging, &config, &tuned)?;
        if out.exists() {
            std::fs::remove_dir(out)?;
        }
        durable::rename(&staging, out)?;
        Ok(Merged {
            method: tuned.method.name(),
            dtype: plan.types(),
            files,
            bytes: plan.tensors.iter().map(Outline::bytes).sum(),
            changed_weights: changed.len(),
            untied: plan.untied,
            difference,
            difference_to_four_bits,
        })
    });
    // Half a model must not stay.
    let _ = std::fs::remove_dir_all(&staging);
    written
}

/// Whether what was tuned on this base can be merged into it.
fn check_mergeable(adapter: &Adapter, base: &DecoderConfig) -> Result<()> {
    if let Some(why) = adapter.method.unmergeable() {
        return Err(Error::validation(format!(
            "An adapter of method {} cannot be merged: {why}. Load it beside its base.",
            adapter.method.name()
        )));
    }
    if base.nf4 {
        return Err(Error::validation(
            "The base is quantised, and its 4 bits cannot take what was learned: merge into the model that it was made \
             from",
        ));
    }
    Ok(())
}

/// What is to be written.
struct Planned<'a> {
    tensors: Vec<Outline>,
    changed: &'a [String],
    untied: bool,
}

impl<'a> Planned<'a> {
    fn new(config: &DecoderConfig, weights: &Weights, changed: &'a [String], options: &MergeOptions) -> Result<Self> {
        let head = changed.iter().any(|name| name == HEAD);
        let untied = head && config.tied;
        let mut tensors: BTreeMap<&str, Outline> = BTreeMap::new();
        for name in weights.names() {
            let Some((stored, shape)) = weights.stored(name) else { continue };
            // What is no weight, a table of positions for example, stays as it is.
            let float = matches!(stored, Dtype::F32 | Dtype::F16 | Dtype::BF16);
            let dtype = options.dtype.filter(|_| float).map_or(stored, MergedType::dtype);
            tensors.insert(name, Outline { name: name.into(), shape: shape.to_vec(), dtype });
        }
        if untied && let Some(embedding) = tensors.get(EMBEDDING) {
            let own = Outline { name: HEAD.into(), ..embedding.clone() };
            tensors.insert(HEAD, own);
        }
        let lacking = changed.iter().find(|name| !tensors.contains_key(name.as_str()));
        if let Some(name) = lacking {
            return Err(Error::validation(format!("The base lacks the tensor {name}, which the adapter changes")));
        }
        Ok(Self { tensors: tensors.into_values().collect(), changed, untied })
    }

    /// The types of all weights, in words.
    fn types(&self) -> String {
        let mut types: Vec<&str> = Vec::new();
        for tensor in &self.tensors {
            let all = [MergedType::Bf16, MergedType::F16, MergedType::F32];
            let name = all.into_iter().find(|one| one.dtype() == tensor.dtype).map(MergedType::name);
            if let Some(name) = name.filter(|name| !types.contains(name)) {
                types.push(name);
            }
        }
        types.join(", ")
    }

    fn write(
        &self,
        (base, adapter): (&Path, &Path),
        dir: &Path,
        (weights, tuning): (&Weights, &dyn Method),
        options: &MergeOptions,
    ) -> Result<Vec<String>> {
        std::fs::create_dir_all(dir)?;
        durable::write(&dir.join("config.json"), config_of(base, options, self.untied)?)?;
        // What the adapter was taught with goes before what its base has.
        copy_tokenizer(base, dir)?;
        copy_tokenizer(adapter, dir)?;
        write_shards(dir, &self.tensors, options.max_shard_bytes, &mut |tensor, numbers| {
            self.strip(tensor, numbers, weights, tuning)
        })
    }

    fn strip(
        &self,
        tensor: &Outline,
        numbers: Range<usize>,
        weights: &Weights,
        tuning: &dyn Method,
    ) -> Result<Vec<u8>> {
        let Outline { name, shape, dtype } = tensor;
        let changed = self.changed.contains(name);
        let stored = weights.stored(name).map(|(stored, _)| stored);
        if !changed && stored == Some(*dtype) {
            return weights.raw_strip(name, numbers);
        }
        // A head that takes the embedding's place is not in the file; all of it comes from the adapter.
        let mut values = match stored {
            Some(_) => weights.strip(name, numbers.clone())?,
            None => vec![0.0; numbers.len()],
        };
        if changed {
            let row = shape.iter().skip(1).product::<usize>().max(1);
            tuning.merge_rows(name, numbers.start / row, &mut values)?;
        }
        let limit = if *dtype == Dtype::F16 { F16_MAX } else { f32::MAX };
        if let Some(value) = values.iter().find(|value| value.is_nan() || value.abs() > limit) {
            return Err(Error::validation(format!(
                "{name} holds {value} once merged, which cannot be stored as {dtype:?}: {}",
                if value.is_finite() { "use another type" } else { "the adapter is broken" }
            )));
        }
        encode(&values, *dtype)
    }
}

/// The base's configuration with what is different now.
fn config_of(base: &Path, options: &MergeOptions, untied: bool) -> Result<String> {
    let mut config: Value = serde_json::from_slice(&std::fs::read(base.join("config.json"))?)?;
    if let Some(dtype) = options.dtype {
        // transformers renamed it, and reads both.
        let known = ["dtype", "torch_dtype"].into_iter().find(|name| config.get(name).is_some());
        config[known.unwrap_or("torch_dtype")] = dtype.name().into();
    }
    if untied {
        config["tie_word_embeddings"] = false.into();
    }
    Ok(format!("{config:#}\n"))
}

/// The merged model against the adapter over its base, and over that base in 4 bits where it was trained so.
fn differences(
    base: &Path,
    merged: &Path,
    config: &DecoderConfig,
    adapter: &Adapter,
) -> Result<(Difference, Option<Difference>)> {
    let length = RECORD_TOKENS.min(config.max_positions);
    let mut draw = Rng::new(0, "merge", 0);
    let tokens: Vec<u32> = (0..RECORDS * length).map(|_| draw.below(config.vocab_size as u64) as u32).collect();
    let logits = |dir: &Path, form, tuning: &dyn Tuning| -> Result<Vec<Vec<f32>>> {
        Ok(layerwise_logits(dir, form, &tokens, &[length; RECORDS], tuning)?.to_vec2()?)
    };
    let after = logits(merged, Form::Frozen, &Frozen)?;
    let before = |form| -> Result<Difference> { Ok(difference(&logits(base, form, &*adapter.tuning)?, &after)) };
    let four_bits = match adapter.method.form() {
        Form::Nf4 => Some(before(Form::Nf4)?),
        _ => None,
    };
    Ok((before(Form::Frozen)?, four_bits))
}

fn difference(before: &[Vec<f32>], after: &[Vec<f32>]) -> Difference {
    let likeliest = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(token, _)| token);
    let (mut largest, mut sum, mut count, mut same) = (0f64, 0f64, 0usize, 0usize);
    for (before, after) in before.iter().zip(after) {
        for (before, after) in before.iter().zip(after) {
            let apart = (f64::from(*before) - f64::from(*after)).abs();
            largest = largest.max(apart);
            sum += apart;
        }
        count += before.len();
        same += usize::from(likeliest(before) == likeliest(after));
    }
    let (count, tokens) = (count.max(1) as f64, after.len());
    Difference { tokens, largest, mean: sum / count, same_token: same as f64 / tokens.max(1) as f64 }
}

#[cfg(test)]
mod tests;
