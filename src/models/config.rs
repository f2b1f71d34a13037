//! What a decoder looks like, read from a Hugging Face `config.json`. Settings that would change
//! the numbers and that we do not implement are refused by name, never ignored.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::quantized;
use super::tuning::Projection;
use crate::error::{Error, Result};

/// The model families the decoder runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2, 3, 3.1, 3.2 and the many models of the same form.
    Llama,
    /// Mistral: Llama with a sliding attention window in its first release.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on the query, key and value projections.
    Qwen2,
    /// Qwen3: query and key are normalised per head; no biases.
    Qwen3,
}

impl Architecture {
    /// Every family, in the order they are listed to a user.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The class name in `config.json`'s `architectures`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// How rotary frequencies are stretched beyond the length of pre-training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor`.
    Linear {
        /// How many times longer the context is.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// How many times longer the context is.
        factor: f32,
        /// Wavelengths above `original / low` are divided by `factor`.
        low_freq_factor: f32,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f32,
        /// Context length of pre-training, in tokens.
        original: usize,
    },
}

/// The shape of a decoder and the constants it computes with.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family, which also names the class in a saved `config.json`.
    pub architecture: Architecture,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// How many layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Width of one head; not always `hidden_size / heads`.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How rotary frequencies are stretched, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// The longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// For each layer, how many tokens back (itself included) a token sees; all when `None`.
    pub windows: Vec<Option<usize>>,
    /// Query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub output_bias: bool,
    /// The MLP's projections have biases.
    pub mlp_bias: bool,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Standard deviation of a new model's weights.
    pub initializer_range: f64,
    /// First token of a text, as the model's configuration names it.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text, as the model's configuration names them.
    pub eos_token_ids: Vec<u32>,
    /// The layers' maps are stored in NF4.
    pub nf4: bool,
}

/// `config.json` as it stands in the file; every release of transformers wrote a little differently.
#[derive(Deserialize)]
struct File {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    initializer_range: Option<f64>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    max_position_embeddings: Option<usize>,
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    attention_bias: Option<bool>,
    #[serde(default)]
    mlp_bias: bool,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    partial_rotary_factor: Option<f32>,
    quantization_config: Option<Value>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

/// `rope_scaling` of transformers 4, `rope_parameters` of transformers 5.
#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f32>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
}

