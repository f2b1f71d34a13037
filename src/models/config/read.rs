//! From the text of a `config.json` to a [`DecoderConfig`]: every release of transformers wrote a
//! little differently, and what a file leaves out has its family's default.

mod rope;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use self::rope::Rope;
pub(super) use self::rope::attention_factor;
use super::super::quantized;
use super::{Architecture, DecoderConfig};
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::models::limits::{self, at_most};

/// `config.json` as it stands in the file. Where no value and no mention mean different things, the
/// outer option is the mention.
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
    rope_local_base_freq: Option<f32>,
    original_max_position_embeddings: Option<usize>,
    partial_rotary_factor: Option<f64>,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    max_position_embeddings: Option<usize>,
    #[serde(default, deserialize_with = "mentioned")]
    sliding_window: Option<Option<usize>>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    attention_bias: Option<bool>,
    #[serde(default)]
    mlp_bias: bool,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "mentioned")]
    attn_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "mentioned")]
    final_logit_softcapping: Option<Option<f64>>,
    use_bidirectional_attention: Option<bool>,
    quantization_config: Option<Value>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

fn mentioned<'de, D: Deserializer<'de>, T: Deserialize<'de>>(file: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(file).map(Some)
}

/// A token id, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(in crate::models) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    pub(in crate::models) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

/// What transformers takes for a family where a file is silent.
struct Defaults {
    /// Key and value heads, and the width of a head; as the other sizes give them when `None`.
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    norm_eps: f64,
    rope_theta: f32,
    max_positions: usize,
    tied: bool,
}

fn defaults(architecture: Architecture) -> Defaults {
    let plain = Defaults {
        kv_heads: None,
        head_dim: None,
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        max_positions: 2048,
        tied: false,
    };
    match architecture {
        Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 | Architecture::Qwen3 => plain,
        Architecture::Gemma2 => {
            Defaults { kv_heads: Some(4), head_dim: Some(256), max_positions: 8192, tied: true, ..plain }
        }
        Architecture::Gemma3 => Defaults { rope_theta: 1e6, max_positions: 131_072, ..defaults(Architecture::Gemma2) },
        Architecture::Phi3 => Defaults { norm_eps: 1e-5, max_positions: 4096, ..plain },
        Architecture::SmolLm3 => {
            Defaults { kv_heads: Some(4), rope_theta: 2e6, max_positions: 32_768, tied: true, ..plain }
        }
    }
}

pub(super) fn parse(text: &str) -> Result<DecoderConfig> {
    if text.len() as u64 > limits::max_bytes("config.json") {
        return Err(wrong(limits::too_large(limits::max_bytes("config.json"))));
    }
    let value: Value = serde_json::from_str(text)
        .map_err(|cause| Error::validation(format!("config.json is not valid JSON: {cause}")))?;
    // Named first: a foreign architecture often lacks the fields below, and their absence would hide the reason.
    let architecture = architecture(&value)?;
    let file: File = serde_json::from_value(value).map_err(wrong)?;
    let config = file.checked(architecture)?;
    config.check_totals().map_err(wrong)?;
    Ok(config)
}

fn architecture(file: &Value) -> Result<Architecture> {
    let named = file["architectures"][0].as_str().or(file["model_type"].as_str());
    let Some(named) = named else {
        return Err(Error::validation("config.json names neither architectures nor model_type"));
    };
    let found = Architecture::ALL.into_iter().find(|one| one.class() == named || one.model_type() == named);
    found.ok_or_else(|| {
        let supported = Architecture::ALL.map(Architecture::class).join(", ");
        let named = limits::shortened(named.to_string());
        Error::validation(format!("the architecture {named} is not supported; supported are {supported}"))
    })
}

/// Holds the constants to what the decoder can compute with, and the windows to what it can attend with.
fn check_numbers(config: &DecoderConfig) -> Result<()> {
    let local = config.rope_local_theta.unwrap_or(1.0);
    for (name, number) in [
        ("query_pre_attn_scalar", config.query_pre_attn_scalar),
        ("rope_theta", f64::from(config.rope_theta)),
        ("rope_local_base_freq", f64::from(local)),
    ] {
        if !(number.is_finite() && number > 0.0) {
            return Err(wrong(format!("{name} {number} must be positive, and finite as an f32")));
        }
    }
    for (name, number) in [("rms_norm_eps", config.norm_eps), ("initializer_range", config.initializer_range)] {
        if !(number.is_finite() && number >= 0.0) {
            return Err(wrong(format!("{name} {number} must be a finite number of at least 0")));
        }
    }
    if config.windows.contains(&Some(0)) {
        return Err(wrong("sliding_window is 0, which hides every token"));
    }
    Ok(())
}

