//! Shapes of published models by short names, for measurements: speed does not depend on the values of
//! weights, so random ones of the right shape do.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::DecoderConfig;

/// A named shape and the work that it is measured with.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What `--shape` calls it.
    pub name: &'static str,
    /// The published model that has it.
    pub model: &'static str,
    /// The method it is measured with unless another is asked for.
    pub method: &'static str,
    /// Hyperparameters of that measurement.
    pub hyper_parameters: &'static [(&'static str, &'static str)],
    /// Records of an optimizer step.
    pub batch: usize,
    /// Tokens of a record.
    pub tokens: usize,
    /// Layers, hidden, MLP, heads, key and value heads, width of a head, vocabulary.
    sizes: [usize; 7],
    tied: bool,
    rope_theta: f64,
}

/// All of them, smallest first.
pub const SHAPES: &[Shape] = &[
    Shape {
        name: "starter",
        model: "the starter model that ships with Tunesmith",
        method: "lora",
        hyper_parameters: &[],
        batch: 8,
        tokens: 128,
        sizes: [4, 128, 384, 4, 2, 64, 2048],
        tied: true,
        rope_theta: 500.0,
    },
    Shape {
        name: "cpu-135m",
        model: "SmolLM2-135M",
        method: "lora",
        hyper_parameters: &[("loraRank", "16")],
        batch: 4,
        tokens: 256,
        sizes: [30, 576, 1536, 9, 3, 64, 49_152],
        tied: true,
        rope_theta: 100_000.0,
    },
    Shape {
        name: "gpu-8b",
        model: "Llama-3-8B",
        method: "lora",
        hyper_parameters: &[("loraRank", "16"), ("loraAlpha", "32"), ("loraDropout", "0.1")],
        batch: 32,
        tokens: 4096,
        sizes: [32, 4096, 14_336, 32, 8, 128, 128_256],
        tied: false,
        rope_theta: 500_000.0,
    },
    Shape {
        name: "gpu-65b",
        model: "Llama-65B",
        method: "qlora",
        hyper_parameters: &[("loraRank", "64")],
        batch: 1,
        tokens: 512,
        sizes: [80, 8192, 22_016, 64, 64, 128, 32_000],
        tied: false,
        rope_theta: 10_000.0,
    },
];

impl Shape {
    /// The shape of that name.
    ///
    /// # Errors
    /// `Validation` that lists the names.
    pub fn named(name: &str) -> Result<&'static Self> {
        SHAPES.iter().find(|shape| shape.name == name).ok_or_else(|| {
            let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
            Error::validation(format!("there is no shape {name}; there are {}", names.join(", ")))
        })
    }

    /// The decoder's shape.
    ///
    /// # Errors
    /// Never, while the table above is right: a test reads every entry.
    pub fn config(&self) -> Result<DecoderConfig> {
        DecoderConfig::parse(&self.config_json().to_string())
    }

    /// As transformers writes it, so that a peer can be measured on the same shape.
    pub fn config_json(&self) -> Value {
        let [layers, hidden, mlp, heads, kv_heads, head, vocabulary] = self.sizes;
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head,
            "max_position_embeddings": 8192,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "initializer_range": 0.02,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Settings;

    #[test]
    fn every_shape_is_one_that_the_decoder_runs_with_settings_that_exist() {
        for shape in SHAPES {
            let config = shape.config().unwrap();
            let mut given = std::collections::BTreeMap::from([("tuningMethod".to_string(), shape.method.to_string())]);
            given.extend(shape.hyper_parameters.iter().map(|(name, value)| (name.to_string(), value.to_string())));
            let settings = Settings::parse(&given, &std::collections::BTreeMap::new()).unwrap();
            settings.method.check(&config).unwrap();
        }
        assert!(Shape::named("gpu-9t").unwrap_err().message().contains("cpu-135m"));
    }

    #[test]
    fn the_starter_shape_is_that_of_the_model_that_ships() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/starter");
        let (ships, shape) = (DecoderConfig::read(&dir).unwrap(), Shape::named("starter").unwrap().config().unwrap());
        let sizes = |c: &DecoderConfig| {
            (c.layers, c.hidden_size, c.intermediate_size, c.heads, c.kv_heads, c.head_dim, c.vocab_size, c.tied)
        };
        assert_eq!(sizes(&ships), sizes(&shape));
    }
}
