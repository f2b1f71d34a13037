//! A batch says what its sequences would say alone, bit for bit.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::super::{Completion, Request, complete};
use super::*;
use crate::error::Kind;
use crate::kernels::to_bf16;
use crate::models::{Form, Frozen, Precision, Projection, Tokenizer, save_tensors};
use crate::tune::{
    self, AdapterConfig, Arrangement, LlamaAdapterConfig, LoraConfig, PrefixConfig, PromptConfig, TuningMethod,
    VirtualTokens, read_adapter,
};

struct Model {
    decoder: Decoder,
    tokenizer: Tokenizer,
}

fn model(family: &str) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models").join(family);
    let decoder = Decoder::load(&dir, &Device::Cpu, Form::Frozen).unwrap();
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama");
    Model { decoder, tokenizer: Tokenizer::read(&llama).unwrap() }
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![5, 9, 30, 7], vec![11], vec![4, 4, 4, 90, 17, 3, 60, 2, 44], vec![70, 8]]
}

fn greedy(max_tokens: usize) -> Sampling {
    Sampling { max_tokens, temperature: 0.0, top_p: 1.0, top_k: None, seed: 0 }
}

fn wild(max_tokens: usize, seed: u64) -> Sampling {
    Sampling { max_tokens, temperature: 1.5, top_p: 1.0, top_k: None, seed }
}

/// What a prompt is answered when nobody else is there.
fn alone(model: &Model, tuning: &dyn Tuning, prompt: &[u32], way: Sampling) -> Completion {
    together(model, tuning, &[Request { prompt, ways: vec![way] }], 1).remove(0).remove(0)
}

/// The same bits: of the tokens and of their probabilities.
#[track_caller]
fn assert_same(got: &Completion, expected: &Completion, what: &str) {
    assert_eq!(got.tokens, expected.tokens, "{what}");
    let bits = |one: &Completion| one.log_probabilities.iter().map(|one| one.to_bits()).collect::<Vec<_>>();
    assert_eq!((bits(got), bits(got).len()), (bits(expected), got.tokens.len()), "{what}");
}

fn together(model: &Model, tuning: &dyn Tuning, requests: &[Request<'_>], at_once: usize) -> Vec<Vec<Completion>> {
    let ends = model.tokenizer.ends();
    let mut batch = Batch::new(&model.decoder, tuning, ends, model.decoder.config().max_positions);
    let done = complete(&mut batch, requests, at_once, &|| true).unwrap().unwrap();
    assert!(batch.is_empty() && batch.rooms.rows() == 0, "everything was given back");
    done
}

fn assert_as_alone(model: &Model, tuning: &dyn Tuning, what: &str) {
    let prompts = prompts();
    let requests: Vec<Request<'_>> = prompts
        .iter()
        .enumerate()
        .map(|(n, prompt)| Request { prompt, ways: vec![greedy(20 + n), wild(12, n as u64), wild(70, 90 + n as u64)] })
        .collect();
    for at_once in [1, 5, 100] {
        let answers = together(model, tuning, &requests, at_once);
        for (request, answers) in requests.iter().zip(answers) {
            for (way, answer) in request.ways.iter().zip(answers) {
                let expected = alone(model, tuning, request.prompt, *way);
                assert_same(&answer, &expected, &format!("{what}, {at_once} at once, {way:?}"));
            }
        }
    }
}

#[test]
fn a_batch_answers_token_for_token_as_each_sequence_alone_on_every_kind_of_model() {
    // Sliding windows, soft caps, head norms, fused maps, two rotaries.
    for family in ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"] {
        assert_as_alone(&model(family), &Frozen, family);
    }
}