fn unsupported(what: impl std::fmt::Display) -> Error {
    wrong(format!("{what} is not supported"))
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::validation(limits::shortened(format!("config.json: {what}")))
}

impl File {
    fn checked(self, architecture: Architecture) -> Result<DecoderConfig> {
        if let Some(what) = self.quantization_config.as_ref().and_then(quantized::unreadable) {
            return Err(unsupported(format!(
                "a checkpoint with quantization_config {what}; use the unquantized model, or one in bitsandbytes' NF4 \
                 with double quantization"
            )));
        }
        if self.use_bidirectional_attention == Some(true) {
            return Err(unsupported("use_bidirectional_attention"));
        }
        let defaults = defaults(architecture);
        self.check_sizes(&defaults)?;
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.or(defaults.kv_heads).unwrap_or(heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(wrong(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        let head_dim = match self.head_dim.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if self.hidden_size.is_multiple_of(heads) => self.hidden_size / heads,
            None => {
                return Err(wrong(format!(
                    "hidden_size {} is not a multiple of num_attention_heads {heads}",
                    self.hidden_size
                )));
            }
        };
        at_most("head_dim", head_dim, limits::MAX_HEAD_DIM).map_err(wrong)?;
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(wrong(format!("head_dim {head_dim} must be even and positive")));
        }
        at_most("num_attention_heads × head_dim", heads * head_dim, limits::MAX_ATTENTION_WIDTH).map_err(wrong)?;
        let gemma = architecture.is_gemma();
        let rotated = self.rotated(architecture)?;
        // Phi-3 has no biases, and Qwen2 has its own, whatever the file says.
        let attention_bias = architecture != Architecture::Phi3 && self.attention_bias.unwrap_or(false);
        let mut config = DecoderConfig {
            architecture,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            activation: self.activation(architecture)?,
            embedding_scale: if gemma { (self.hidden_size as f64).sqrt() } else { 1.0 },
            norm_eps: self.rms_norm_eps.unwrap_or(defaults.norm_eps),
            norm_offset: if gemma { 1.0 } else { 0.0 },
            post_norms: gemma,
            query_pre_attn_scalar: if gemma { self.query_pre_attn_scalar.unwrap_or(256.0) } else { head_dim as f64 },
            attention_softcap: None,
            final_softcap: None,
            initializer_range: self.initializer_range.unwrap_or(0.02),
            rope_theta: defaults.rope_theta,
            rope_scaling: None,
            rope_local_theta: None,
            partial_rotary_factor: 1.0,
            windows: self.windows(architecture, &rotated)?,
            rotated,
            max_positions: self.max_position_embeddings.unwrap_or(defaults.max_positions),
            qkv_bias: architecture == Architecture::Qwen2 || attention_bias,
            // Qwen2 has no bias on the output projection whatever the file says; the others follow attention_bias.
            output_bias: architecture != Architecture::Qwen2 && attention_bias,
            mlp_bias: architecture != Architecture::Phi3 && self.mlp_bias,
            tied: self.tie_word_embeddings.unwrap_or(defaults.tied),
            bos_token_id: self.bos_token_id,
            eos_token_ids: Vec::new(),
            nf4: self.quantization_config.is_some(),
        };
        self.softcaps(&mut config)?;
        self.rope(&mut config)?;
        config.eos_token_ids = self.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default();
        at_most("the number of eos_token_id", config.eos_token_ids.len(), limits::MAX_END_TOKENS).map_err(wrong)?;
        check_numbers(&config)?;
        Ok(config)
    }

    /// Holds every size to its limits before anything is made of it.
    fn check_sizes(&self, defaults: &Defaults) -> Result<()> {
        let positions = self.max_position_embeddings.unwrap_or(defaults.max_positions);
        for (name, size, most) in [
            ("vocab_size", self.vocab_size, limits::MAX_VOCABULARY),
            ("hidden_size", self.hidden_size, limits::MAX_HIDDEN),
            ("intermediate_size", self.intermediate_size, limits::MAX_INTERMEDIATE),
            ("num_hidden_layers", self.num_hidden_layers, limits::MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, limits::MAX_HEADS),
            ("max_position_embeddings", positions, limits::MAX_POSITIONS),
        ] {
            if size == 0 {
                return Err(wrong(format!("{name} is 0")));
            }
            at_most(name, size, most).map_err(wrong)?;
        }
        let window = self.sliding_window.flatten().unwrap_or(1);
        at_most("sliding_window", window, limits::MAX_POSITIONS).map_err(wrong)
    }

    fn activation(&self, architecture: Architecture) -> Result<Activation> {
        let (field, named, only) = if architecture.is_gemma() {
            // hidden_act stands in the first files too, and transformers does not read it.
            ("hidden_activation", &self.hidden_activation, Activation::GeluTanh)
        } else {
            ("hidden_act", &self.hidden_act, Activation::Silu)
        };
        match named.as_deref().filter(|named| *named != only.name()) {
            Some(other) => Err(unsupported(format!("{field} {other:?} (only {:?})", only.name()))),
            None => Ok(only),
        }
    }

    fn softcaps(&self, config: &mut DecoderConfig) -> Result<()> {
        let gemma2 = config.architecture == Architecture::Gemma2;
        let cap = |name: &str, given: Option<Option<f64>>, default: f64| match given {
            Some(Some(cap)) if cap <= 0.0 => Err(wrong(format!("{name} {cap} must be positive"))),
            Some(cap) => Ok(cap),
            None => Ok(gemma2.then_some(default)),
        };
        let attention = cap("attn_logit_softcapping", self.attn_logit_softcapping, 50.0)?;
        let last = cap("final_logit_softcapping", self.final_logit_softcapping, 30.0)?;
        if let Some(cap) = attention.filter(|_| !gemma2) {
            return Err(unsupported(format!("attn_logit_softcapping {cap} outside Gemma 2")));
        }
        if let Some(cap) = last.filter(|_| !config.architecture.is_gemma()) {
            return Err(unsupported(format!("final_logit_softcapping {cap} outside Gemma")));
        }
        (config.attention_softcap, config.final_softcap) = (attention, last);
        Ok(())
    }

    /// The window of each layer.
    fn windows(&self, architecture: Architecture, rotated: &[bool]) -> Result<Vec<Option<usize>>> {
        let layers = self.num_hidden_layers;
        let window = self.sliding_window.flatten();
        let (window, default): (_, Vec<bool>) = match architecture {
            Architecture::Llama => return Ok(vec![None; layers]),
            Architecture::Mistral | Architecture::Phi3 => return Ok(vec![window; layers]),
            Architecture::Qwen2 | Architecture::Qwen3 => {
                // transformers' default for both families.
                let first = self.max_window_layers.unwrap_or(28);
                (window.filter(|_| self.use_sliding_window), (0..layers).map(|layer| layer >= first).collect())
            }
            Architecture::Gemma2 | Architecture::Gemma3 => {
                let pattern = match architecture {
                    Architecture::Gemma2 => 2,
                    _ => self.sliding_window_pattern.unwrap_or(6),
                };
                if pattern == 0 {
                    return Err(wrong("sliding_window_pattern is 0"));
                }
                let slides = (0..layers).map(|layer| !(layer + 1).is_multiple_of(pattern)).collect();
                (self.sliding_window.unwrap_or(Some(4096)), slides)
            }
            Architecture::SmolLm3 => {
                (window.filter(|_| self.use_sliding_window), rotated.iter().map(|rotated| !rotated).collect())
            }
        };
        let Some(types) = &self.layer_types else {
            return Ok(default.into_iter().map(|slides| window.filter(|_| slides)).collect());
        };
        if types.len() != layers {
            return Err(wrong(format!("layer_types has {} entries for {layers} layers", types.len())));
        }
        let window_of = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(None),
            // transformers' mask has the window of such a layer whatever use_sliding_window says.
            "sliding_attention" if architecture == Architecture::SmolLm3 && window.is_none() => {
                Err(unsupported("layer type \"sliding_attention\" with use_sliding_window false"))
            }
            "sliding_attention" => Ok(window),
            other => Err(unsupported(format!("layer type {other:?}"))),
        };
        types.iter().map(window_of).collect()
    }

    /// For each layer, whether it knows positions.
    fn rotated(&self, architecture: Architecture) -> Result<Vec<bool>> {
        let layers = self.num_hidden_layers;
        if architecture != Architecture::SmolLm3 {
            return Ok(vec![true; layers]);
        }
        match (&self.no_rope_layers, self.no_rope_layer_interval.unwrap_or(4)) {
            // transformers takes a longer list and reads its beginning.
            (Some(given), _) if given.len() >= layers => Ok(given.iter().take(layers).map(|uses| *uses != 0).collect()),
            (Some(given), _) => Err(wrong(format!("no_rope_layers has {} entries for {layers} layers", given.len()))),
            (None, 0) => Err(wrong("no_rope_layer_interval is 0")),
            (None, interval) => Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect()),
        }
    }
}
