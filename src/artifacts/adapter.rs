//! Adapters as files that the reference libraries load unchanged: `adapter_config.json` and
//! `adapter_model.safetensors` as `peft` 0.21 writes them, and bottleneck adapters as `adapters` 1.3 does.
//! Beside an adapter that was trained over a base in 4 bits lies the quantization, for whoever loads it.

use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use crate::durable;
use crate::error::{Error, Result};
use crate::models::{DecoderConfig, Precision, Projection, quantization_config, save_tensors};
use crate::tune::{
    ADAPTER_NAME, AdapterConfig, Arrangement, LoraConfig, QUANTIZATION, SCORE, TuningMethod, WEIGHT_FILES,
};

/// The release of `peft` whose format this is.
const PEFT_VERSION: &str = "0.21.2";

/// Writes an adapter into `dir`; `tensors` carry the names of the artifact.
///
/// # Errors
/// When a file cannot be written, or the method leaves no adapter but a whole model.
pub fn write_adapter(
    dir: &Path,
    base_id: &str,
    base: &DecoderConfig,
    method: &TuningMethod,
    tensors: &[(String, Tensor)],
) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let [peft, bottleneck] = WEIGHT_FILES;
    let file = if matches!(method, TuningMethod::Adapter(_)) { bottleneck } else { peft };
    save_tensors(&dir.join(file), tensors, Precision::F32)?;
    write_adapter_config(dir, base_id, base, method, tensors.iter().any(|(name, _)| name == SCORE))
}

/// Writes what stands beside the weights of an adapter; `scores` says that it is a reward model.
///
/// # Errors
/// As [`write_adapter`].
pub fn write_adapter_config(
    dir: &Path,
    base_id: &str,
    base: &DecoderConfig,
    method: &TuningMethod,
    scores: bool,
) -> Result<()> {
    let mut config = match method {
        TuningMethod::Adapter(config) => bottleneck_config(base_id, base, config),
        other => peft_config(base_id, base, other)?,
    };
    if scores {
        // To peft the head of a classifier with one class.
        config["modules_to_save"] = json!(["score"]);
        config["task_type"] = json!("SEQ_CLS");
    }
    durable::write(&dir.join("adapter_config.json"), format!("{config:#}\n"))?;
    if matches!(method, TuningMethod::Qlora(_)) {
        durable::write(&dir.join(QUANTIZATION), format!("{:#}\n", quantization_config()))?;
    }
    Ok(())
}

fn peft_config(base_id: &str, base: &DecoderConfig, method: &TuningMethod) -> Result<Value> {
    let virtual_tokens = |tokens: usize, width: usize, heads: usize| {
        json!({
            "num_attention_heads": heads,
            "num_layers": base.layers,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": tokens,
            "token_dim": width,
        })
    };
    let (kind, own) = match method {
        TuningMethod::Lora(config) | TuningMethod::Qlora(config) => ("LORA", lora(config)),
        TuningMethod::Prefix(config) => {
            // peft counts the heads and the width of keys and values here, not the model's.
            let width = base.kv_heads * base.head_dim;
            let mut own = virtual_tokens(config.tokens, width, base.kv_heads);
            own["encoder_hidden_size"] = json!(config.projection.filter(|inner| *inner > 0).unwrap_or(width));
            own["prefix_projection"] = json!(config.projection.is_some());
            ("PREFIX_TUNING", own)
        }
        TuningMethod::Prompt(config) => {
            let mut own = virtual_tokens(config.tokens, base.hidden_size, base.heads);
            // What it began as does not matter any more; TEXT would ask a loader for the text's tokenizer.
            own["prompt_tuning_init"] = json!("RANDOM");
            ("PROMPT_TUNING", own)
        }
        TuningMethod::LlamaAdapter(config) => (
            "ADAPTION_PROMPT",
            json!({
                "adapter_len": config.length,
                "adapter_layers": config.layers_of(base),
                "target_modules": "self_attn",
            }),
        ),
        TuningMethod::Head => {
            ("LN_TUNING", json!({"exclude_modules": null, "modules_to_save": null, "target_modules": ["lm_head"]}))
        }
        TuningMethod::Adapter(_) | TuningMethod::Full => {
            return Err(Error::internal(anyhow::anyhow!("{} is not in peft's format", method.name())));
        }
    };
    let common = json!({
        "auto_mapping": null,
        "base_model_name_or_path": base_id,
        "inference_mode": true,
        "peft_type": kind,
        "peft_version": PEFT_VERSION,
        "revision": null,
        "task_type": "CAUSAL_LM",
    });
    // By name, as peft sorts them.
    let mut fields: Vec<(String, Value)> =
        [common, own].into_iter().flat_map(|part| part.as_object().cloned().unwrap_or_default()).collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Value::Object(Map::from_iter(fields)))
}

fn lora(config: &LoraConfig) -> Value {
    let targets: Vec<&str> = config.targets.iter().copied().map(Projection::name).collect();
    // The shortest decimal of the f32, not its expansion to f64.
    let dropout: f64 = config.dropout.to_string().parse().unwrap_or_default();
    json!({
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": whole(config.alpha),
        "lora_dropout": dropout,
        "modules_to_save": null,
        "r": config.rank,
        "rank_pattern": {},
        "target_modules": targets,
        "use_dora": config.magnitudes,
        "use_rslora": config.rank_stabilized,
    })
}

