//! From a [`DecoderConfig`] to the `config.json` that transformers reads back, for each family under
//! the names that its own configuration class has.

use serde_json::{Value, json};

use super::read::attention_factor;
use super::{Architecture, DecoderConfig, RopeScaling};

pub(super) fn to_json(config: &DecoderConfig) -> Value {
    let mut file = json!({
        "architectures": [config.architecture.class()],
        "model_type": config.architecture.model_type(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.activation.name(),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_positions,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "attention_dropout": 0.0,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tied,
        "use_cache": true,
    });
    let window = config.windows.iter().find_map(|window| *window);
    file["sliding_window"] = json!(window);
    file["rope_scaling"] = rope_scaling(config);
    match config.architecture {
        Architecture::Llama | Architecture::Mistral => {}
        Architecture::Qwen2 | Architecture::Qwen3 => {
            file["use_sliding_window"] = json!(window.is_some());
            file["max_window_layers"] = json!(config.windows.iter().position(Option::is_some).unwrap_or(config.layers));
            file["layer_types"] = layer_types(config);
        }
        Architecture::Gemma2 | Architecture::Gemma3 => {
            // transformers makes the mask of sliding layers even where there are none, and needs a width for it.
            file["sliding_window"] = json!(window.unwrap_or(config.max_positions));
            file["layer_types"] = layer_types(config);
            file["hidden_activation"] = json!(config.activation.name());
            file["query_pre_attn_scalar"] = json!(config.query_pre_attn_scalar);
            file["attn_logit_softcapping"] = json!(config.attention_softcap);
            file["final_logit_softcapping"] = json!(config.final_softcap);
            if let Some(theta) = config.rope_local_theta {
                file["rope_local_base_freq"] = json!(theta);
            }
        }
        Architecture::Phi3 => file["partial_rotary_factor"] = json!(config.partial_rotary_factor),
        Architecture::SmolLm3 => {
            file["use_sliding_window"] = json!(window.is_some());
            file["layer_types"] = layer_types(config);
            file["no_rope_layers"] = config.rotated.iter().map(|rotated| u8::from(*rotated)).collect();
        }
    }
    if let Some(RopeScaling::LongRope { original, .. }) = config.rope_scaling {
        file["original_max_position_embeddings"] = json!(original);
    }
    if config.architecture.is_gemma() || matches!(config.architecture, Architecture::Phi3 | Architecture::SmolLm3) {
        // These classes pad with a token of their own otherwise, which a small vocabulary does not have.
        file["pad_token_id"] = Value::Null;
    }
    if let Some(id) = config.bos_token_id {
        file["bos_token_id"] = json!(id);
    }
    match config.eos_token_ids.as_slice() {
        [] => {}
        [id] => file["eos_token_id"] = json!(id),
        ids => file["eos_token_id"] = json!(ids),
    }
    file
}

fn layer_types(config: &DecoderConfig) -> Value {
    let kind = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
    config.windows.iter().map(kind).collect()
}

fn rope_scaling(config: &DecoderConfig) -> Value {
    match &config.rope_scaling {
        None => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original }) => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original,
        }),
        Some(RopeScaling::LongRope { short, long, original, attention_factor: given }) => {
            // Phi-3's class in transformers 4 takes these three names and no other.
            let kind = if config.architecture == Architecture::Phi3 { "type" } else { "rope_type" };
            let mut scaling = json!({kind: "longrope", "short_factor": short, "long_factor": long});
            if *given != attention_factor(config.max_positions as f64 / *original as f64, *original) {
                scaling["attention_factor"] = json!(given);
            }
            scaling
        }
    }
}
