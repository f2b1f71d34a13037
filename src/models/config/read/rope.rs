//! What decides the rotary frequencies: `rope_scaling` of transformers 4, `rope_parameters` of 5, and the
//! fields that older families kept beside them.

use serde::Deserialize;

use super::{File, unsupported, wrong};
use crate::error::Result;
use crate::models::config::{Architecture, DecoderConfig, RopeScaling};
use crate::models::limits::MAX_POSITIONS;

/// `rope_scaling` of transformers 4, `rope_parameters` of transformers 5.
#[derive(Deserialize)]
pub(super) struct Rope {
    rope_theta: Option<f32>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    attention_factor: Option<f64>,
    partial_rotary_factor: Option<f64>,
    /// Transformers 5 tells each kind of layer its own.
    full_attention: Option<Box<Self>>,
    sliding_attention: Option<Box<Self>>,
}

impl File {
    /// Fills in all that decides the rotary frequencies.
    pub(super) fn rope(&self, config: &mut DecoderConfig) -> Result<()> {
        let given = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let rope = given.map(|rope| rope.full_attention.as_deref().unwrap_or(rope));
        config.rope_theta = rope.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(config.rope_theta);
        if config.architecture == Architecture::Gemma3 {
            let local = given.and_then(|rope| rope.sliding_attention.as_ref());
            if let Some(kind) = local.and_then(|local| local.rope_type.as_deref()).filter(|kind| *kind != "default") {
                return Err(unsupported(format!("rope scaling {kind:?} of sliding layers")));
            }
            let theta = local.and_then(|local| local.rope_theta).or(self.rope_local_base_freq).unwrap_or(10_000.0);
            config.rope_local_theta = Some(theta);
        } else if given.is_some_and(|rope| rope.full_attention.is_some()) {
            return Err(unsupported("rope_parameters for each kind of layer"));
        }
        let partial = rope.and_then(|rope| rope.partial_rotary_factor).or(self.partial_rotary_factor).unwrap_or(1.0);
        if partial != 1.0 && config.architecture != Architecture::Phi3 {
            return Err(unsupported(format!("partial_rotary_factor {partial}")));
        }
        config.partial_rotary_factor = partial;
        let turned = config.rotary_dim();
        if turned == 0 || !turned.is_multiple_of(2) || turned > config.head_dim {
            let head_dim = config.head_dim;
            return Err(wrong(format!(
                "partial_rotary_factor {partial} turns {turned} of {head_dim} elements of a head"
            )));
        }
        config.rope_scaling = rope.map(|rope| self.scaling(rope, config)).transpose()?.flatten();
        Ok(())
    }

    fn scaling(&self, rope: &Rope, config: &DecoderConfig) -> Result<Option<RopeScaling>> {
        let need = |name: &str, value: Option<f32>| {
            value
                .filter(|value| *value > 0.0 && value.is_finite())
                .ok_or_else(|| wrong(format!("rope scaling needs a positive {name}")))
        };
        let kind = match rope.rope_type.as_deref().unwrap_or("default") {
            // What the first releases of Phi-3 called it.
            "su" | "yarn" if config.architecture == Architecture::Phi3 => "longrope",
            kind => kind,
        };
        Ok(match kind {
            "default" => None,
            "linear" => Some(RopeScaling::Linear { factor: need("factor", rope.factor)? }),
            "llama3" => Some(RopeScaling::Llama3 {
                factor: need("factor", rope.factor)?,
                low_freq_factor: need("low_freq_factor", rope.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", rope.high_freq_factor)?,
                original: rope
                    .original_max_position_embeddings
                    .filter(|original| (1..=MAX_POSITIONS).contains(original))
                    .ok_or_else(|| {
                        wrong(format!(
                            "llama3 rope scaling needs original_max_position_embeddings between 1 and {MAX_POSITIONS}"
                        ))
                    })?,
            }),
            "longrope" => Some(self.long_rope(rope, config)?),
            other => {
                return Err(unsupported(format!("rope scaling {other:?} (default, linear, llama3 and longrope are)")));
            }
        })
    }

    fn long_rope(&self, rope: &Rope, config: &DecoderConfig) -> Result<RopeScaling> {
        let count = config.rotary_dim() / 2;
        let list = |name: &str, given: &Option<Vec<f32>>| match given {
            Some(list) if list.len() == count && list.iter().all(|factor| *factor > 0.0 && factor.is_finite()) => {
                Ok(list.clone())
            }
            _ => Err(wrong(format!("longrope rope scaling needs a {name} of {count} positive numbers"))),
        };
        let phi3 = (config.architecture == Architecture::Phi3).then_some(4096);
        // transformers 4 looks for it beside rope_scaling only, 5 inside rope_parameters.
        let inside = self.rope_parameters.as_ref().and(rope.original_max_position_embeddings);
        let stated = self.original_max_position_embeddings.or(inside).or(phi3);
        let original = stated.unwrap_or(config.max_positions);
        if !(2..=MAX_POSITIONS).contains(&original) {
            return Err(wrong(format!(
                "original_max_position_embeddings {original} must be between 2 and {MAX_POSITIONS}"
            )));
        }
        // The ratio of the two lengths, where both are known, goes before the factor.
        let factor = match (stated, rope.factor) {
            (Some(original), _) => config.max_positions as f64 / original as f64,
            (None, factor) => f64::from(
                factor
                    .ok_or_else(|| wrong("longrope rope scaling needs original_max_position_embeddings or a factor"))?,
            ),
        };
        Ok(RopeScaling::LongRope {
            short: list("short_factor", &rope.short_factor)?,
            long: list("long_factor", &rope.long_factor)?,
            original,
            attention_factor: rope.attention_factor.unwrap_or_else(|| attention_factor(factor, original)),
        })
    }
}

/// By how much LongRoPE stretches cosines and sines where nothing is said.
pub(in crate::models::config) fn attention_factor(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}
