//! The logits of a model that is not loaded: one layer after the other is read, run and let go, and the embedding
//! and the head are read in strips. Slow for an answer, and the way to look at a model that does not fit, or beside
//! which another one lies in memory.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::config::DecoderConfig;
use super::decoder::{Form, dense, in_form, layer};
use super::packing::Packing;
use super::quantized::read;
use super::rotary::Rotaries;
use super::tuning::Tuning;
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::kernels::{self, Weight};

/// Numbers of the head that are in memory at a time.
const STRIP: usize = 1 << 22;

/// The logits of every token of some records, `[N, vocab]`, as [`Decoder::logits`](super::Decoder::logits) has them,
/// of the model in `dir` with a tuning that puts nothing in front of records.
///
/// # Errors
/// When the directory is no model, a token lies outside its vocabulary, or the tuning has virtual tokens.
pub fn layerwise_logits(
    dir: &Path,
    form: Form,
    tokens: &[u32],
    lengths: &[usize],
    tuning: &dyn Tuning,
) -> Result<Tensor> {
    let config = DecoderConfig::read(dir)?;
    let weights = Weights::open(dir)?;
    if tuning.virtual_tokens() > 0 {
        return Err(Error::internal(anyhow::anyhow!("virtual tokens have no place in a pass layer by layer")));
    }
    let mut take = |name: String, shape: &[usize], map: bool| -> Result<Weight> {
        match read(&weights, &name, shape)? {
            Some(quantized) if config.nf4 => Ok(Weight::Nf4(Arc::new(quantized))),
            _ => in_form(form, map, &name, shape, weights.get(&name, shape, &Device::Cpu)?.into()),
        }
    };
    let rotaries = Rotaries::new(&config);
    let packing = Packing::records(&rotaries, lengths, tuning, &Device::Cpu)?;

    let mut x = (embedded(&weights, &config, tokens)? * config.embedding_scale)?;
    for index in 0..config.layers {
        let one = layer(&config, index, rotaries.of_layer(index), &mut take)?;
        x = one.forward(&config, &x, &packing, tuning, None)?.detach();
    }
    let norm = dense(&mut take, "model.norm.weight", &[config.hidden_size])?;
    let states = kernels::rms_norm(&x, &norm, config.norm_eps, config.norm_offset)?;
    let logits = match tuning.head() {
        Some(head) => Weight::from(head).apply(&states, None)?,
        None => {
            let name = if config.tied { EMBEDDING } else { HEAD };
            let rows = (STRIP / config.hidden_size).max(1);
            let strips = (0..config.vocab_size).step_by(rows).map(|first| {
                let count = rows.min(config.vocab_size - first);
                let values = weights.strip(name, first * config.hidden_size..(first + count) * config.hidden_size)?;
                let strip = Tensor::from_vec(values, (count, config.hidden_size), &Device::Cpu)?;
                Ok(kernels::linear(&states, &strip, None)?.detach())
            });
            Tensor::cat(&strips.collect::<Result<Vec<_>>>()?, 1)?
        }
    };
    Ok(match config.final_softcap {
        Some(cap) => ((logits / cap)?.tanh()? * cap)?,
        None => logits,
    })
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The rows of the embedding that belong to the tokens.
fn embedded(weights: &Weights, config: &DecoderConfig, tokens: &[u32]) -> Result<Tensor> {
    let width = config.hidden_size;
    let mut rows = Vec::with_capacity(tokens.len() * width);
    for token in tokens {
        let row = *token as usize;
        rows.extend(weights.strip(EMBEDDING, row * width..(row + 1) * width)?);
    }
    Ok(Tensor::from_vec(rows, (tokens.len(), width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Decoder, Frozen};

    #[test]
    fn they_are_the_logits_of_the_loaded_model_for_every_family_also_in_4_bits() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models");
        let (tokens, lengths) = ([5, 17, 200, 33, 90, 250, 1, 99], [5, 3]);
        for family in ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3"] {
            for form in [Form::Frozen, Form::Nf4] {
                let dir = fixtures.join(family);
                let whole = Decoder::load(&dir, &Device::Cpu, form).unwrap();
                let whole = whole.logits(&tokens, &lengths, &Frozen).unwrap();
                let streamed = layerwise_logits(&dir, form, &tokens, &lengths, &Frozen).unwrap();
                let apart = (whole - streamed).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(apart < 1e-5, "{family} {form:?}: {apart}");
            }
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama");
        assert!(layerwise_logits(&dir, Form::Frozen, &[300], &[1], &Frozen).is_err());
    }
}