/// Every kind of method, with ranks, targets and places of its own.
fn methods() -> Vec<(TuningMethod, Value)> {
    let lora = |rank, targets: &[Projection], magnitudes, rank_stabilized| {
        let config = LoraConfig { rank, magnitudes, rank_stabilized, targets: targets.to_vec(), ..Default::default() };
        let file = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 16, "use_dora": magnitudes,
            "use_rslora": rank_stabilized});
        (TuningMethod::Lora(config), file)
    };
    let bottleneck = |arrangement| {
        let config = AdapterConfig { reduction_factor: 3.0, ..AdapterConfig::of(arrangement) };
        let file = json!({"name": "tunesmith", "config": {"mh_adapter": arrangement == Arrangement::Houlsby,
            "output_adapter": true, "is_parallel": arrangement == Arrangement::Parallel, "reduction_factor": 3.0,
            "non_linearity": config.activation.name(), "scaling": config.scaling,
            "original_ln_before": arrangement == Arrangement::Pfeiffer}});
        (TuningMethod::Adapter(config), file)
    };
    let begin = VirtualTokens::Random;
    let virtual_tokens = |kind: &str, tokens: usize| json!({"peft_type": kind, "num_virtual_tokens": tokens});
    vec![
        lora(4, &Projection::ALL, false, false),
        lora(1, &[Projection::Query, Projection::Down], false, true),
        lora(16, &[Projection::Value, Projection::Output, Projection::Gate], false, false),
        lora(3, &Projection::ALL, true, false),
        bottleneck(Arrangement::Houlsby),
        bottleneck(Arrangement::Pfeiffer),
        bottleneck(Arrangement::Parallel),
        (
            TuningMethod::Prefix(PrefixConfig { tokens: 5, begin: begin.clone(), projection: None }),
            virtual_tokens("PREFIX_TUNING", 5),
        ),
        (TuningMethod::Prompt(PromptConfig { tokens: 3, begin }), virtual_tokens("PROMPT_TUNING", 3)),
        (
            TuningMethod::LlamaAdapter(LlamaAdapterConfig { length: 3, layers: Some(1) }),
            json!({"peft_type": "ADAPTION_PROMPT", "adapter_len": 3, "adapter_layers": 1}),
        ),
        (TuningMethod::Head, json!({"peft_type": "LN_TUNING", "target_modules": ["lm_head"]})),
    ]
}

/// The method with values everywhere, as it is read to answer with.
fn trained(decoder: &Decoder, method: &TuningMethod, file: &Value, seed: u64) -> tune::Adapter {
    let built = method.build(decoder, None, seed).unwrap();
    for one in built.trainables() {
        let noise = crate::rng::Rng::new(seed, &one.name, 1).normals(one.var.elem_count(), 0.2);
        let noise = Tensor::from_vec(noise, one.var.dims(), &Device::Cpu).unwrap();
        one.var.set(&(one.var.as_detached_tensor() + noise).unwrap()).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let weights = if matches!(method, TuningMethod::Adapter(_)) { "adapter" } else { "adapter_model" };
    let weights = dir.path().join(format!("{weights}.safetensors"));
    save_tensors(&weights, &built.artifact().unwrap(), Precision::F32).unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), file.to_string()).unwrap();
    read_adapter(dir.path(), decoder.config(), &Device::Cpu, false).unwrap()
}

/// The base in each of its storages: f32, bf16, and NF4.
fn storages(family: &str) -> Vec<(&'static str, Model)> {
    let plain = model(family);
    let dir = tempfile::tempdir().unwrap();
    plain.decoder.save(dir.path(), Precision::Bf16).unwrap();
    let load = |form| {
        let decoder = Decoder::load(dir.path(), &Device::Cpu, form).unwrap();
        Model { decoder, tokenizer: model(family).tokenizer }
    };
    vec![("f32", plain), ("bf16", load(Form::Served)), ("nf4", load(Form::Nf4))]
}

