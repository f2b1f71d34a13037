//! The decoder against candle-transformers, on the same random weights.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen2};
use serde_json::json;
use tunesmith::models::{Decoder, DecoderConfig, Form, Frozen};

const TOKENS: [u32; 11] = [3, 50, 7, 7, 61, 22, 0, 40, 9, 9, 33];

/// A random decoder of this architecture, its weights for candle, and its logits of [`TOKENS`].
fn random(architecture: &str, tied: bool) -> (Decoder, VarBuilder<'static>, Tensor) {
    let file = json!({
        "architectures": [architecture], "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": tied,
    });
    let config = DecoderConfig::parse(&file.to_string()).unwrap();
    let decoder = Decoder::random(config, 11, &Device::Cpu, Form::Trainable).unwrap();
    for (i, (name, weight)) in decoder.named_weights().iter().enumerate() {
        // New weights are small and biases zero: make every one of them count.
        let noise = tunesmith::rng::Rng::new(5, name, i as u64).normals(weight.elem_count(), 0.2);
        let noise = Tensor::from_vec(noise, weight.dims(), &Device::Cpu).unwrap();
        candle_core::Var::from_tensor(weight).unwrap().set(&(weight.detach() + noise).unwrap()).unwrap();
    }
    let weights: HashMap<String, Tensor> =
        decoder.named_weights().iter().map(|(name, weight)| (name.clone(), weight.detach())).collect();
    let builder = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let logits = decoder.logits(&TOKENS, &[TOKENS.len()], &Frozen).unwrap();
    (decoder, builder, logits)
}

/// candle's models give the last token's logits only: compare at every length.
#[track_caller]
fn assert_equal(ours: &Tensor, mut theirs: impl FnMut(&Tensor) -> Tensor) {
    for length in 1..=TOKENS.len() {
        let input = Tensor::from_slice(&TOKENS[..length], (1, length), &Device::Cpu).unwrap();
        let theirs = theirs(&input).flatten_all().unwrap();
        let ours = ours.i(length - 1).unwrap();
        let worst = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-4, "at {length} tokens logits differ by up to {worst}");
    }
}

#[test]
fn logits_equal_those_of_candles_llama() {
    for tied in [false, true] {
        let (decoder, builder, logits) = random("LlamaForCausalLM", tied);
        let config = llama::Config {
            hidden_size: 48,
            intermediate_size: 80,
            vocab_size: 64,
            num_hidden_layers: 3,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            use_flash_attn: false,
            rms_norm_eps: 1e-5,
            rope_theta: decoder.config().rope_theta,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: 64,
            tie_word_embeddings: tied,
        };
        let model = llama::Llama::load(builder, &config).unwrap();
        assert_equal(&logits, |input| {
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            model.forward(input, 0, &mut cache).unwrap()
        });
    }
}

#[test]
fn logits_equal_those_of_candles_qwen2() {
    for tied in [false, true] {
        let (_, builder, logits) = random("Qwen2ForCausalLM", tied);
        let config = qwen2::Config {
            vocab_size: 64,
            hidden_size: 48,
            intermediate_size: 80,
            num_hidden_layers: 3,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            max_position_embeddings: 64,
            sliding_window: 64,
            max_window_layers: 3,
            tie_word_embeddings: tied,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            use_sliding_window: false,
            hidden_act: candle_nn::Activation::Silu,
        };
        let mut model = qwen2::ModelForCausalLM::new(&config, builder).unwrap();
        assert_equal(&logits, |input| {
            model.clear_kv_cache();
            model.forward(input, 0).unwrap()
        });
    }
}
