//! Rotary position embedding: the cosines and sines that turn query and key by their position.
//! Frequencies and angles are computed in f32 as the reference implementation does (transformers,
//! `modeling_rope_utils.py`), so that long contexts agree with it digit by digit.

use candle_core::{Device, Tensor};

use super::config::{DecoderConfig, RopeScaling};
use crate::error::Result;

/// The frequencies of one model: `head_dim / 2` of them, in radians per token.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    frequencies: Vec<f32>,
}

impl Rotary {
    pub(super) fn new(config: &DecoderConfig) -> Self {
        let dim = config.head_dim;
        let frequencies = (0..dim / 2)
            .map(|i| {
                let plain = 1.0 / config.rope_theta.powf((2 * i) as f32 / dim as f32);
                scaled(plain, config.rope_scaling)
            })
            .collect();
        Self { frequencies }
    }

    /// Cosines and sines, each `[positions, head_dim / 2]`.
    pub(super) fn at(&self, positions: &[usize], device: &Device) -> Result<(Tensor, Tensor)> {
        let width = self.frequencies.len();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        cos.reserve_exact(positions.len() * width);
        sin.reserve_exact(positions.len() * width);
        for position in positions {
            for frequency in &self.frequencies {
                let angle = *position as f32 * frequency;
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let shape = (positions.len(), width);
        Ok((Tensor::from_vec(cos, shape, device)?, Tensor::from_vec(sin, shape, device)?))
    }
}

fn scaled(frequency: f32, scaling: Option<RopeScaling>) -> f32 {
    match scaling {
        None => frequency,
        Some(RopeScaling::Linear { factor }) => frequency / factor,
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original }) => {
            let original = original as f32;
            let wavelength = std::f32::consts::TAU / frequency;
            if wavelength < original / high_freq_factor {
                frequency
            } else if wavelength > original / low_freq_factor {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_high_frequencies_divides_low_ones_and_blends_between() {
        let scaling =
            Some(RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192 });
        assert_eq!(scaled(1.0, scaling), 1.0);
        assert_eq!(scaled(1e-5, scaling), 1e-5 / 8.0);
        let between = std::f32::consts::TAU / 4000.0;
        assert!((between / 8.0..between).contains(&scaled(between, scaling)));
    }
}