#[test]
fn sequences_of_different_methods_decode_together_and_each_as_it_would_alone() {
    // Fused maps and biases are other families'.
    for (family, some) in [("llama", 11), ("qwen2", 9), ("phi3", 0)] {
        for (storage, model) in storages(family) {
            let fits = |method: &TuningMethod| method.check(model.decoder.config()).is_ok();
            let methods: Vec<_> = methods().into_iter().filter(|(method, _)| fits(method)).collect();
            assert!(methods.len() >= some, "{family} has {} methods", methods.len());
            let tunings: Vec<tune::Adapter> = methods
                .iter()
                .enumerate()
                .map(|(seed, (method, file))| trained(&model.decoder, method, file, seed as u64))
                .collect();
            let all: Vec<&dyn Tuning> =
                tunings.iter().map(|one| &*one.tuning as &dyn Tuning).chain([&Frozen as &dyn Tuning]).collect();
            let prompts = prompts();
            let way = |n: usize| if n.is_multiple_of(3) { greedy(9 + n % 7) } else { wild(4 + n % 11, n as u64) };
            let mut batch = Batch::new(&model.decoder, &Frozen, model.tokenizer.ends(), 64);
            let mut joined = Vec::new();
            let mut got: Vec<Completion> = Vec::new();
            // Two of each, which come one by one while the others are under way.
            let mut waiting = (0..2 * all.len()).map(|n| (n, all[(n * 5) % all.len()], &prompts[n % prompts.len()]));
            loop {
                if let Some((n, tuning, prompt)) = waiting.next() {
                    let asked = Asked::borrowed(tuning, 64);
                    joined.push((batch.join_as(&asked, prompt, &[way(n)], &Arc::default()).unwrap()[0], n, tuning));
                    let (tokens, log_probabilities) = (Vec::new(), Vec::new());
                    got.push(Completion { tokens, log_probabilities, stop_reason: StopReason::MaxTokens });
                }
                if batch.is_empty() {
                    break;
                }
                for drawn in batch.step().unwrap() {
                    let (_, n, _) = joined.iter().find(|(id, ..)| *id == drawn.sequence).unwrap();
                    got[*n].tokens.push(drawn.token);
                    got[*n].log_probabilities.extend(drawn.log_probability);
                }
            }
            assert_eq!(joined.len(), 2 * all.len());
            for (_, n, tuning) in joined {
                let expected = alone(&model, tuning, &prompts[n % prompts.len()], way(n));
                assert_same(&got[n], &expected, &format!("{family}, {storage}, sequence {n}"));
            }
        }
    }
}