/// A token id, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl DecoderConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// When the file is missing or not JSON, or asks for something the decoder cannot do; the
    /// message names the setting.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|cause| Error::validation(format!("cannot read {}: {cause}", path.display())))?;
        Self::parse(&text)
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`DecoderConfig::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)
            .map_err(|cause| Error::validation(format!("config.json is not valid JSON: {cause}")))?;
        // Named first: a foreign architecture often lacks the fields below, and their absence would hide the reason.
        let architecture = architecture(&value)?;
        let file: File =
            serde_json::from_value(value).map_err(|cause| Error::validation(format!("config.json: {cause}")))?;
        file.checked(architecture)
    }

    /// What to write as `config.json`, readable by transformers 4 and 5.
    pub fn to_json(&self) -> Value {
        let mut file = json!({
            "architectures": [self.architecture.class()],
            "model_type": self.architecture.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_positions,
            "attention_bias": self.qkv_bias,
            "mlp_bias": self.mlp_bias,
            "attention_dropout": 0.0,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": self.tied,
            "use_cache": true,
        });
        let window = self.windows.iter().find_map(|window| *window);
        file["sliding_window"] = json!(window);
        if matches!(self.architecture, Architecture::Qwen2 | Architecture::Qwen3) {
            file["use_sliding_window"] = json!(window.is_some());
            file["max_window_layers"] = json!(self.windows.iter().position(Option::is_some).unwrap_or(self.layers));
        }
        file["rope_scaling"] = match self.rope_scaling {
            None => Value::Null,
            Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
            Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original }) => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original,
            }),
        };
        if let Some(id) = self.bos_token_id {
            file["bos_token_id"] = json!(id);
        }
        match self.eos_token_ids.as_slice() {
            [] => {}
            [id] => file["eos_token_id"] = json!(id),
            ids => file["eos_token_id"] = json!(ids),
        }
        file
    }

    /// Outputs and inputs of a linear map: its weight is `[outputs, inputs]`.
    pub fn sizes(&self, projection: Projection) -> (usize, usize) {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match projection {
            Projection::Query => (queries, self.hidden_size),
            Projection::Key | Projection::Value => (keys, self.hidden_size),
            Projection::Output => (self.hidden_size, queries),
            Projection::Gate | Projection::Up => (self.intermediate_size, self.hidden_size),
            Projection::Down => (self.hidden_size, self.intermediate_size),
        }
    }

    /// Query and key are normalised per head before the rotation.
    pub fn qk_norm(&self) -> bool {
        self.architecture == Architecture::Qwen3
    }
}

fn architecture(file: &Value) -> Result<Architecture> {
    let named = file["architectures"][0].as_str().or(file["model_type"].as_str());
    let Some(named) = named else {
        return Err(Error::validation("config.json names neither architectures nor model_type"));
    };
    let found = Architecture::ALL.into_iter().find(|one| one.class() == named || one.model_type() == named);
    found.ok_or_else(|| {
        let supported = Architecture::ALL.map(Architecture::class).join(", ");
        Error::validation(format!("the architecture {named} is not supported; supported are {supported}"))
    })
}

fn unsupported(what: impl std::fmt::Display) -> Error {
    Error::validation(format!("config.json: {what} is not supported"))
}

impl File {
    fn checked(self, architecture: Architecture) -> Result<DecoderConfig> {
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(unsupported(format!("hidden_act {act:?} (only \"silu\")")));
        }
        if let Some(what) = self.quantization_config.as_ref().and_then(quantized::unreadable) {
            return Err(unsupported(format!(
                "a checkpoint with quantization_config {what}; use the unquantized model, or one in bitsandbytes' NF4 \
                 with double quantization"
            )));
        }
        if let Some(factor) = self.partial_rotary_factor.filter(|factor| *factor != 1.0) {
            return Err(unsupported(format!("partial_rotary_factor {factor}")));
        }
        for (name, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
        ] {
            if size == 0 {
                return Err(Error::validation(format!("config.json: {name} is 0")));
            }
        }
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::validation(format!(
                "config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if self.hidden_size.is_multiple_of(heads) => self.hidden_size / heads,
            None => {
                return Err(Error::validation(format!(
                    "config.json: hidden_size {} is not a multiple of num_attention_heads {heads}",
                    self.hidden_size
                )));
            }
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(Error::validation(format!("config.json: head_dim {head_dim} must be even and positive")));
        }
        let windows = self.windows(architecture)?;
        let (rope_theta, rope_scaling) = self.rope()?;
        let attention_bias = self.attention_bias.unwrap_or(false);
        Ok(DecoderConfig {
            architecture,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            initializer_range: self.initializer_range.unwrap_or(0.02),
            rope_theta,
            rope_scaling,
            max_positions: self.max_position_embeddings.unwrap_or(2048),
            windows,
            qkv_bias: architecture == Architecture::Qwen2 || attention_bias,
            // Qwen2 has no bias on the output projection whatever the file says; the others follow attention_bias.
            output_bias: architecture != Architecture::Qwen2 && attention_bias,
            mlp_bias: self.mlp_bias,
            tied: self.tie_word_embeddings.unwrap_or(false),
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default(),
            nf4: self.quantization_config.is_some(),
        })
    }

    fn windows(&self, architecture: Architecture) -> Result<Vec<Option<usize>>> {
        let layers = self.num_hidden_layers;
        match architecture {
            Architecture::Llama => Ok(vec![None; layers]),
            Architecture::Mistral => Ok(vec![self.sliding_window; layers]),
            Architecture::Qwen2 | Architecture::Qwen3 => {
                let window = self.sliding_window.filter(|_| self.use_sliding_window);
                if let Some(types) = &self.layer_types {
                    if types.len() != layers {
                        return Err(Error::validation(format!(
                            "config.json: layer_types has {} entries for {layers} layers",
                            types.len()
                        )));
                    }
                    return types
                        .iter()
                        .map(|kind| match kind.as_str() {
                            "full_attention" => Ok(None),
                            "sliding_attention" => Ok(window),
                            other => Err(unsupported(format!("layer type {other:?}"))),
                        })
                        .collect();
                }
                // transformers' default for both families.
                let first = self.max_window_layers.unwrap_or(28);
                Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
            }
        }
    }

    fn rope(&self) -> Result<(f32, Option<RopeScaling>)> {
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = rope.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let Some(rope) = rope else { return Ok((theta, None)) };
        let need = |name: &str, value: Option<f32>| {
            value
                .filter(|value| *value > 0.0)
                .ok_or_else(|| Error::validation(format!("config.json: rope scaling needs a positive {name}")))
        };
        let scaling = match rope.rope_type.as_deref().unwrap_or("default") {
            "default" => None,
            "linear" => Some(RopeScaling::Linear { factor: need("factor", rope.factor)? }),
            "llama3" => Some(RopeScaling::Llama3 {
                factor: need("factor", rope.factor)?,
                low_freq_factor: need("low_freq_factor", rope.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", rope.high_freq_factor)?,
                original: rope.original_max_position_embeddings.ok_or_else(|| {
                    Error::validation("config.json: llama3 rope scaling needs original_max_position_embeddings")
                })?,
            }),
            other => return Err(unsupported(format!("rope scaling {other:?} (default, linear and llama3 are)"))),
        };
        Ok((theta, scaling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal(extra: Value) -> Value {
        let mut file = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        });
        for (name, value) in extra.as_object().unwrap() {
            file[name] = value.clone();
        }
        file
    }

    fn parse(extra: Value) -> Result<DecoderConfig> {
        DecoderConfig::parse(&minimal(extra).to_string())
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        for extra in [
            json!({}),
            json!({"rope_scaling": rope, "rope_theta": 5e5, "eos_token_id": [1, 2], "bos_token_id": 0}),
            json!({"architectures": ["MistralForCausalLM"], "sliding_window": 8}),
            json!({"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": true, "eos_token_id": 3}),
            json!({"architectures": ["Qwen3ForCausalLM"], "head_dim": 8, "sliding_window": 4,
                "use_sliding_window": true, "max_window_layers": 1}),
        ] {
            let config = parse(extra).unwrap();
            assert_eq!(DecoderConfig::parse(&config.to_json().to_string()).unwrap(), config);
        }
    }

    #[test]
    fn rope_parameters_of_transformers_5_mean_the_same_as_the_older_fields() {
        let old = parse(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
        let new = parse(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}})).unwrap();
        assert_eq!(old, new);
    }

    #[test]
    fn each_family_gets_its_windows_and_biases() {
        let qwen2 = parse(json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 4096})).unwrap();
        assert_eq!((qwen2.windows, qwen2.qkv_bias, qwen2.output_bias), (vec![None, None], true, false));
        let mistral = parse(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 6})).unwrap();
        assert_eq!((mistral.windows, mistral.qkv_bias), (vec![Some(6), Some(6)], false));
        let llama = parse(json!({"attention_bias": true})).unwrap();
        assert!(llama.qkv_bias && llama.output_bias && llama.head_dim == 4);
        let sliding =
            parse(json!({"architectures": ["Qwen3ForCausalLM"], "sliding_window": 4, "use_sliding_window": true,
            "layer_types": ["full_attention", "sliding_attention"]}));
        assert_eq!(sliding.unwrap().windows, [None, Some(4)]);
    }

    #[test]
    fn what_the_decoder_cannot_do_is_refused_by_name() {
        for (extra, named) in [
            (json!({"architectures": ["GPT2LMHeadModel"]}), "GPT2LMHeadModel is not supported; supported are Llama"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "\"yarn\""),
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"quantization_config": {"quant_method": "awq"}}), "quantization_config"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads 3"),
            (json!({"hidden_size": 18}), "hidden_size 18"),
            (json!({"head_dim": 5}), "head_dim 5"),
            (json!({"vocab_size": "many"}), "config.json"),
            (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
        ] {
            let error = parse(extra).unwrap_err();
            assert!(error.message().contains(named), "{}", error.message());
        }
        assert!(DecoderConfig::parse("{}").unwrap_err().message().contains("model_type"));
    }
}
