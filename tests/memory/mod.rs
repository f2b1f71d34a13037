//! The plan holds what the run needs: `tunesmith estimate` says how much memory a job takes, `tunesmith
//! train` takes it, and the kernel says how much that was. And what does not fit is told beforehand.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use safetensors::Dtype;
use serde_json::{Value, json};
use tunesmith::models::{Outline, encode, write_shards};

/// A job on a random base: wide enough that the model and its passes outweigh the program.
fn job(folder: &Path, method: &str) {
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4096,
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "max_position_embeddings": 2048, "tie_word_embeddings": true});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let record = |n: usize| format!("{{\"prompt\": \"say {n}\", \"completion\": \"{}\"}}\n", "ab".repeat(60));
    // Two whole steps: some of what a step needs is there only after the first one.
    std::fs::write(folder.join("train.jsonl"), (0..12).map(record).collect::<String>()).unwrap();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama");
    let mut settings = json!({"stepCount": 2, "batchSize": 6, "tuningMethod": method});
    if method == "prefix" {
        settings["virtualTokensInit"] = json!("random");
    }
    let job = json!({"base": {"config": "config.json", "tokenizer": tokenizer, "seed": 1}, "training": "train.jsonl",
        "hyperParameters": settings, "output": "run"});
    std::fs::write(folder.join("job.json"), job.to_string()).unwrap();
}

fn tunesmith(folder: &Path, memory: u64, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
    command.args(arguments).arg(folder.join("job.json")).env("TUNESMITH_MEMORY", memory.to_string());
    command.stdin(Stdio::null());
    command
}

fn estimate(folder: &Path, memory: u64) -> (Output, Value) {
    let output = tunesmith(folder, memory, &["estimate", "--json"]).output().unwrap();
    let value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|cause| panic!("{cause}: {}", String::from_utf8_lossy(&output.stderr)));
    (output, value)
}

/// Trains, and gives the most memory that the process ever had, in bytes.
fn peak(folder: &Path, memory: u64) -> u64 {
    peak_of(tunesmith(folder, memory, &["train"]).stderr(Stdio::null()))
}

