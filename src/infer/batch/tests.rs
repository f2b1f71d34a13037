//! A batch says what its sequences would say alone.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::Device;

use super::super::{Completion, Options, Request, Speaker, complete};
use super::*;
use crate::models::{Form, Frozen, Tokenizer};
use crate::tune::{LoraConfig, PrefixConfig, PromptConfig, TuningMethod, VirtualTokens};

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

/// The answer of the generator that goes on with one sequence, the token that ended it left out.
fn alone(model: &Model, tuning: &dyn Tuning, prompt: &[u32], sampling: Sampling) -> Vec<u32> {
    let Sampling { max_tokens, temperature, top_p, top_k, seed } = sampling;
    let options = Options { max_tokens, temperature, top_p, top_k, seed, stop_sequences: vec![] };
    let context_length = model.decoder.config().max_positions;
    let speaker = Speaker { decoder: &model.decoder, tuning, tokenizer: &model.tokenizer, context_length };
    speaker.answer(prompt, &options, &AtomicBool::new(false), &mut |_| ()).unwrap().tokens
}

fn together(model: &Model, tuning: &dyn Tuning, requests: &[Request<'_>], at_once: usize) -> Vec<Vec<Completion>> {
    let ends = model.tokenizer.ends();
    let mut batch = Batch::new(&model.decoder, tuning, ends, model.decoder.config().max_positions);
    let done = complete(&mut batch, requests, at_once, &|| true).unwrap().unwrap();
    assert!(batch.is_empty() && batch.rooms.rows() == 0, "everything was given back");
    done
}

fn said(completion: &Completion, ends: &[u32]) -> Vec<u32> {
    completion.tokens.iter().copied().filter(|token| !ends.contains(token)).collect()
}

fn assert_as_alone(model: &Model, tuning: &dyn Tuning, what: &str) {
    let (prompts, ends) = (prompts(), model.tokenizer.ends());
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
                assert_eq!(said(&answer, ends), expected, "{what}, {at_once} at once, {way:?}");
                assert_eq!(answer.tokens.len(), answer.log_probabilities.len());
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

#[test]
fn a_batch_answers_as_each_sequence_alone_behind_every_kind_of_tuning() {
    let model = model("llama");
    let methods = [
        TuningMethod::Lora(LoraConfig { rank: 4, ..Default::default() }),
        TuningMethod::Prefix(PrefixConfig { tokens: 5, begin: VirtualTokens::Random, projection: None }),
        TuningMethod::Prompt(PromptConfig { tokens: 3, begin: VirtualTokens::Random }),
    ];
    for config in methods {
        let method = config.build(&model.decoder, None, 3).unwrap();
        for one in method.trainables() {
            let noise = crate::rng::Rng::new(5, &one.name, 0).normals(one.var.elem_count(), 0.2);
            one.var.set(&Tensor::from_vec(noise, one.var.dims(), &Device::Cpu).unwrap()).unwrap();
        }
        assert_as_alone(&model, &*method, config.name());
    }
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
    assert_eq!(among.tokens, alone.tokens);
    for (a, b) in among.log_probabilities.iter().zip(&alone.log_probabilities) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
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
