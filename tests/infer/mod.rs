//! Answers through the engine, from a model directory as a user would place it.

mod bench;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::Device;
use tunesmith::data::{Conversation, Message, Role};
use tunesmith::error::{Kind, Result};
use tunesmith::infer::{Adapter, Answer, Capacity, Engine, Options, Piece, Prompt, StopReason, Target};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models").join(name)
}

fn engine() -> Engine {
    Engine::new(Device::Cpu, Capacity::default(), None)
}

fn llama() -> Target {
    Target { base_dir: fixture("llama"), context_length: None, adapter: None }
}

fn tuned(dir: PathBuf) -> Target {
    Target { adapter: Some(Adapter { id: "one".into(), dir }), ..llama() }
}

/// Already rendered, because it holds a special token: taken as it is.
fn prompt() -> Prompt {
    Prompt::Text("<|begin|>the cat".into())
}

fn ask(engine: &Engine, target: &Target, prompt: &Prompt, options: &Options) -> Result<Answer> {
    engine.answer(target, prompt, options, &AtomicBool::new(false), &mut |_| ())
}

fn wild(seed: u64) -> Options {
    Options { temperature: 5.0, seed, max_tokens: 40, ..Default::default() }
}

#[test]
fn pieces_of_a_streamed_answer_make_up_its_text_and_are_whole_characters() {
    let engine = engine();
    for seed in 0..10 {
        let mut pieces = Vec::new();
        let mut collect = |piece: Piece<'_>| pieces.push(piece.text.to_string());
        let answer = engine.answer(&llama(), &prompt(), &wild(seed), &AtomicBool::new(false), &mut collect).unwrap();
        assert_eq!(pieces.concat(), answer.text, "seed {seed}");
        assert!(pieces.len() > 1, "seed {seed}: {pieces:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_answer_and_another_seed_another() {
    let engine = engine();
    let draw = |seed| ask(&engine, &llama(), &prompt(), &wild(seed)).unwrap();
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1).text, draw(2).text);
}

#[test]
fn an_answer_says_why_it_ended_and_counts_its_tokens() {
    let engine = engine();
    let five = Options { max_tokens: 5, ..Default::default() };
    let answer = ask(&engine, &llama(), &prompt(), &five).unwrap();
    assert_eq!((answer.stop_reason, answer.output_tokens), (StopReason::MaxTokens, 5));
    assert_eq!(answer.input_tokens, engine.count(&llama(), &prompt()).unwrap());

    let short = Target { context_length: Some(answer.input_tokens + 3), ..llama() };
    let full = ask(&engine, &short, &prompt(), &five).unwrap();
    assert_eq!((full.stop_reason, full.output_tokens), (StopReason::ContextWindow, 3));

    let none = Target { context_length: Some(answer.input_tokens), ..llama() };
    let refused = ask(&engine, &none, &prompt(), &five).unwrap_err();
    assert_eq!(refused.kind(), Kind::Validation);
    assert!(refused.message().contains("context is"), "{refused}");
}

#[test]
fn a_stop_sequence_ends_the_answer_before_itself() {
    let engine = engine();
    let whole = ask(&engine, &llama(), &prompt(), &wild(3)).unwrap().text;
    let third = whole.char_indices().nth(3).map(|(at, _)| at).unwrap();
    let fifth = whole.char_indices().nth(5).map(|(at, _)| at).unwrap();
    let stop = whole[third..fifth].to_string();
    let options = Options { stop_sequences: vec![stop.clone()], ..wild(3) };
    let answer = ask(&engine, &llama(), &prompt(), &options).unwrap();
    assert_eq!(answer.text, whole[..whole.find(&stop).unwrap()]);
    assert_eq!((answer.stop_reason, answer.stop_sequence), (StopReason::StopSequence, Some(stop)));
}

