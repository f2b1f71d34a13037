//! Every tuning method against the library that defines it (`tests/golden/methods.py`): from the library's
//! own start three steps give its losses and its gradients, what it trained answers here as it does there,
//! and what we write is what it wrote. With `TUNESMITH_GOLDEN` set the cases are those of a fresh draw, and
//! what we trained is left beside them for the library to load (`tests/golden/run`).

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::steps::corpus;
use super::*;
use crate::artifacts::write_adapter;
use crate::infer::{Batch, Request, Sampling, complete};
use crate::models::{DecoderConfig, Form, Frozen, Precision, Tokenizer, Tuning, Weights, save_tensors};
use crate::train::backprop::{Gradients, MicroBatch, loss_and_gradients};
use crate::train::identity::RunIdentity;
use crate::train::learner::Steps;
use crate::train::objective::Criteria;
use crate::train::objective::golden::{fresh, read_expected, root, values, worst};
use crate::train::run::Run;
use crate::tune::{Method, Prefix, PrefixConfig, VirtualTokens, read_adapter};

const CASES: [&str; 15] = [
    "lora_continued",
    "dora",
    "qlora",
    "prefix",
    "prefix_projection",
    "prompt",
    "llama_adapter",
    "llama_adapter_top",
    "adapter_houlsby",
    "adapter_pfeiffer",
    "adapter_parallel",
    "adapter_gelu",
    "head",
    "head_tied",
    "full",
];

/// `expected.json` of a case.
#[derive(Deserialize)]
struct Expected {
    base: String,
    batch: Vec<(Vec<u32>, Vec<bool>)>,
    losses: Vec<f64>,
    greedy: Vec<u32>,
    records: Vec<Vec<u32>>,
}

struct Case {
    name: &'static str,
    expected: Expected,
    decoder: Decoder,
}

impl Case {
    fn read(name: &'static str) -> Self {
        let expected: Expected = read_expected(&format!("methods/{name}"));
        let form = match name {
            "qlora" => Form::Nf4,
            "full" => Form::Trainable,
            _ => Form::Frozen,
        };
        let decoder = Decoder::load(&root().join("models").join(&expected.base), &Device::Cpu, form).unwrap();
        Self { name, expected, decoder }
    }

    fn file(&self, name: &str) -> PathBuf {
        root().join("methods").join(self.name).join(name)
    }

    fn weights(&self, name: &str) -> Weights {
        Weights::open_file(&self.file(name)).unwrap()
    }

    fn base(&self) -> &DecoderConfig {
        self.decoder.config()
    }

    /// The method as the library began with it, and the plan's settings for it.
    fn start(&self) -> (TuningMethod, Box<dyn Method>) {
        match self.name {
            "full" => (TuningMethod::Full, TuningMethod::Full.build(&self.decoder, None, 0).unwrap()),
            "prefix_projection" => {
                let config = PrefixConfig { tokens: 5, begin: VirtualTokens::Random, projection: Some(24) };
                let prefix = Prefix::new(&self.decoder, &config, None, 0).unwrap();
                let encoder = self.weights("before/encoder.safetensors");
                for one in prefix.trainables() {
                    one.var.set(&cut(&encoder, self.base(), &one.name, one.var.dims())).unwrap();
                }
                (TuningMethod::Prefix(config), Box::new(prefix))
            }
            _ => {
                let adapter = read_adapter(&self.file("before"), self.base(), &Device::Cpu, true).unwrap();
                let method = match adapter.method {
                    TuningMethod::Lora(config) if self.name == "qlora" => TuningMethod::Qlora(config),
                    other => other,
                };
                (method, adapter.tuning)
            }
        }
    }

    /// Logits of the records' own tokens.
    fn logits(&self, tuning: &dyn Tuning) -> Tensor {
        let records = &self.expected.records;
        let lengths: Vec<usize> = records.iter().map(Vec::len).collect();
        let rows = self.decoder.logits(&records.concat(), &lengths, tuning).unwrap();
        let (mut kept, mut start) = (Vec::new(), 0);
        for length in lengths {
            start += tuning.soft_tokens();
            kept.push(rows.narrow(0, start, length).unwrap());
            start += length;
        }
        Tensor::cat(&kept, 0).unwrap().detach()
    }

    /// As many greedy tokens as the library's, with the cache.
    fn greedy(&self, tuning: &dyn Tuning) -> Vec<u32> {
        self.said(tuning, &[])
    }