/// The most memory that a command's process ever has, in bytes.
fn peak_of(command: &mut Command) -> u64 {
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        // The high-water mark only rises, so the last look before the end is the answer.
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        if let Some(kib) = line {
            peak = kib.trim().parse::<u64>().unwrap() * 1024;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

const PLENTY: u64 = 8 << 30;

#[test]
fn the_plan_holds_what_the_run_needs_and_not_much_more() {
    for (method, tight) in [("lora", false), ("lora", true), ("qlora", true), ("full", false), ("prefix", false)] {
        let folder = tempfile::tempdir().unwrap();
        job(folder.path(), method);
        let mut memory = PLENTY;
        let (_, mut plan) = estimate(folder.path(), memory);
        assert_eq!(plan["memory"]["graphsKept"], true, "{method}");
        if tight {
            memory = plan["memory"]["neededBytes"].as_u64().unwrap() * 3 / 5;
            plan = estimate(folder.path(), memory).1;
            assert_eq!(plan["memory"]["graphsKept"], false, "{method}");
        }
        let planned = plan["memory"]["neededBytes"].as_u64().unwrap();
        assert!(planned <= memory);
        let ratio = planned as f64 / peak(folder.path(), memory) as f64;
        eprintln!("{method}, tight {tight}: the plan is {ratio:.3} of what was taken");
        assert!(
            (0.9..1.15).contains(&ratio),
            "{method}, tight {tight}: the plan is {ratio:.3} of what was taken: {plan}"
        );
    }
}

#[test]
fn a_job_that_cannot_fit_is_refused_by_estimate_and_by_train_with_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    job(folder.path(), "full");
    let memory = 100 << 20;
    let (output, plan) = estimate(folder.path(), memory);
    assert!(!output.status.success());
    assert_eq!(plan["memory"]["fits"], false);
    let message = plan["memory"]["message"].as_str().unwrap();
    assert!(message.contains("training may take 100 MiB here"), "{message}");
    assert!(message.contains("tuningMethod lora"), "{message}");
    let trained = tunesmith(folder.path(), memory, &["train"]).output().unwrap();
    assert!(!trained.status.success());
    assert!(String::from_utf8_lossy(&trained.stderr).contains(message));
}

#[test]
fn an_estimate_says_how_much_there_is_to_do_and_how_long_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    job(folder.path(), "lora");
    let (_, plan) = estimate(folder.path(), PLENTY);
    assert_eq!((&plan["data"]["records"], &plan["data"]["sampled"]), (&json!(12), &json!(1.0)));
    assert_eq!(plan["run"]["steps"], 2);
    assert!(plan["seconds"].as_f64().unwrap() > 0.0 && plan["operations"].as_f64().unwrap() > 1e9, "{plan}");
    let text = tunesmith(folder.path(), PLENTY, &["estimate"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for said in ["12 records", "2 steps", "base weights", "in all", "8.0 GiB", "GFLOP/s"] {
        assert!(text.contains(said), "{said:?} is not in:\n{text}");
    }
    assert!(!folder.path().join("run").exists(), "an estimate leaves nothing behind");
}

/// Numbers of a weight that nobody learned, of any size and without drawing them.
fn some(numbers: std::ops::Range<usize>) -> Vec<f32> {
    numbers.map(|at| ((at * 7919) % 1009) as f32 * 1e-4 - 0.05).collect()
}

#[test]
fn merging_holds_a_part_of_the_model_at_a_time() {
    const LAYERS: usize = 32;
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter, out) =
        (folder.path().join("base"), folder.path().join("adapter"), folder.path().join("merged"));
    for dir in [&base, &adapter] {
        std::fs::create_dir(dir).unwrap();
    }
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 16384,
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
        "num_key_value_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": false, "dtype": "bfloat16"});
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![16384, 512]),
        ("model.norm.weight".into(), vec![512]),
        ("lm_head.weight".into(), vec![16384, 512]),
    ];
    for layer in 0..LAYERS {
        for (part, shape) in [
            ("self_attn.q_proj", vec![512, 512]),
            ("self_attn.k_proj", vec![256, 512]),
            ("self_attn.v_proj", vec![256, 512]),
            ("self_attn.o_proj", vec![512, 512]),
            ("mlp.gate_proj", vec![1536, 512]),
            ("mlp.up_proj", vec![1536, 512]),
            ("mlp.down_proj", vec![512, 1536]),
            ("input_layernorm", vec![512]),
            ("post_attention_layernorm", vec![512]),
        ] {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    let outline = |(name, shape)| Outline { name, shape, dtype: Dtype::BF16 };
    let tensors: Vec<_> = tensors.into_iter().map(outline).collect();
    let written = write_shards(&base, &tensors, 50_000_000, &mut |tensor, at| encode(&some(at), tensor.dtype)).unwrap();
    let size: u64 = tensors.iter().map(Outline::bytes).sum();
    assert!(written.len() > 2 && size > 220 << 20);
    let lora = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]});
    std::fs::write(adapter.join("adapter_config.json"), lora.to_string()).unwrap();
    let mut parts = Vec::new();
    for layer in 0..LAYERS {
        for (module, outputs, inputs) in [("self_attn.q_proj", 512, 512), ("mlp.down_proj", 512, 1536)] {
            for (part, shape) in [("lora_A", vec![8, inputs]), ("lora_B", vec![outputs, 8])] {
                let name = format!("base_model.model.model.layers.{layer}.{module}.{part}.weight");
                parts.push(Outline { name, shape, dtype: Dtype::F32 });
            }
        }
    }
    write_shards(&adapter, &parts, u64::MAX, &mut |tensor, at| encode(&some(at), tensor.dtype)).unwrap();
    std::fs::rename(adapter.join("model.safetensors"), adapter.join("adapter_model.safetensors")).unwrap();

    let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
    command.args(["models", "merge", "--max-shard-size", "80MB"]).stdout(Stdio::null());
    command.arg("--base").arg(&base).arg("--adapter").arg(&adapter).arg("--out").arg(&out);
    let peak = peak_of(&mut command);
    eprintln!("a base of {} MiB was merged in {} MiB", size >> 20, peak >> 20);
    assert!(peak < size / 2, "{} MiB for a base of {} MiB", peak >> 20, size >> 20);
    assert!(out.join("model.safetensors.index.json").exists());
}
