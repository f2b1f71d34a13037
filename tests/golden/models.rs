//! The decoder against transformers (`models.py`): logits and greedy answers of every family.

use std::path::PathBuf;

use candle_core::Device;
use serde::Deserialize;
use tunesmith::infer::{Batch, Completion, Request, Sampling, StopReason, complete};
use tunesmith::models::{Decoder, Form, Frozen, Precision, Tokenizer, Tuning, Weights};

/// `expected.json` of a family.
#[derive(Deserialize)]
pub(super) struct Expected {
    pub(super) records: Vec<Vec<u32>>,
    greedy: Vec<u32>,
    /// The answer to the second record, where it outgrows the length of pre-training.
    #[serde(default)]
    grown: Vec<u32>,
}

pub(super) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models").join(name)
}

pub(super) fn expected<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

/// Holds the logits of the two records of every fixture, packed into one stream, to those in `file`.
#[track_caller]
pub(super) fn assert_logits(decoder: &Decoder, tuning: &dyn Tuning, file: &str) {
    let records = expected::<Expected>("llama/expected.json").records;
    let lengths: Vec<usize> = records.iter().map(Vec::len).collect();
    let got = decoder.logits(&records.concat(), &lengths, tuning).unwrap();
    let want = Weights::open_file(&fixture(file)).unwrap().get("logits", got.dims(), &Device::Cpu).unwrap();
    let worst = (got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(worst < 1e-4, "{file}: logits differ by up to {worst}");
}

const FAMILIES: [&str; 8] = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3"];

#[test]
fn logits_of_every_family_equal_those_of_transformers() {
    for family in FAMILIES {
        let decoder = Decoder::load(&fixture(family), &Device::Cpu, Form::Frozen).unwrap();
        assert_logits(&decoder, &Frozen, &format!("{family}/expected.safetensors"));
    }
}

#[test]
fn a_saved_model_loads_with_the_same_logits() {
    for family in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let decoder = Decoder::load(&fixture(family), &Device::Cpu, Form::Frozen).unwrap();
        decoder.save(dir.path(), Precision::F32).unwrap();
        let again = Decoder::load(dir.path(), &Device::Cpu, Form::Frozen).unwrap();
        assert_eq!(again.config(), decoder.config(), "{family}");
        assert_logits(&again, &Frozen, &format!("{family}/expected.safetensors"));
    }
}

/// The likeliest `most` tokens after a prompt, or those up to an end.
fn greedy(decoder: &Decoder, ends: &[u32], prompt: &[u32], most: usize) -> Completion {
    let likeliest = Sampling { max_tokens: most, temperature: 0.0, top_p: 1.0, top_k: None, seed: 0 };
    let mut batch = Batch::new(decoder, &Frozen, ends, 64);
    let answers = complete(&mut batch, &[Request { prompt, ways: vec![likeliest] }], 1, &|| true);
    answers.unwrap().unwrap().remove(0).remove(0)
}

#[test]
fn greedy_answers_with_the_cache_equal_those_of_transformers_and_those_without_it() {
    let tokenizer = Tokenizer::read(&fixture("llama")).unwrap();
    for family in FAMILIES {
        let expected: Expected = expected(&format!("{family}/expected.json"));
        let decoder = Decoder::load(&fixture(family), &Device::Cpu, Form::Frozen).unwrap();
        // The end token may be among the expected ones: the fixture was made without any, so none may end here.
        let end = tokenizer.ends()[0];
        let stop = expected.greedy.iter().position(|token| *token == end);
        let prompt = &expected.records[0];
        let answer = greedy(&decoder, tokenizer.ends(), prompt, expected.greedy.len());
        assert_eq!(answer.tokens, expected.greedy[..stop.map_or(expected.greedy.len(), |stop| stop + 1)], "{family}");
        assert_eq!(answer.stop_reason, if stop.is_some() { StopReason::EndTurn } else { StopReason::MaxTokens });

        let mut text = prompt.clone();
        for token in &answer.tokens {
            let logits = decoder.logits(&text, &[text.len()], &Frozen).unwrap();
            let last = logits.get(text.len() - 1).unwrap().argmax(0).unwrap().to_scalar::<u32>().unwrap();
            assert_eq!(last, *token, "{family} without the cache");
            text.push(*token);
        }
    }
}

#[test]
fn an_answer_that_outgrows_the_length_of_pre_training_goes_on_with_the_frequencies_of_long_texts() {
    let tokenizer = Tokenizer::read(&fixture("llama")).unwrap();
    let expected: Expected = expected("phi3/expected.json");
    let decoder = Decoder::load(&fixture("phi3"), &Device::Cpu, Form::Frozen).unwrap();
    let prompt = &expected.records[1];
    assert!(decoder.config().frequencies_change(prompt.len(), prompt.len() + expected.grown.len()));
    let answer = greedy(&decoder, tokenizer.ends(), prompt, expected.grown.len());
    assert_eq!(answer.tokens, expected.grown);
}

#[test]
fn a_checkpoint_that_does_not_fit_its_configuration_names_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(fixture("qwen2").join(file), dir.path().join(file)).unwrap();
    }
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    for (from, to, said) in [
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "lacks the tensor model.layers.2."),
        ("\"intermediate_size\": 48", "\"intermediate_size\": 40", "gate_proj.weight has shape [48, 32]"),
        ("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false", "lacks the tensor lm_head.weight"),
        ("Qwen2ForCausalLM", "BloomForCausalLM", "BloomForCausalLM is not supported"),
    ] {
        assert!(config.contains(from), "{from}");
        let changed = config.replace(from, to).replace("\"layer_types\"", "\"unused\"");
        std::fs::write(dir.path().join("config.json"), changed).unwrap();
        let error = Decoder::load(dir.path(), &Device::Cpu, Form::Frozen).err().unwrap();
        assert!(error.message().contains(said), "{}", error.message());
    }
}
