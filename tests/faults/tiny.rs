//! A model, a data set and a job small enough to be run many times: two layers, a letter a token.

use std::path::{Path, PathBuf};

use serde_json::json;
use tunesmith::models::{Decoder, DecoderConfig, Form, Precision};
use tunesmith::store::CustomizationType;
use tunesmith::store::jobs::JobSpec;

pub(crate) const MODEL: &str = "tunesmith.tiny-v1:0";

/// Makes the models folder with the one model in it.
pub(crate) fn models(folder: &Path) -> PathBuf {
    let models = folder.join("base-models");
    let dir = models.join(MODEL);
    std::fs::create_dir_all(&dir).unwrap();
    let letters: Vec<char> = (' '..='~').chain(['\n']).collect();
    let mut vocabulary = serde_json::Map::new();
    for (id, token) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocabulary.insert((*token).into(), json!(id));
    }
    for (n, letter) in letters.iter().enumerate() {
        vocabulary.insert(letter.to_string(), json!(n + 3));
    }
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let size = vocabulary.len();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?s)."}, "behavior": "Isolated", "invert": false},
        "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    write(&dir.join("tokenizer.json"), &tokenizer);
    write(&dir.join("tokenizer_config.json"), &json!({"bos_token": "<s>", "eos_token": "</s>"}));
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": size, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    });
    write(&dir.join("config.json"), &config);
    let config = DecoderConfig::read(&dir).unwrap();
    Decoder::random(config, 11, &candle_core::Device::Cpu, Form::Frozen).unwrap().save(&dir, Precision::F32).unwrap();
    models
}

fn write(path: &Path, value: &serde_json::Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

/// Small sums, a record each.
pub(crate) fn data() -> String {
    (0..64)
        .map(|n| json!({"prompt": format!("{n}+{}=", n * 7 % 10), "completion": (n + n * 7 % 10).to_string()}))
        .map(|record| format!("{record}\n"))
        .collect()
}

/// A job on that model that takes several seconds: long enough to be killed in the middle.
pub(crate) fn job(n: usize) -> JobSpec {
    let mut spec = crate::jobs::spec(n);
    spec.base_model_id = MODEL.into();
    spec.training_data = json!({"s3Uri": "s3://tuning/train.jsonl"}).into();
    spec.output_data = json!({"s3Uri": "s3://tuning/out/"}).into();
    spec.hyper_parameters.0 =
        [("stepCount", "1500"), ("batchSize", "8"), ("learningRate", "0.01")].map(|(k, v)| (k.into(), v.into())).into();
    spec
}

/// Sums without their answers.
pub(crate) fn prompts(count: usize) -> String {
    (0..count)
        .map(|n| json!({"prompt": format!("{}+{}=", n / 10, n % 10)}))
        .map(|record| format!("{record}\n"))
        .collect()
}

/// A job that learns another model's answers to `prompts.jsonl`.
pub(crate) fn distillation(n: usize, teacher: &str) -> JobSpec {
    let mut spec = job(n);
    spec.customization_type = CustomizationType::Distillation;
    spec.training_data = json!({"s3Uri": "s3://tuning/prompts.jsonl"}).into();
    let config = json!({"teacherModelIdentifier": teacher, "maxResponseLengthForInference": 8});
    spec.customization_config = Some(json!({"distillationConfig": {"teacherModelConfig": config}}).into());
    spec.hyper_parameters.0.insert("stepCount".into(), "100".into());
    spec
}