    /// As many greedy tokens as the library's, or up to the first of `ends`.
    fn said(&self, tuning: &dyn Tuning, ends: &[u32]) -> Vec<u32> {
        let max_tokens = self.expected.greedy.len();
        let likeliest = Sampling { max_tokens, temperature: 0.0, top_p: 1.0, top_k: None, seed: 0 };
        let request = Request { prompt: &self.expected.records[0], ways: vec![likeliest] };
        let mut batch = Batch::new(&self.decoder, tuning, ends, 64);
        complete(&mut batch, &[request], 1, &|| true).unwrap().unwrap().remove(0).remove(0).tokens
    }
}

/// The part of the library's tensors that is one of ours: it keeps all layers' keys and values in one, and
/// the last map of the net that makes them.
fn cut(weights: &Weights, base: &DecoderConfig, name: &str, shape: &[usize]) -> Tensor {
    let width = base.kv_heads * base.head_dim;
    let part = |name: &str, dim: usize, start: usize, count: usize| {
        let whole = weights.get(name, weights.shape(name).unwrap(), &Device::Cpu).unwrap();
        whole.narrow(dim, start, count).unwrap().contiguous().unwrap()
    };
    let pieces: Vec<&str> = name.split('.').collect();
    let found = match pieces[..] {
        ["layers", layer, what @ ("keys" | "values")] => {
            let place = 2 * layer.parse::<usize>().unwrap() + usize::from(what == "values");
            part("prompt_embeddings", 1, place * width, width)
        }
        ["transform", "2", layer, what] => {
            part(&format!("transform.2.{what}"), 0, 2 * width * layer.parse::<usize>().unwrap(), 2 * width)
        }
        _ => weights.get(name, shape, &Device::Cpu).unwrap(),
    };
    assert_eq!(found.dims(), shape, "{name}");
    found
}

fn batch(records: &[(Vec<u32>, Vec<bool>)]) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (tokens, learn) in records {
        let next = tokens[1..].iter().zip(&learn[1..]).map(|(token, learn)| learn.then_some(*token));
        batch.labels.extend(next.chain([None]));
        batch.records.push(batch.lengths.len());
        batch.lengths.push(tokens.len());
        batch.tokens.extend(tokens);
    }
    batch
}

#[test]
fn gradients_of_every_method_equal_those_of_its_library() {
    for name in CASES.into_iter().filter(|name| *name != "full") {
        let case = Case::read(name);
        let (_, method) = case.start();
        let mut gradients = Gradients::new(method.trainables());
        let batch = batch(&case.expected.batch);
        let sum =
            loss_and_gradients(&case.decoder, method.trainables(), &*method, &batch, &mut gradients, true).unwrap();
        let expected = case.weights("gradients.safetensors");
        for (one, gradient) in method.trainables().iter().zip(gradients.sums()) {
            let got = (gradient.as_ref().unwrap() / sum.labelled as f64).unwrap();
            let want = cut(&expected, case.base(), &one.name, one.var.dims());
            let worst = worst(&got, &want, 0.0);
            assert!(worst < 1e-4, "{name}: the gradient of {} is off by {worst:e}", one.name);
        }
    }
}

#[test]
fn three_steps_of_every_method_give_the_losses_of_its_library_and_an_artifact_that_answers_alike() {
    for name in CASES {
        let case = Case::read(name);
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus(dir.path(), &case.expected.batch);
        let (method, tuning) = case.start();
        let settings = [
            ("learningRate", "0.01"),
            ("learningRateSchedule", "constant"),
            ("maxGradientNorm", "0"),
            ("batchSize", "3"),
        ];
        let plan = Plan { start: Some(case.file("before")), ..plan(dir.path(), &settings) };
        std::fs::create_dir_all(plan.checkpoints()).unwrap();
        let resolved = resolved(&plan);
        let mut run = Run::resume(
            &plan,
            &case.decoder,
            (tuning, Criteria::sft(0)),
            (&corpus, &[]),
            resolved,
            &RunIdentity::named("run"),
            None,
        )
        .unwrap();
        let (mut logits, mut greedy, mut tensors) = (None, Vec::new(), Vec::new());
        for (step, expected) in case.expected.losses.iter().enumerate() {
            if step == 3 {
                logits = Some(case.logits(&*run.learner.method));
                greedy = case.greedy(&*run.learner.method);
                tensors =
                    run.learner.method.artifact().unwrap().into_iter().map(|(n, t)| (n, t.copy().unwrap())).collect();
                if let (Some(root), "full") = (fresh(), name) {
                    case.decoder.save(&root.join("ours/full/artifact"), Precision::F32).unwrap();
                }
            }
            let loss = run.step(&mut (), &StopFlag::default()).unwrap().unwrap().loss;
            assert!((loss - expected).abs() < 1e-4, "{name} before step {step}: {loss}, the library {expected}");
        }
        let logits = logits.unwrap();
        let want = case.weights("after.safetensors").get("logits", logits.dims(), &Device::Cpu).unwrap();
        // Adam turns a gradient near zero into a step by its sign: a few weights may go another way.
        let difference = worst(&logits, &want, 1.0);
        assert!(difference < 2e-3, "{name}: after three steps logits differ by {difference:e}");
        if fresh().is_none() {
            assert_eq!(greedy, case.expected.greedy, "{name}");
        }

        let Some(root) = fresh() else { continue };
        let folder = root.join("ours").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        if name != "full" {
            write_adapter(&folder.join("artifact"), "a.b", case.base(), &method, &tensors).unwrap();
        }
        save_tensors(&folder.join("ours.safetensors"), &[("logits".into(), logits)], Precision::F32).unwrap();
        std::fs::write(folder.join("ours.json"), serde_json::json!({ "greedy": greedy }).to_string()).unwrap();
    }
}

