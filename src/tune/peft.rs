//! Reading adapter directories in `peft`'s format: ours, and those that `peft` wrote.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::lora::{Lora, LoraConfig, Update, names, sites};
use crate::error::{Error, Result};
use crate::models::{DecoderConfig, Projection, Weights};

/// `adapter_config.json`: the fields that change the numbers.
#[derive(Deserialize)]
struct File {
    peft_type: String,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    #[serde(default)]
    lora_dropout: f32,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    bias: Option<String>,
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(default)]
    target_parameters: Option<Value>,
}

/// The adapter in `dir`, made ready to answer on a base of this shape.
///
/// # Errors
/// When a file is missing or damaged, the adapter is of a kind that cannot be read, or a tensor
/// does not fit the base; the message names it.
pub fn read_adapter(dir: &Path, base: &DecoderConfig, device: &Device) -> Result<Lora> {
    let path = dir.join("adapter_config.json");
    let wrong = |what: String| Error::validation(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|cause| wrong(cause.to_string()))?;
    let file: File = serde_json::from_str(&text).map_err(|cause| wrong(cause.to_string()))?;
    if file.peft_type != "LORA" {
        return Err(wrong(format!("adapters of type {} are not supported; LORA is", file.peft_type)));
    }
    for (present, what) in [
        (file.use_dora, "use_dora"),
        (file.bias.as_deref().is_some_and(|bias| bias != "none"), "bias other than \"none\""),
        (file.modules_to_save.as_ref().is_some_and(|modules| !modules.is_empty()), "modules_to_save"),
        (file.target_parameters.as_ref().is_some_and(|targets| !targets.is_null()), "target_parameters"),
    ] {
        if present {
            return Err(wrong(format!("{what} is not supported")));
        }
    }
    let (Some(rank), Some(alpha)) = (file.r, file.lora_alpha) else {
        return Err(wrong("r or lora_alpha is missing".into()));
    };
    let patterns = patterns(&file.alpha_pattern).map_err(|cause| wrong(format!("alpha_pattern: {cause}")))?;
    let mut config =
        LoraConfig { rank, alpha, dropout: file.lora_dropout, rank_stabilized: file.use_rslora, targets: Vec::new() };

    let weights = Weights::open_file(&dir.join("adapter_model.safetensors"))?;
    let mut updates = BTreeMap::new();
    for site in sites(base.layers, base.projections()) {
        let (a, b) = names(site);
        if !weights.contains(&a) && !weights.contains(&b) {
            continue;
        }
        let (outputs, inputs) = base.sizes(site.projection);
        // The rank is the tensor's own: rank_pattern may give each map another.
        let rank = weights.shape(&a).and_then(|shape| shape.first().copied()).unwrap_or(config.rank);
        let alpha = patterns.iter().find(|(pattern, _)| pattern.is_match(&site.name())).map_or(alpha, |(_, own)| *own);
        let scale = LoraConfig { alpha, ..config.clone() }.scale(rank);
        let (a, b) = (weights.get(&a, &[rank, inputs], device)?, weights.get(&b, &[outputs, rank], device)?);
        updates.insert(site, Update { a, b, scale });
        if !config.targets.contains(&site.projection) {
            config.targets.push(site.projection);
        }
    }
    let known: Vec<String> = updates.keys().flat_map(|site| <[String; 2]>::from(names(*site))).collect();
    if let Some(stranger) = weights.names().find(|name| !known.iter().any(|known| known == name)) {
        return Err(Error::validation(format!(
            "{}: the tensor {stranger} has no place in a model of {} layers with these projections: {}",
            dir.display(),
            base.layers,
            base.projections().iter().copied().map(Projection::name).collect::<Vec<_>>().join(", ")
        )));
    }
    if updates.is_empty() {
        return Err(Error::validation(format!("{} holds no LoRA tensors", dir.display())));
    }
    config.targets.sort_unstable();
    Ok(Lora::fixed(config, updates))
}

/// `peft` matches a key against the end of the module's name, at a dot.
fn patterns(given: &BTreeMap<String, f64>) -> Result<Vec<(Regex, f64)>, regex::Error> {
    given.iter().map(|(key, alpha)| Ok((Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))?, *alpha))).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use serde_json::json;

    use super::*;
    use crate::models::{Precision, save_tensors};

    fn base() -> DecoderConfig {
        let file = json!({"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1});
        DecoderConfig::parse(&file.to_string()).unwrap()
    }

    /// A rank-2 adapter of one query projection, its configuration changed by `extra`.
    fn adapter(extra: Value, tensors: &[(&str, &[usize])]) -> Result<Lora> {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
        for (name, value) in extra.as_object().unwrap() {
            config[name] = value.clone();
        }
        std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| {
                let tensor = Tensor::ones(*shape, candle_core::DType::F32, &Device::Cpu).unwrap();
                (format!("base_model.model.model.layers.{name}.weight"), tensor)
            })
            .collect();
        save_tensors(&dir.path().join("adapter_model.safetensors"), &tensors, Precision::F32).unwrap();
        read_adapter(dir.path(), &base(), &Device::Cpu)
    }

    const QUERY: [(&str, &[usize]); 2] =
        [("0.self_attn.q_proj.lora_A", &[2, 8]), ("0.self_attn.q_proj.lora_B", &[8, 2])];

    #[test]
    fn an_adapter_is_read_with_its_scale() {
        let lora = adapter(json!({}), &QUERY).unwrap();
        assert_eq!(lora.config().scale(2), 2.0);
        assert_eq!(lora.config().targets, [Projection::Query]);
    }

    #[test]
    fn adapters_that_cannot_be_read_say_why() {
        let no_b = [QUERY[0]];
        let misshapen: [(&str, &[usize]); 2] = [QUERY[0], ("0.self_attn.q_proj.lora_B", &[9, 2])];
        let deeper: [(&str, &[usize]); 3] = [QUERY[0], QUERY[1], ("5.self_attn.q_proj.lora_A", &[2, 8])];
        for (extra, tensors, said) in [
            (json!({"peft_type": "PREFIX_TUNING"}), &QUERY[..], "PREFIX_TUNING"),
            (json!({"use_dora": true}), &QUERY[..], "use_dora"),
            (json!({"bias": "all"}), &QUERY[..], "bias"),
            (json!({"modules_to_save": ["lm_head"]}), &QUERY[..], "modules_to_save"),
            (json!({"r": null}), &QUERY[..], "r or lora_alpha"),
            (json!({"alpha_pattern": {"(": 1.0}}), &QUERY[..], "alpha_pattern"),
            (json!({}), &no_b[..], "lacks the tensor base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"),
            (json!({}), &misshapen[..], "shape [9, 2], its configuration asks for [8, 2]"),
            (json!({}), &deeper[..], "layers.5.self_attn.q_proj.lora_A.weight has no place"),
            (json!({}), &[][..], "no LoRA tensors"),
        ] {
            let error = adapter(extra, tensors).err().unwrap();
            assert!(error.message().contains(said), "{}", error.message());
        }
    }
}
