//! How many numbers a base model consists of, from its configuration alone: what has to be known before
//! anything is read.

use super::DecoderConfig;
use crate::models::Projection;
use crate::models::limits::MAX_WEIGHTS;

/// Values in the weights of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightCounts {
    /// The embedding table; the head as well where they are tied.
    pub embedding: u64,
    /// A head of its own; 0 where it is the embedding.
    pub head: u64,
    /// The linear maps of all layers.
    pub maps: u64,
    /// Norms and biases.
    pub rest: u64,
    /// The largest linear map of a layer.
    pub largest_map: u64,
}

impl WeightCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.embedding + self.head + self.maps + self.rest
    }
}

impl DecoderConfig {
    /// Whether a linear map has a bias.
    pub(in crate::models) fn biased(&self, projection: Projection) -> bool {
        match projection {
            Projection::Query | Projection::Key | Projection::Value | Projection::QueryKeyValue => self.qkv_bias,
            Projection::Output => self.output_bias,
            Projection::Gate | Projection::Up | Projection::GateUp | Projection::Down => self.mlp_bias,
        }
    }

    /// Values in the linear maps of one layer.
    pub fn layer_weights(&self) -> usize {
        let size = |projection| {
            let (outputs, inputs) = self.sizes(projection);
            outputs * inputs
        };
        self.projections().iter().copied().map(size).sum()
    }

    /// Whether the model has as many weights as one may have; every limit of a size alone allows far more.
    pub(super) fn check_totals(&self) -> std::result::Result<(), String> {
        let product = |sizes: (usize, usize)| (sizes.0 as u64).checked_mul(sizes.1 as u64);
        let layer = self.projections().iter().try_fold(0u64, |sum, one| sum.checked_add(product(self.sizes(*one))?));
        let total = layer
            .and_then(|layer| layer.checked_mul(self.layers as u64))
            .and_then(|maps| maps.checked_add(product((2 * self.vocab_size, self.hidden_size))?));
        match total {
            Some(total) if total <= MAX_WEIGHTS => Ok(()),
            total => Err(format!(
                "its sizes multiply to {} weights; {MAX_WEIGHTS} are the most",
                total.map_or_else(|| "more than 2^64".into(), |total| total.to_string())
            )),
        }
    }

    /// Counts the weights.
    pub fn weight_counts(&self) -> WeightCounts {
        let (layers, hidden) = (self.layers as u64, self.hidden_size as u64);
        let table = self.vocab_size as u64 * hidden;
        let (mut biases, mut largest_map) = (0, 0);
        for projection in self.projections().iter().copied() {
            let (outputs, inputs) = self.sizes(projection);
            largest_map = (outputs as u64 * inputs as u64).max(largest_map);
            biases += if self.biased(projection) { outputs as u64 } else { 0 };
        }
        let norms = if self.post_norms { 4 * hidden } else { 2 * hidden };
        let head_norms = if self.qk_norm() { 2 * self.head_dim as u64 } else { 0 };
        WeightCounts {
            embedding: table,
            head: if self.tied { 0 } else { table },
            maps: layers * self.layer_weights() as u64,
            rest: layers * (norms + head_norms + biases) + hidden,
            largest_map,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::models::{Decoder, Form};

    #[test]
    fn the_counts_of_every_family_are_those_of_a_model_in_memory() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models");
        let mut seen = 0;
        for entry in std::fs::read_dir(fixtures).unwrap() {
            let Ok(config) = DecoderConfig::read(&entry.unwrap().path()) else { continue };
            let (counts, class) = (config.weight_counts(), config.architecture.class());
            let decoder = Decoder::random(config, 1, &Device::Cpu, Form::Frozen).unwrap();
            let held: usize = decoder.named_weights().iter().map(|(_, tensor)| tensor.elem_count()).sum();
            assert_eq!(counts.total(), held as u64, "{class}");
            seen += 1;
        }
        assert!(seen >= 8, "{seen} models");
    }
}