#[test]
fn what_a_library_trained_answers_here_as_it_does_there() {
    for name in CASES {
        let case = Case::read(name);
        let want = case.weights("after.safetensors");
        let (logits, greedy) = if name == "full" {
            let decoder = Decoder::load(&case.file("after"), &Device::Cpu, Form::Frozen).unwrap();
            let case = Case { decoder, ..case };
            (case.logits(&Frozen), (case.greedy(&Frozen), case.expected.greedy))
        } else {
            let adapter = read_adapter(&case.file("after"), case.base(), &Device::Cpu, false).unwrap();
            assert!(adapter.tuning.trainables().is_empty());
            let tuning: &dyn Tuning = &*adapter.tuning;
            served(&case, tuning);
            (case.logits(tuning), (case.greedy(tuning), case.expected.greedy))
        };
        let difference = worst(&logits, &want.get("logits", logits.dims(), &Device::Cpu).unwrap(), 1.0);
        assert!(difference < 1e-5, "{name}: logits differ by {difference:e}");
        assert_eq!(greedy.0, greedy.1, "{name}");
    }
}

/// The path of InvokeModel and Converse says the same, up to the token that ends an answer.
fn served(case: &Case, tuning: &dyn Tuning) {
    // It belongs to no draw: all models of these cases have its vocabulary.
    let tokenizer = Tokenizer::read(&base()).unwrap();
    let expected = &case.expected.greedy;
    let said = case.said(tuning, tokenizer.ends());
    let end = expected.iter().position(|token| tokenizer.ends().contains(token)).unwrap_or(expected.len());
    assert_eq!(said, expected[..expected.len().min(end + 1)], "{}", case.name);
}

/// Names, shapes and configuration are the library's, field by field, except those that say nothing of the numbers.
#[test]
fn what_we_write_is_what_the_library_wrote() {
    for name in CASES.into_iter().filter(|name| *name != "full") {
        let case = Case::read(name);
        let adapter = read_adapter(&case.file("after"), case.base(), &Device::Cpu, true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let method = adapter.method.clone();
        write_adapter(dir.path(), "a.b", case.base(), &method, &adapter.tuning.artifact().unwrap()).unwrap();
        let file = crate::tune::weight_file(dir.path());
        let name_of_file = file.file_name().unwrap().to_str().unwrap();
        let (written, theirs) = (Weights::open_file(&file).unwrap(), case.weights(&format!("after/{name_of_file}")));
        assert_eq!(written.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>(), "{name}");
        for tensor in written.names() {
            let shape = theirs.shape(tensor).unwrap();
            let bits = |weights: &Weights| values(&weights.get(tensor, shape, &Device::Cpu).unwrap());
            assert_eq!(bits(&written), bits(&theirs), "{name}: {tensor}");
        }
        let json = |path: &Path| -> serde_json::Value {
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
        };
        let (written, theirs) =
            (json(&dir.path().join("adapter_config.json")), json(&case.file("after/adapter_config.json")));
        for (field, value) in written.as_object().unwrap() {
            let silent = ["base_model_name_or_path", "model_name", "init_lora_weights", "target_modules"];
            // The flat form is the same whatever made it.
            let made = name == "prefix_projection" && ["prefix_projection", "encoder_hidden_size"].contains(&&**field);
            if !silent.contains(&field.as_str()) && !made {
                assert_eq!(Some(value), theirs.get(field), "{name}: {field}");
            }
        }
    }
}
