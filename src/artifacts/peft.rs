//! Adapters as `peft` writes them: `adapter_config.json` and `adapter_model.safetensors`, which
//! `peft.PeftModel.from_pretrained` loads unchanged. Fields and names are those of peft 0.21.

use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use crate::error::Result;
use crate::models::{Precision, Projection, save_tensors};
use crate::tune::LoraConfig;

/// The release of `peft` whose format this is.
const PEFT_VERSION: &str = "0.21.2";

/// Writes a LoRA into `dir`; `tensors` carry `peft`'s names.
///
/// # Errors
/// When a file cannot be written.
pub fn write_lora(dir: &Path, base: &str, config: &LoraConfig, tensors: &[(String, Tensor)]) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    save_tensors(&dir.join("adapter_model.safetensors"), tensors, Precision::F32)?;
    std::fs::write(dir.join("adapter_config.json"), format!("{:#}\n", adapter_config(base, config)))?;
    Ok(())
}

fn adapter_config(base: &str, config: &LoraConfig) -> Value {
    let targets: Vec<&str> = config.targets.iter().copied().map(Projection::name).collect();
    // peft types alpha as an integer, but takes a number with a fraction.
    let alpha = if config.alpha.fract() == 0.0 { json!(config.alpha as i64) } else { json!(config.alpha) };
    // The shortest decimal of the f32, not its expansion to f64.
    let dropout: f64 = config.dropout.to_string().parse().unwrap_or_default();
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "r": config.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": config.rank_stabilized,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::DecoderConfig;
    use crate::tune::{Lora, Method, read_adapter};

    fn base() -> DecoderConfig {
        let file = json!({"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1});
        DecoderConfig::parse(&file.to_string()).unwrap()
    }

    #[test]
    fn an_adapter_that_was_written_is_read_back_with_its_scale() {
        let dir = tempfile::tempdir().unwrap();
        let config = LoraConfig {
            rank: 3,
            alpha: 4.5,
            dropout: 0.1,
            rank_stabilized: true,
            targets: vec![Projection::Query, Projection::Down],
        };
        let lora = Lora::new(&base(), config.clone(), 1, &Device::Cpu).unwrap();
        let tensors: Vec<_> =
            lora.trainables().iter().map(|one| (one.name.clone(), one.var.as_tensor().clone())).collect();
        write_lora(dir.path(), "tunesmith.starter-v1:0", &config, &tensors).unwrap();
        let read = read_adapter(dir.path(), &base(), &Device::Cpu).unwrap();
        assert_eq!(read.config(), &config);
    }

    #[test]
    fn numbers_in_the_configuration_look_as_peft_writes_them() {
        let config = LoraConfig { rank: 8, alpha: 16.0, dropout: 0.1, ..LoraConfig::default() }.on(&base()).unwrap();
        let file = adapter_config("m", &config);
        assert_eq!((file["lora_alpha"].to_string(), file["lora_dropout"].to_string()), ("16".into(), "0.1".into()));
        assert_eq!(file["target_modules"].as_array().unwrap().len(), 7);
    }
}