#[test]
fn a_checkpoint_in_bf16_is_served_from_bf16_with_the_logits_of_f32() {
    let [_, (_, served), _] = storages("llama").try_into().ok().unwrap();
    let dir = tempfile::tempdir().unwrap();
    model("llama").decoder.save(dir.path(), Precision::Bf16).unwrap();
    let plain = Decoder::load(dir.path(), &Device::Cpu, Form::Frozen).unwrap();
    assert!(served.decoder.bytes() < plain.bytes() * 3 / 4, "{} {}", served.decoder.bytes(), plain.bytes());
    let logits = |decoder: &Decoder| -> Vec<f32> {
        let text: Vec<u32> = (0..90).map(|n| n * 7 % 260).collect();
        decoder.logits(&text, &[20, 70], &Frozen).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    for (got, expected) in logits(&served.decoder).iter().zip(logits(&plain)) {
        assert!((got - expected).abs() < 1e-4, "{got} {expected}");
    }
    // One that bf16 would change stays as it is.
    let served = Decoder::load(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama"),
        &Device::Cpu,
        Form::Served,
    );
    let head = served.unwrap().head_values().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(head.iter().any(|value| to_bf16(*value) != *value));
}

#[test]
fn what_goes_wrong_for_one_sequence_ends_that_one_alone() {
    let model = model("llama");
    let (method, file) = &methods()[0];
    let broken = trained(&model.decoder, method, file, 1);
    // Values that are no numbers come out of a head that holds some.
    struct Broken(Tensor);
    impl Tuning for Broken {
        fn head(&self) -> Option<&Tensor> {
            Some(&self.0)
        }
    }
    struct Panicking {
        rows: usize,
    }
    impl Tuning for Panicking {
        fn after_mlp(&self, _: usize, residual: &Tensor, added: Tensor) -> candle_core::Result<Tensor> {
            assert!(residual.dim(0).unwrap() >= self.rows, "a step of decoding");
            Ok(added)
        }
    }
    let no_numbers = Broken((model.decoder.head_values().unwrap() * f64::NAN).unwrap());
    let prompts = prompts();
    let mut batch = Batch::new(&model.decoder, &Frozen, &[], 64);
    let mut join = |tuning| {
        let asked = Asked::borrowed(tuning, 64);
        batch.join_as(&asked, &prompts[0], &[greedy(6)], &Arc::default()).unwrap()[0]
    };
    let good = [join(&*broken.tuning), join(&Frozen)];
    let bad = [join(&no_numbers), join(&Panicking { rows: 2 })];
    let (mut failed, mut said) = (Vec::new(), vec![Vec::new(); 2]);
    while !batch.is_empty() {
        for (id, drawn) in batch.advance(1, &|| ()) {
            match drawn {
                Ok(drawn) => {
                    let at = good.iter().position(|one| *one == id);
                    if let Some(at) = at {
                        said[at].push(drawn.token);
                    }
                }
                Err(error) => failed.push((id, error.kind())),
            }
        }
    }
    assert_eq!(failed, [(bad[0], Kind::Model), (bad[1], Kind::Internal)]);
    let mut ends = Batch::new(&model.decoder, &*broken.tuning, &[], 64);
    let expected = complete(&mut ends, &[Request { prompt: &prompts[0], ways: vec![greedy(6)] }], 1, &|| true);
    assert_eq!(said[0], expected.unwrap().unwrap()[0][0].tokens);
    assert_eq!(said[1].len(), 6);
}

#[test]
fn what_is_drawn_does_not_depend_on_who_else_is_in_the_batch() {
    let model = model("llama");
    let prompts = prompts();
    let one = [Request { prompt: &prompts[2], ways: vec![wild(30, 7)] }];
    let alone = together(&model, &Frozen, &one, 8)[0][0].clone();
    let many: Vec<Request<'_>> =
        prompts.iter().map(|prompt| Request { prompt, ways: vec![wild(9, 1), wild(30, 7), wild(30, 8)] }).collect();
    let among = together(&model, &Frozen, &many, 8)[2][1].clone();
    assert_same(&among, &alone, "among others");
}

#[test]
fn log_probabilities_are_those_of_one_pass_over_the_whole_text() {
    let model = model("llama");
    let prompts = prompts();
    let answer = &together(&model, &Frozen, &[Request { prompt: &prompts[0], ways: vec![wild(25, 3)] }], 4)[0][0];
    let text = [&prompts[0][..], &answer.tokens].concat();
    let logits: Vec<Vec<f32>> = model.decoder.logits(&text, &[text.len()], &Frozen).unwrap().to_vec2().unwrap();
    let sampler = Sampler::new(&wild(1, 0));
    for (n, (token, given)) in answer.tokens.iter().zip(&answer.log_probabilities).enumerate() {
        let expected = sampler.log_probability(&logits[prompts[0].len() - 1 + n], *token);
        assert!((given - expected).abs() < 1e-4, "token {n}: {given}, expected {expected}");
    }
}

#[test]
fn a_sequence_may_leave_and_another_take_its_room_while_the_rest_goes_on() {
    let model = model("llama");
    let prompts = prompts();
    let mut batch = Batch::new(&model.decoder, &Frozen, &[], 64);
    let first = batch.join(&prompts[0], &[greedy(50), greedy(50)]).unwrap();
    let mut kept = Vec::new();
    for step in 0..10 {
        if step == 3 {
            batch.leave(first[0]);
            batch.join(&prompts[2], &[wild(50, 2)]).unwrap();
        }
        let drawn = batch.step().unwrap();
        assert_eq!(drawn.len(), 2);
        kept.extend(drawn.iter().filter(|one| one.sequence == first[1]).map(|one| one.token));
    }
    assert_eq!(batch.len(), 2);
    let mut whole = Batch::new(&model.decoder, &Frozen, &[], 64);
    whole.join(&prompts[0], &[greedy(10)]).unwrap();
    let expected: Vec<u32> = (0..10).map(|_| whole.step().unwrap()[0].token).collect();
    assert_eq!(kept, expected);
}

#[test]
fn an_answer_ends_where_it_may_go_on_no_longer_and_a_prompt_without_room_is_refused() {
    let model = model("llama");
    let mut batch = Batch::new(&model.decoder, &Frozen, &[], 12);
    batch.join(&prompts()[2], &[greedy(50), greedy(2)]).unwrap();
    let ends: Vec<Vec<Option<StopReason>>> =
        (0..3).map(|_| batch.step().unwrap().iter().map(|one| one.ended).collect()).collect();
    assert_eq!(
        ends,
        [vec![None, None], vec![None, Some(StopReason::MaxTokens)], vec![Some(StopReason::ContextWindow)]]
    );
    assert!(batch.join(&[1; 12], &[greedy(1)]).unwrap_err().message().contains("leaves no room"));
    assert!(batch.join(&[], &[greedy(1)]).is_err());
}
