//! Promises of reading and writing `config.json`.

use serde_json::json;

use super::*;

fn minimal(extra: Value) -> Value {
    let mut file = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    });
    for (name, value) in extra.as_object().unwrap() {
        file[name] = value.clone();
    }
    file
}

fn parse(extra: Value) -> Result<DecoderConfig> {
    DecoderConfig::parse(&minimal(extra).to_string())
}

#[test]
fn what_is_written_reads_back_equal() {
    let rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    for extra in [
        json!({}),
        json!({"rope_scaling": rope, "rope_theta": 5e5, "eos_token_id": [1, 2], "bos_token_id": 0}),
        json!({"architectures": ["MistralForCausalLM"], "sliding_window": 8}),
        json!({"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": true, "eos_token_id": 3}),
        json!({"architectures": ["Qwen3ForCausalLM"], "head_dim": 8, "sliding_window": 4,
            "use_sliding_window": true, "max_window_layers": 1}),
        json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 4, "use_sliding_window": true,
            "layer_types": ["sliding_attention", "full_attention"]}),
        json!({"architectures": ["Gemma2ForCausalLM"], "head_dim": 6, "query_pre_attn_scalar": 20}),
        json!({"architectures": ["Gemma2ForCausalLM"], "head_dim": 6, "attn_logit_softcapping": null,
            "final_logit_softcapping": 7.5, "layer_types": ["full_attention", "full_attention"]}),
        json!({"architectures": ["Gemma3ForCausalLM"], "head_dim": 6, "sliding_window_pattern": 2,
            "rope_local_base_freq": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        json!({"architectures": ["Phi3ForCausalLM"], "sliding_window": 9}),
        json!({"architectures": ["Phi3ForCausalLM"], "rope_scaling": long_rope(),
            "original_max_position_embeddings": 8, "max_position_embeddings": 64}),
        json!({"architectures": ["Phi3ForCausalLM"], "hidden_size": 32, "partial_rotary_factor": 0.5,
            "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.25, 4.0],
                "original_max_position_embeddings": 8, "attention_factor": 1.5}}),
        json!({"rope_scaling": {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.5],
            "long_factor": [1.25, 4.0]}}),
        json!({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [0, 1]}),
        json!({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layer_interval": 2, "use_sliding_window": true,
            "sliding_window": 5, "tie_word_embeddings": false}),
    ] {
        let config = parse(extra).unwrap();
        assert_eq!(DecoderConfig::parse(&config.to_json().to_string()).unwrap(), config);
    }
}

fn long_rope() -> Value {
    json!({"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.25, 4.0]})
}

#[test]
fn rope_parameters_of_transformers_5_mean_the_same_as_the_older_fields() {
    let old = parse(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
    let new = parse(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}})).unwrap();
    assert_eq!(old, new);
    let gemma = |rope: Value| {
        let mut extra = json!({"architectures": ["Gemma3ForCausalLM"]});
        extra.as_object_mut().unwrap().extend(rope.as_object().unwrap().clone());
        parse(extra).unwrap()
    };
    let old = gemma(json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_local_base_freq": 50.0}));
    let new = gemma(json!({"rope_parameters": {
        "full_attention": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
        "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"}}}));
    assert_eq!(old, new);
}

