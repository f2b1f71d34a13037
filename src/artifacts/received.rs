//! Adapters and models that others made, checked before they are served: everything that a model of its
//! configuration needs is there, in the right shape, and finite.

use std::path::Path;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::limits::shortened;
use crate::models::{Decoder, DecoderConfig, Tokenizer, Weights};
use crate::tune::{read_adapter, weight_file};

/// A text with letters, numbers, spaces and signs of several scripts.
const TEXT: &str = "A first text, of 12345 words and\n\n    more: naïve, Ωmega, 日本語, 😀!";

/// What is known of a whole model once it is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The `model_type` of its configuration.
    pub architecture: String,
    /// It has a chat template: conversations can be held with it.
    pub chat: bool,
}

/// Checks a Hugging Face model directory.
///
/// # Errors
/// When a file is missing or damaged, the architecture is not supported, or a weight is missing, has
/// another shape or is not finite; the message names it.
pub fn check_model(dir: &Path) -> Result<Received> {
    let config = Decoder::check(dir)?;
    let tokenizer = Tokenizer::read(dir)?;
    let ids = tokenizer.inner().get_vocab_size(true);
    if ids > config.vocab_size {
        return Err(Error::validation(format!(
            "tokenizer.json has {ids} tokens, but config.json gives the model a vocabulary of {}",
            config.vocab_size
        )));
    }
    try_tokenizer(&tokenizer)?;
    let chat = tokenizer.try_chat_template()?.is_some();
    Ok(Received { architecture: config.architecture.model_type().to_string(), chat })
}

/// Lets a tokenizer take and give a text once, so that one that never comes to an end shows itself here.
fn try_tokenizer(tokenizer: &Tokenizer) -> Result<()> {
    let wrong = |error: Error| {
        let cause = error.cause().unwrap_or_else(|| error.message().to_string());
        Error::validation(shortened(format!("tokenizer.json: it cannot take or give a text: {cause}")))
    };
    let ids = tokenizer.encode(TEXT, true).map_err(wrong)?;
    tokenizer.decode(&ids, false).map(drop).map_err(wrong)
}

/// Checks an adapter directory, of `peft` or of `adapters`, against its base's directory.
///
/// # Errors
/// When a file is missing or damaged, the adapter is of a kind that cannot be read, or a tensor does not
/// fit the base or is not finite; the message names it.
pub fn check_adapter(dir: &Path, base: &Path) -> Result<()> {
    read_adapter(dir, &DecoderConfig::read(base)?, &Device::Cpu, false)?;
    let weights = Weights::open_file(&weight_file(dir))?;
    for name in weights.names() {
        weights.check(name, weights.shape(name).unwrap_or_default())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::*;
    use crate::models::{Precision, save_tensors};

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models").join(name)
    }

    fn copy(name: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        dir
    }

    #[test]
    fn a_whole_model_and_an_adapter_that_fits_it_pass() {
        let received = check_model(&fixture("llama")).unwrap();
        assert_eq!(received, Received { architecture: "llama".into(), chat: true });
        check_adapter(&fixture("lora/after"), &fixture("llama")).unwrap();
    }

    #[test]
    fn a_model_whose_chat_template_cannot_be_run_is_refused_by_name() {
        let dir = copy("llama");
        for (template, why) in [
            (format!("{{{{ a{} }}}}", "+a".repeat(20_000)), "line 1: a tag has more than 1000"),
            (
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".into(),
                "takes more work",
            ),
            ("{{ messages|nothing }}".into(), "filter nothing is unknown"),
            ("{% for %}".into(), "cannot be compiled"),
        ] {
            std::fs::write(dir.path().join("chat_template.jinja"), &template).unwrap();
            let error = check_model(dir.path()).unwrap_err();
            assert!(error.message().contains("chat template") && error.message().contains(why), "{error}");
        }
        std::fs::write(dir.path().join("chat_template.jinja"), "{{ raise_exception('give tools') }}").unwrap();
        assert!(check_model(dir.path()).unwrap().chat);
    }

    #[test]
    fn what_is_not_finite_or_does_not_fit_is_named() {
        let dir = copy("lora/after");
        let path = dir.path().join("adapter_model.safetensors");
        let weights = Weights::open_file(&path).unwrap();
        let mut tensors: Vec<_> = weights
            .names()
            .map(|name| (name.to_string(), weights.get(name, weights.shape(name).unwrap(), &Device::Cpu).unwrap()))
            .collect();
        drop(weights);
        let (name, first) = tensors[0].clone();
        let mut values = first.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values[1] = f32::NAN;
        tensors[0].1 = Tensor::from_vec(values, first.dims(), &Device::Cpu).unwrap();
        save_tensors(&path, &tensors, Precision::F32).unwrap();
        let error = check_adapter(dir.path(), &fixture("llama")).unwrap_err();
        assert!(error.message().contains(&name) && error.message().contains("must be finite"), "{error}");

        let whole = copy("llama");
        std::fs::remove_file(whole.path().join("model-00002-of-00003.safetensors")).unwrap();
        let error = check_model(whole.path()).unwrap_err();
        assert!(error.message().contains("model-00002-of-00003.safetensors"), "{error}");
    }
}
