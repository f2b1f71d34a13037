//! Safetensors files: whatever the header says, no tensor lies outside of the file, and none takes more memory than
//! the file has bytes.

use std::path::{Path, PathBuf};

use tunesmith::models::Weights;

pub(crate) fn body(bytes: &[u8]) {
    let path = std::env::temp_dir().join(format!("tunesmith-fuzz-{}.safetensors", std::process::id()));
    std::fs::write(&path, bytes).expect("the folder for temporary files can be written");
    read(&path, bytes.len());
    drop(std::fs::remove_file(&path));
}

fn read(path: &Path, size: usize) {
    let weights = match Weights::open_file(path) {
        Ok(weights) => weights,
        Err(error) => return assert!(error.message().len() < 4096),
    };
    let names: Vec<String> = weights.names().map(str::to_string).collect();
    for name in names {
        let shape = weights.shape(&name).unwrap_or_default().to_vec();
        let count = shape.iter().try_fold(1_usize, |product, one| product.checked_mul(*one));
        let count = count.expect("the numbers of a tensor can be counted");
        assert!(count <= 2 * size, "{name}: {count} numbers in {size} bytes");
        drop(weights.expect(&name, &shape));
        drop(weights.check(&name, &shape));
        assert!(weights.raw_strip(&name, 0..count + 1).is_err());
    }
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<PathBuf> {
    vec![super::fixture("models/lora/after/adapter_model.safetensors")]
}
