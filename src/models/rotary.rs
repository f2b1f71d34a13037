//! Rotary position embedding: the cosines and sines that turn query and key by their position.
//! Frequencies and angles are computed in f32 as the reference implementation does (transformers,
//! `modeling_rope_utils.py`), so that long contexts agree with it digit by digit.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::config::{DecoderConfig, RopeScaling};
use crate::error::Result;

/// The distinct rotaries of one model: most have one, models whose windowed layers turn by a base of
/// their own have two.
#[derive(Debug, Clone)]
pub(super) struct Rotaries {
    distinct: Vec<Rotary>,
    /// For each layer, which of them turns it, if any.
    of_layers: Vec<Option<usize>>,
}

impl Rotaries {
    pub(super) fn new(config: &DecoderConfig) -> Self {
        let mut ropes = Vec::new();
        let of_layers = (0..config.layers)
            .map(|layer| {
                let rope = config.rope(layer)?;
                let place = ropes.iter().position(|one| *one == rope);
                Some(place.unwrap_or_else(|| {
                    ropes.push(rope);
                    ropes.len() - 1
                }))
            })
            .collect();
        let distinct =
            ropes.into_iter().map(|(theta, scaling)| Rotary::new(theta, scaling, config.rotary_dim())).collect();
        Self { distinct, of_layers }
    }

    /// Which pair of angles turns a layer, if any.
    pub(super) fn of_layer(&self, layer: usize) -> Option<usize> {
        self.of_layers[layer]
    }

    /// For each distinct rotary the cosines and sines of the positions of some records, each
    /// `[positions, rotary_dim / 2]`. A record's positions end where it ends so far.
    pub(super) fn at(&self, records: &[Range<usize>], device: &Device) -> Result<Vec<(Tensor, Tensor)>> {
        self.distinct.iter().map(|rotary| rotary.at(records, device)).collect()
    }
}

/// Frequencies, in radians per token, and by how much their cosines and sines are stretched.
#[derive(Debug, Clone)]
struct Rotary {
    frequencies: Vec<f32>,
    /// Frequencies of records of more tokens than this.
    long: Option<(usize, Vec<f32>)>,
    stretch: f32,
}

impl Rotary {
    fn new(theta: f32, scaling: Option<&RopeScaling>, dim: usize) -> Self {
        // θ^(2i/dim), the inverse of the unscaled frequencies.
        let powers = (0..dim / 2).map(|i| theta.powf((2 * i) as f32 / dim as f32));
        let divided = |factors: &[f32]| powers.clone().zip(factors).map(|(power, f)| 1.0 / (f * power)).collect();
        match scaling {
            Some(RopeScaling::LongRope { short, long, original, attention_factor }) => Self {
                frequencies: divided(short),
                long: Some((*original, divided(long))),
                stretch: *attention_factor as f32,
            },
            scaling => {
                let frequencies = powers.map(|power| scaled(1.0 / power, scaling)).collect();
                Self { frequencies, long: None, stretch: 1.0 }
            }
        }
    }

    fn at(&self, records: &[Range<usize>], device: &Device) -> Result<(Tensor, Tensor)> {
        let (tokens, width): (usize, usize) = (records.iter().map(Range::len).sum(), self.frequencies.len());
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        cos.reserve_exact(tokens * width);
        sin.reserve_exact(tokens * width);
        for positions in records {
            let frequencies = match &self.long {
                Some((original, long)) if positions.end > *original => long,
                _ => &self.frequencies,
            };
            for position in positions.clone() {
                for frequency in frequencies {
                    let angle = position as f32 * frequency;
                    cos.push(angle.cos() * self.stretch);
                    sin.push(angle.sin() * self.stretch);
                }
            }
        }
        let shape = (tokens, width);
        Ok((Tensor::from_vec(cos, shape, device)?, Tensor::from_vec(sin, shape, device)?))
    }
}

fn scaled(frequency: f32, scaling: Option<&RopeScaling>) -> f32 {
    match scaling {
        // LongRoPE has a divisor for each frequency: they were applied where the frequencies are made.
        None | Some(RopeScaling::LongRope { .. }) => frequency,
        Some(RopeScaling::Linear { factor }) => frequency / factor,
        Some(&RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original }) => {
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
        let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192 };
        let scaling = Some(&scaling);
        assert_eq!(scaled(1.0, scaling), 1.0);
        assert_eq!(scaled(1e-5, scaling), 1e-5 / 8.0);
        let between = std::f32::consts::TAU / 4000.0;
        assert!((between / 8.0..between).contains(&scaled(between, scaling)));
    }

    #[test]
    fn longrope_chooses_its_factors_by_the_length_of_each_record() {
        let scaling = RopeScaling::LongRope { short: vec![1.0], long: vec![4.0], original: 3, attention_factor: 2.0 };
        let rotary = Rotary::new(10_000.0, Some(&scaling), 2);
        let sines = |records: &[Range<usize>]| rotary.at(records, &Device::Cpu).unwrap().1.flatten_all().unwrap();
        let (short, long) = (|at: f32| at.sin() * 2.0, |at: f32| (at / 4.0).sin() * 2.0);
        // The third is a record of which three tokens went before.
        assert_eq!(
            sines(&[0..3, 0..4, 3..4]).to_vec1::<f32>().unwrap(),
            [short(0.0), short(1.0), short(2.0), long(0.0), long(1.0), long(2.0), long(3.0), long(3.0)]
        );
    }
}
