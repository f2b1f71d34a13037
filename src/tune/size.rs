//! What a tuning method trains on a base of a given shape, without building it: how many numbers, and
//! from which part of the decoder upwards.

use super::{AdapterConfig, Arrangement, LoraConfig, Place, TuningMethod};
use crate::models::{DecoderConfig, Projection};

impl TuningMethod {
    /// How many numbers train on this base.
    pub fn trained_values(&self, base: &DecoderConfig) -> u64 {
        let (layers, hidden) = (base.layers as u64, base.hidden_size as u64);
        let keys = (base.kv_heads * base.head_dim) as u64;
        match self {
            Self::Lora(config) | Self::Qlora(config) => {
                let rank = config.rank as u64;
                let one = |projection| {
                    let (outputs, inputs) = base.sizes(projection);
                    let lengths = if config.magnitudes { outputs as u64 } else { 0 };
                    rank * (outputs + inputs) as u64 + lengths
                };
                layers * lora_targets(config, base).map(one).sum::<u64>()
            }
            Self::Adapter(config) => {
                let width = config.width(base.hidden_size) as u64;
                layers * bottlenecks(config) * (2 * width * hidden + width + hidden)
            }
            Self::Prefix(config) => {
                let tokens = config.tokens as u64;
                match config.projection {
                    None => layers * tokens * 2 * keys,
                    Some(inner) => {
                        let inner = if inner == 0 { hidden } else { inner as u64 };
                        tokens * keys + inner * (keys + 1) + layers * 2 * keys * (inner + 1)
                    }
                }
            }
            Self::Prompt(config) => config.tokens as u64 * hidden,
            Self::LlamaAdapter(config) => config.layers_of(base) as u64 * (config.length as u64 * hidden + 1),
            Self::Head => base.vocab_size as u64 * hidden,
            Self::Full => base.weight_counts().total(),
        }
    }

    /// The lowest part of the decoder that holds something that trains.
    pub fn lowest(&self, base: &DecoderConfig) -> Place {
        match self {
            Self::Full | Self::Prompt(_) => Place::Embedding,
            Self::Head => Place::Top,
            Self::LlamaAdapter(config) => Place::Layer(base.layers.saturating_sub(config.layers_of(base))),
            Self::Lora(_) | Self::Qlora(_) | Self::Adapter(_) | Self::Prefix(_) => Place::Layer(0),
        }
    }

    /// Layers that gradients go through: from the lowest one with something that trains upwards.
    pub fn trained_layers(&self, base: &DecoderConfig) -> usize {
        match self.lowest(base) {
            Place::Embedding => base.layers,
            Place::Layer(layer) => base.layers - layer,
            Place::Top => 0,
        }
    }
}

/// The maps of a layer that a LoRA tunes on this base.
fn lora_targets<'a>(config: &'a LoraConfig, base: &DecoderConfig) -> impl Iterator<Item = Projection> + 'a {
    base.projections().iter().copied().filter(|projection| config.targets.contains(projection))
}

/// Bottlenecks in every layer.
fn bottlenecks(config: &AdapterConfig) -> u64 {
    if config.arrangement == Arrangement::Houlsby { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::json;

    use super::*;
    use crate::models::Decoder;
    use crate::tune::{LlamaAdapterConfig, PrefixConfig, PromptConfig, VirtualTokens};

    #[test]
    fn the_counts_are_those_of_every_method_when_it_is_built() {
        let file = json!({"model_type": "llama", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 20,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": true});
        let base = DecoderConfig::parse(&file.to_string()).unwrap();
        let begin = VirtualTokens::Random;
        let prefix = |projection| TuningMethod::Prefix(PrefixConfig { tokens: 5, begin: begin.clone(), projection });
        let lora = LoraConfig { rank: 3, ..Default::default() };
        let methods = [
            TuningMethod::Lora(lora.clone()),
            TuningMethod::Lora(LoraConfig { targets: vec![Projection::Query, Projection::Down], ..lora.clone() }),
            TuningMethod::Qlora(LoraConfig { magnitudes: true, ..lora }),
            TuningMethod::Adapter(AdapterConfig::of(Arrangement::Houlsby)),
            TuningMethod::Adapter(AdapterConfig::of(Arrangement::Parallel)),
            prefix(None),
            prefix(Some(0)),
            prefix(Some(7)),
            TuningMethod::Prompt(PromptConfig { tokens: 4, begin: begin.clone() }),
            TuningMethod::LlamaAdapter(LlamaAdapterConfig { length: 4, layers: Some(2) }),
            TuningMethod::Head,
            TuningMethod::Full,
        ];
        for method in methods {
            let decoder = Decoder::random(base.clone(), 1, &Device::Cpu, method.form()).unwrap();
            let built = method.build(&decoder, None, 1).unwrap();
            let held: usize = built.trainables().iter().map(|one| one.var.elem_count()).sum();
            assert_eq!(method.trained_values(&base), held as u64, "{method:?}");
            assert_eq!(built.trainables().iter().map(|one| one.place).min(), Some(method.lowest(&base)), "{method:?}");
        }
    }
}