#[test]
fn an_adapter_changes_the_answer_and_the_base_stays_as_it_was() {
    let engine = engine();
    let options = Options { max_tokens: 12, ..Default::default() };
    let before = ask(&engine, &llama(), &prompt(), &options).unwrap();
    let after = ask(&engine, &tuned(fixture("lora/after")), &prompt(), &options).unwrap();
    assert_ne!(before.tokens, after.tokens);
    assert_eq!(before, ask(&engine, &llama(), &prompt(), &options).unwrap());

    // Gone from the disk it still answers from memory, until it is forgotten there too.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("adapter");
    std::fs::create_dir(&copy).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixture("lora/after").join(file), copy.join(file)).unwrap();
    }
    assert_eq!(ask(&engine, &tuned(copy.clone()), &prompt(), &options).unwrap(), after);
    std::fs::remove_dir_all(&copy).unwrap();
    assert_eq!(ask(&engine, &tuned(copy.clone()), &prompt(), &options).unwrap(), after);
    engine.forget_dir(&copy);
    let missing = ask(&engine, &tuned(copy), &prompt(), &options).unwrap_err();
    assert!(missing.message().contains("adapter_config.json"), "{missing}");
}

#[test]
fn an_adapter_that_does_not_fit_its_base_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("llama").join(file), dir.path().join(file)).unwrap();
    }
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("qwen3").join(file), dir.path().join(file)).unwrap();
    }
    let target = Target { base_dir: dir.path().to_path_buf(), ..tuned(fixture("lora/after")) };
    let refused = ask(&engine(), &target, &prompt(), &Options::default()).unwrap_err();
    assert_eq!(refused.kind(), Kind::Validation);
    assert!(refused.message().contains("q_proj.lora_B.weight has shape [32, 4]"), "{refused}");
}

#[test]
fn a_conversation_goes_through_the_chat_template() {
    let engine = engine();
    let message = |role, text: &str| Message { role, text: text.into() };
    let conversation = Conversation { system: None, messages: vec![message(Role::User, "the hat")] };
    let chat = Prompt::Chat(conversation);
    let rendered = Prompt::Text("<|begin|><|turn|>user\nthe hat<|end|>\n<|turn|>assistant\n".into());
    let options = Options { max_tokens: 4, ..Default::default() };
    let answer = ask(&engine, &llama(), &chat, &options).unwrap();
    assert_eq!(answer, ask(&engine, &llama(), &rendered, &options).unwrap());
    assert_eq!(answer, ask(&engine, &llama(), &Prompt::Text("the hat".into()), &options).unwrap());
}

#[test]
fn a_cancelled_answer_stops() {
    let mut pieces = 0;
    let cancel = AtomicBool::new(false);
    let mut stop_at_first = |_: Piece<'_>| {
        pieces += 1;
        cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let cancelled = engine().answer(&llama(), &prompt(), &wild(1), &cancel, &mut stop_at_first);
    assert!(cancelled.unwrap_err().message().contains("cancelled"));
    assert_eq!(pieces, 1);
}

#[test]
fn prompts_answered_side_by_side_get_the_answers_that_each_gets_alone() {
    let engine = engine();
    let prompts: Vec<Prompt> =
        ["<|begin|>the cat", "<|begin|>a hat on the mat", "<|begin|>the", "<|begin|>sat sat sat the"]
            .map(|text| Prompt::Text(text.into()))
            .into();
    let options = Options { max_tokens: 24, ..Default::default() };
    let alone: Vec<Answer> = prompts.iter().map(|prompt| ask(&engine, &llama(), prompt, &options).unwrap()).collect();
    let together = engine.answers(&llama(), &prompts, 24, &|| true).unwrap().unwrap();
    assert_eq!(together, alone);

    // A prompt that fills the context spoils no other.
    let long = Prompt::Text(format!("<|begin|>{}", "the ".repeat(5000)));
    let with_long = [&prompts[..2], &[long], &prompts[2..]].concat();
    let mut together = engine.answers(&llama(), &with_long, 24, &|| true).unwrap().unwrap();
    assert_eq!((together[2].text.as_str(), together[2].stop_reason), ("", StopReason::ContextWindow));
    together.remove(2);
    assert_eq!(together, alone);
    assert!(engine.answers(&llama(), &prompts, 24, &|| false).unwrap().is_none());
}