#[test]
fn each_family_gets_its_windows_and_biases() {
    let qwen2 = parse(json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 4096})).unwrap();
    assert_eq!((qwen2.windows, qwen2.qkv_bias, qwen2.output_bias), (vec![None, None], true, false));
    let mistral = parse(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 6})).unwrap();
    assert_eq!((mistral.windows, mistral.qkv_bias), (vec![Some(6), Some(6)], false));
    let llama = parse(json!({"attention_bias": true})).unwrap();
    assert!(llama.qkv_bias && llama.output_bias && llama.head_dim == 4);
    let sliding = parse(json!({"architectures": ["Qwen3ForCausalLM"], "sliding_window": 4, "use_sliding_window": true,
        "layer_types": ["full_attention", "sliding_attention"]}));
    assert_eq!(sliding.unwrap().windows, [None, Some(4)]);
    let gemma2 = parse(json!({"architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 3})).unwrap();
    assert_eq!(gemma2.windows, [Some(4096), None, Some(4096)]);
    assert_eq!((gemma2.head_dim, gemma2.tied, gemma2.norm_offset), (256, true, 1.0));
    assert_eq!((gemma2.attention_softcap, gemma2.final_softcap), (Some(50.0), Some(30.0)));
    let gemma3 =
        parse(json!({"architectures": [], "model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 8}))
            .unwrap();
    assert_eq!(gemma3.windows.iter().position(Option::is_none), Some(5));
    assert_eq!(gemma3.windows.iter().flatten().count(), 6);
    assert_eq!((gemma3.rope(0), gemma3.rope(5)), (Some((10_000.0, None)), Some((1e6, None))));
    assert_eq!((gemma3.attention_softcap, gemma3.qk_norm()), (None, true));
    let phi3 = parse(json!({"architectures": ["Phi3ForCausalLM"], "sliding_window": 7})).unwrap();
    assert_eq!((phi3.windows.as_slice(), phi3.norm_eps), (&[Some(7), Some(7)][..], 1e-5));
    assert_eq!(phi3.sizes(Projection::QueryKeyValue), (32, 16));
    assert_eq!(phi3.sizes(Projection::GateUp), (48, 16));
}

#[test]
fn smollm_and_smollm2_are_llamas_and_smollm3_has_layers_without_positions() {
    // HuggingFaceTB/SmolLM2-135M, what decides its numbers.
    let smollm2 = DecoderConfig::parse(
        r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 0, "eos_token_id": 0,
        "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
        "is_llama_config": true, "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 49152}"#,
    )
    .unwrap();
    assert_eq!((smollm2.architecture, smollm2.head_dim, smollm2.tied), (Architecture::Llama, 64, true));
    let smollm3 = parse(json!({"architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 5})).unwrap();
    assert_eq!(smollm3.rotated, [true, true, true, false, true]);
    assert_eq!((smollm3.rope(0), smollm3.rope(3), smollm3.tied), (Some((2e6, None)), None, true));
    let listed =
        parse(json!({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [0, 1, 1], "use_sliding_window": true,
        "sliding_window": 6}));
    let listed = listed.unwrap();
    assert_eq!((listed.rotated, listed.windows), (vec![false, true], vec![Some(6), None]));
}

#[test]
fn the_attention_factor_of_longrope_follows_the_lengths_and_short_and_long_texts_do_not_mix() {
    let given = json!({"architectures": ["Phi3ForCausalLM"], "rope_scaling": long_rope(),
        "original_max_position_embeddings": 8, "max_position_embeddings": 64});
    let config = parse(given).unwrap();
    let Some(RopeScaling::LongRope { original, attention_factor, .. }) = config.rope_scaling else { panic!() };
    assert_eq!(original, 8);
    assert!((attention_factor - 2f64.sqrt()).abs() < 1e-12, "√(1 + ln 8 / ln 8)");
    assert!(config.frequencies_change(8, 9) && config.frequencies_change(3, 20));
    assert!(!config.frequencies_change(7, 8) && !config.frequencies_change(9, 10));
}

#[test]
fn what_the_decoder_cannot_do_is_refused_by_name() {
    for (extra, named) in [
        (json!({"architectures": ["GPT2LMHeadModel"]}), "GPT2LMHeadModel is not supported; supported are Llama"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "\"yarn\""),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"quantization_config": {"quant_method": "awq"}}), "quantization_config"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads 3"),
        (json!({"hidden_size": 18}), "hidden_size 18"),
        (json!({"head_dim": 5}), "head_dim 5"),
        (json!({"vocab_size": "many"}), "config.json"),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5"),
        (json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping 50"),
        (json!({"architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": 50.0}), "outside Gemma 2"),
        (json!({"architectures": ["Gemma2ForCausalLM"], "final_logit_softcapping": 0.0}), "must be positive"),
        (json!({"architectures": ["Gemma2ForCausalLM"], "hidden_activation": "gelu"}), "hidden_activation \"gelu\""),
        (json!({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": true}), "bidirectional"),
        (json!({"architectures": ["Gemma3ForConditionalGeneration"]}), "Gemma3ForConditionalGeneration is not"),
        (json!({"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.1}), "turns 0 of 4 elements"),
        (
            json!({"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "longrope", "short_factor": [1.0],
            "long_factor": [1.0]}}),
            "a short_factor of 2 positive numbers",
        ),
        (json!({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]}), "no_rope_layers has 1 entries"),
        (
            json!({"architectures": ["SmolLM3ForCausalLM"], "layer_types": ["full_attention", "sliding_attention"]}),
            "use_sliding_window false",
        ),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), "each kind of layer"),
    ] {
        let error = parse(extra).unwrap_err();
        assert!(error.message().contains(named), "{}", error.message());
    }
    assert!(DecoderConfig::parse("{}").unwrap_err().message().contains("model_type"));
}

#[test]
fn every_size_is_refused_by_name_above_its_limit_before_anything_is_made_of_it() {
    // What a size costs when it is believed: `num_hidden_layers` alone asked for 17 terabytes.
    let huge = 1_000_000_000_000_u64;
    let largest = u64::MAX;
    for name in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
        "max_position_embeddings",
        "sliding_window",
    ] {
        for value in [huge, largest] {
            let mut extra = json!({ "num_key_value_heads": null });
            extra[name] = value.into();
            let error = parse(extra).unwrap_err();
            let said = error.message().contains(name) && error.message().contains("is the most");
            // A size that is no usize at all has its own sentence.
            assert!(said || error.message().contains("invalid value"), "{name}: {error}");
        }
        let mut extra = json!({});
        extra[name] = 0.into();
        if name != "sliding_window" {
            assert!(parse(extra).unwrap_err().message().contains('0'), "{name}");
        }
    }
    for (extra, said) in [
        (
            json!({"num_attention_heads": 4096, "num_key_value_heads": 1, "head_dim": 16384}),
            "num_attention_heads × head_dim is 67108864; 524288 is the most",
        ),
        (
            json!({"num_hidden_layers": 1024, "hidden_size": 131_072, "intermediate_size": 1_048_576, "head_dim": 2}),
            "its sizes multiply to",
        ),
        (json!({"eos_token_id": vec![1; 1025]}), "the number of eos_token_id is 1025; 1024 is the most"),
        (json!({"architectures": ["MistralForCausalLM"], "sliding_window": 0}), "sliding_window is 0"),
        (json!({"rope_theta": -1.0}), "rope_theta -1 must be positive"),
        (json!({"rope_theta": 1e300}), "rope_theta inf must be positive"),
        (json!({"rms_norm_eps": -1e-5}), "rms_norm_eps"),
        (json!({"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": 0.0}), "query_pre_attn_scalar"),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": huge}}),
            "original_max_position_embeddings between 1 and",
        ),
    ] {
        let error = parse(extra).unwrap_err();
        assert!(error.message().contains(said), "{error}");
    }
}

#[test]
fn a_file_that_is_too_large_or_too_deep_is_refused_and_not_quoted_whole() {
    let padded = format!("{}{}", minimal(json!({})), " ".repeat(1 << 20));
    let error = DecoderConfig::parse(&padded).unwrap_err();
    assert!(error.message().contains("more than the 1048576 bytes"), "{error}");
    let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    assert!(DecoderConfig::parse(&deep).unwrap_err().message().contains("recursion limit"));
    for extra in [json!({"hidden_act": "x".repeat(500_000)}), json!({"vocab_size": "x".repeat(500_000)})] {
        let error = parse(extra).unwrap_err();
        assert!(error.message().len() < 1000, "{}", error.message().len());
    }
    let unknown = json!({"architectures": ["x".repeat(500_000)]});
    assert!(parse(unknown).unwrap_err().message().len() < 1500);
}
