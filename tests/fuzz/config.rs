//! `config.json`: whatever it says, it is read within its limits or refused, and what is read can be counted.

use tunesmith::models::DecoderConfig;
use tunesmith::models::limits::{MAX_LAYERS, MAX_WEIGHTS};

pub(crate) fn body(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match DecoderConfig::parse(text) {
        Ok(config) => {
            assert!((1..=MAX_LAYERS).contains(&config.layers));
            assert_eq!((config.windows.len(), config.rotated.len()), (config.layers, config.layers));
            assert!(config.weight_counts().total() <= 2 * MAX_WEIGHTS);
            assert!(config.rotary_dim() <= config.head_dim);
            drop(config.to_json());
        }
        Err(error) => assert!(error.message().len() < 4096, "{}", error.message().len()),
    }
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<std::path::PathBuf> {
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3"]
        .map(|family| super::fixture("models").join(family).join("config.json"))
        .to_vec()
}
