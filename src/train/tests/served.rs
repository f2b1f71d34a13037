//! What training leaves, served: a hundred adapters of every kind over one base, asked from many threads at once,
//! within less memory than they take together.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use candle_core::Tensor;

use super::*;
use crate::artifacts::write_adapter;
use crate::infer::{Adapter, Answer, Capacity, Engine, Options, Prompt, Target};
use crate::models::{DecoderConfig, Precision, Projection};
use crate::rng::Rng;
use crate::tune::{
    AdapterConfig, Arrangement, LlamaAdapterConfig, LoraConfig, PrefixConfig, PromptConfig, TuningMethod,
    VirtualTokens, adapter_bytes,
};

const ADAPTERS: usize = 100;

/// The base with its tokenizer, its weights in bf16 as checkpoints are published.
fn published(dir: &Path) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama");
    let to = dir.join("base");
    Decoder::load(&from, &Device::Cpu, Form::Frozen).unwrap().save(&to, Precision::Bf16).unwrap();
    for entry in std::fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("tokenizer") {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    to
}

/// The method of the adapter with this number: mixed kinds, ranks and targets.
fn method(number: usize) -> TuningMethod {
    let lora = |rank, magnitudes, targets: &[Projection]| LoraConfig {
        rank,
        magnitudes,
        rank_stabilized: number.is_multiple_of(4),
        targets: targets.to_vec(),
        ..Default::default()
    };
    let begin = VirtualTokens::Random;
    match number % 10 {
        0 | 1 => TuningMethod::Lora(lora(1 + number % 17, false, &Projection::ALL)),
        2 => TuningMethod::Lora(lora(2, false, &[Projection::Query, Projection::Value])),
        3 => TuningMethod::Lora(lora(1 + number % 5, true, &Projection::ALL)),
        4 => TuningMethod::Qlora(lora(4, false, &[Projection::Down])),
        5 => TuningMethod::Adapter(AdapterConfig {
            reduction_factor: 4.0,
            ..AdapterConfig::of(Arrangement::ALL[number / 10 % 3])
        }),
        6 => TuningMethod::Prefix(PrefixConfig { tokens: 1 + number % 7, begin, projection: None }),
        7 => TuningMethod::Prompt(PromptConfig { tokens: 1 + number % 5, begin }),
        8 => TuningMethod::LlamaAdapter(LlamaAdapterConfig { length: 4, layers: None }),
        _ => TuningMethod::Head,
    }
}

/// Writes the adapter of this number with values everywhere; where it lies.
fn written(dir: &Path, decoder: &Decoder, number: usize) -> PathBuf {
    let method = method(number);
    let built = method.build(decoder, None, number as u64).unwrap();
    for one in built.trainables() {
        let noise = Rng::new(number as u64, &one.name, 1).normals(one.var.elem_count(), 0.1);
        let noise = Tensor::from_vec(noise, one.var.dims(), &Device::Cpu).unwrap();
        one.var.set(&(one.var.as_detached_tensor() + noise).unwrap()).unwrap();
    }
    let folder = dir.join(format!("adapter-{number}"));
    write_adapter(&folder, "a.base", decoder.config(), &method, &built.artifact().unwrap()).unwrap();
    folder
}

/// One request of the load: some of the adapters, and the base too.
fn request(number: usize, base_dir: &Path, adapters: &[PathBuf]) -> (Target, Prompt, Options) {
    let which = number * 37 % (ADAPTERS + 1);
    let adapter = adapters.get(which).map(|dir| Adapter { id: format!("adapter-{which}"), dir: dir.clone() });
    let target = Target { base_dir: base_dir.to_path_buf(), context_length: None, adapter };
    let texts = ["the cat", "the hat sat", "a mat", "the", "sat on the mat the cat", "hat"];
    let options = Options {
        max_tokens: 3 + number % 14,
        temperature: if number.is_multiple_of(3) { 0.0 } else { 1.2 },
        top_k: number.is_multiple_of(5).then_some(20),
        seed: number as u64,
        ..Default::default()
    };
    (target, Prompt::Text(format!("<|begin|>{}", texts[number % texts.len()])), options)
}

fn ask(engine: &Engine, (target, prompt, options): &(Target, Prompt, Options)) -> Answer {
    engine.answer(target, prompt, options, &AtomicBool::new(false), &mut |_| ()).unwrap()
}

#[test]
fn a_hundred_adapters_of_every_kind_answer_many_threads_as_each_answers_alone_within_their_memory() {
    let dir = tempfile::tempdir().unwrap();
    let base_dir = published(dir.path());
    assert_eq!(DecoderConfig::read(&base_dir).unwrap().max_positions, 64);
    let decoder = Decoder::load(&base_dir, &Device::Cpu, Form::Frozen).unwrap();
    let adapters: Vec<PathBuf> = (0..ADAPTERS).map(|number| written(dir.path(), &decoder, number)).collect();
    let sizes: Vec<u64> = adapters.iter().map(|dir| adapter_bytes(dir).unwrap()).collect();
    let (all, largest) = (sizes.iter().sum::<u64>(), sizes.iter().max().copied().unwrap());
    let budget = all / 8;
    assert!(budget > 2 * largest, "{budget} bytes of {all}, the largest {largest}");

    let requests: Vec<_> = (0..3 * ADAPTERS).map(|number| request(number, &base_dir, &adapters)).collect();
    let plenty = Engine::new(Device::Cpu, Capacity::default(), None);
    let alone: Vec<Answer> = requests.iter().map(|request| ask(&plenty, request)).collect();
    assert_eq!(plenty.adapter_bytes(), all);

    let engine = Engine::new(Device::Cpu, Capacity { adapters: budget, ..Capacity::default() }, None);
    let (next, most) = (AtomicUsize::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..12 {
            let (engine, requests, alone, next, most) = (&engine, &requests, &alone, &next, &most);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(request) = requests.get(number) else { break };
                    let (target, prompt, options) = request;
                    if number % 12 == thread {
                        // One whose reader leaves after the first word.
                        let gone = AtomicBool::new(false);
                        let leave = &mut |_: crate::infer::Piece<'_>| gone.store(true, Ordering::Relaxed);
                        let left = engine.answer(target, prompt, options, &gone, leave);
                        assert!(left.is_ok() || left.unwrap_err().message().contains("cancelled"));
                    }
                    assert_eq!(ask(engine, request), alone[number], "request {number}");
                    most.fetch_max(engine.adapter_bytes(), Ordering::Relaxed);
                }
            });
        }
    });
    let most = most.into_inner();
    assert!(most > budget / 2 && most <= budget, "{most} bytes of {budget}");
}