/// Python's libraries write a whole number without a point.
fn whole(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

fn bottleneck_config(base_id: &str, base: &DecoderConfig, config: &AdapterConfig) -> Value {
    let AdapterConfig { arrangement, reduction_factor, activation, scaling } = *config;
    json!({
        "config": {
            "adapter_residual_before_ln": false,
            "cross_adapter": false,
            "dropout": 0.0,
            "factorized_phm_W": true,
            "factorized_phm_rule": false,
            "hypercomplex_nonlinearity": "glorot-uniform",
            "init_weights": if arrangement == Arrangement::Parallel { "mam_adapter" } else { "bert" },
            "init_weights_seed": null,
            "inv_adapter": null,
            "inv_adapter_reduction_factor": null,
            "is_parallel": arrangement == Arrangement::Parallel,
            "learn_phm": true,
            "leave_out": [],
            "ln_after": false,
            "ln_before": false,
            "mh_adapter": arrangement == Arrangement::Houlsby,
            "non_linearity": activation.name(),
            "original_ln_after": true,
            "original_ln_before": arrangement == Arrangement::Pfeiffer,
            "output_adapter": true,
            "phm_bias": true,
            "phm_c_init": "normal",
            "phm_dim": 4,
            "phm_init_range": 0.0001,
            "phm_layer": false,
            "phm_rank": 1,
            "reduction_factor": whole(reduction_factor),
            "residual_before_ln": true,
            "scaling": scaling,
            "shared_W_phm": false,
            "shared_phm_rule": true,
            "stochastic_depth": 0.0,
            "use_gating": false,
        },
        "hidden_size": base.hidden_size,
        "model_class": base.architecture.class(),
        "model_name": base_id,
        "model_type": base.architecture.model_type(),
        "name": ADAPTER_NAME,
        "version": "adapters.1.3.0",
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::{Decoder, Form};
    use crate::tune::{Activation, LlamaAdapterConfig, PrefixConfig, PromptConfig, VirtualTokens, read_adapter};

    fn decoder(form: Form) -> Decoder {
        let file = json!({"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1});
        Decoder::random(DecoderConfig::parse(&file.to_string()).unwrap(), 1, &Device::Cpu, form).unwrap()
    }

    /// One of each, with options far from the defaults.
    fn methods() -> Vec<TuningMethod> {
        let lora = LoraConfig {
            rank: 3,
            alpha: 4.5,
            dropout: 0.1,
            rank_stabilized: true,
            magnitudes: false,
            targets: vec![Projection::Query, Projection::Down],
        };
        let begin = VirtualTokens::Random;
        let adapter = |arrangement| {
            let config = AdapterConfig::of(arrangement);
            TuningMethod::Adapter(AdapterConfig { reduction_factor: 2.5, activation: Activation::Gelu, ..config })
        };
        vec![
            TuningMethod::Lora(lora.clone()),
            TuningMethod::Lora(LoraConfig { magnitudes: true, ..lora.clone() }),
            TuningMethod::Qlora(lora),
            adapter(Arrangement::Houlsby),
            adapter(Arrangement::Pfeiffer),
            adapter(Arrangement::Parallel),
            TuningMethod::Prefix(PrefixConfig { tokens: 3, begin: begin.clone(), projection: None }),
            TuningMethod::Prompt(PromptConfig { tokens: 4, begin }),
            TuningMethod::LlamaAdapter(LlamaAdapterConfig { length: 3, layers: Some(1) }),
            TuningMethod::Head,
        ]
    }

    #[test]
    fn an_adapter_of_every_method_is_read_back_as_it_was_written_and_answers_the_same() {
        for method in methods() {
            let decoder = decoder(method.form());
            let tuning = method.build(&decoder, None, 5).unwrap();
            let dir = tempfile::tempdir().unwrap();
            write_adapter(dir.path(), "a.b", decoder.config(), &method, &tuning.artifact().unwrap()).unwrap();
            for trains in [false, true] {
                let read = read_adapter(dir.path(), decoder.config(), &Device::Cpu, trains).unwrap();
                assert_eq!(read.method, method);
                assert_eq!(read.fixed, None);
                let trained = if trains { tuning.trainables().len() } else { 0 };
                assert_eq!(read.tuning.trainables().len(), trained);
                let logits = |tuning: &dyn crate::models::Tuning| {
                    let logits = decoder.logits(&[1, 2, 3, 4], &[3, 1], tuning).unwrap();
                    logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                assert_eq!(logits(&*read.tuning), logits(&*tuning), "{}", method.name());
            }
        }
    }

    #[test]
    fn numbers_in_the_configuration_look_as_peft_writes_them() {
        let config = LoraConfig { rank: 8, alpha: 16.0, dropout: 0.1, ..LoraConfig::default() };
        let decoder = decoder(Form::Frozen);
        let method = TuningMethod::Lora(config).on(decoder.config()).unwrap();
        let file = peft_config("m", decoder.config(), &method).unwrap();
        assert_eq!((file["lora_alpha"].to_string(), file["lora_dropout"].to_string()), ("16".into(), "0.1".into()));
        assert_eq!(file["target_modules"].as_array().unwrap().len(), 7);
    }
}
