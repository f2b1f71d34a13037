//! `adapter_config.json` beside the tensors of a small adapter: it is read or refused, and what is read fits its base.

use std::path::Path;

use candle_core::Device;
use tunesmith::models::DecoderConfig;
use tunesmith::tune::read_adapter;

const TENSORS: &[u8] = include_bytes!("../golden/fixtures/models/lora/after/adapter_model.safetensors");
const BASE: &str = include_str!("../golden/fixtures/models/llama/config.json");

pub(crate) fn body(bytes: &[u8]) {
    let dir = std::env::temp_dir().join(format!("tunesmith-fuzz-adapter-{}", std::process::id()));
    read(&dir, bytes);
    drop(std::fs::remove_dir_all(&dir));
}

fn read(dir: &Path, config: &[u8]) {
    std::fs::create_dir_all(dir).expect("the folder for temporary files can be written");
    for (name, bytes) in [("adapter_config.json", config), ("adapter_model.safetensors", TENSORS)] {
        std::fs::write(dir.join(name), bytes).expect("the folder for temporary files can be written");
    }
    let base = DecoderConfig::parse(BASE).expect("the fixture is a model");
    if let Err(error) = read_adapter(dir, &base, &Device::Cpu, false) {
        assert!(error.message().len() < 4096 && !error.message().contains(&*dir.to_string_lossy()));
    }
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<std::path::PathBuf> {
    vec![super::fixture("models/lora/after/adapter_config.json")]
}
