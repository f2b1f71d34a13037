//! What is learned is decided by place, and the prompt is the one that serving gives.

use proptest::prelude::*;
use tunesmith::data::{Conversation, Encoder, Message, Objective, Record, Role};

use super::tokens::{chat, plain, show, tokenizer};

fn completion(prompt: &str, completion: &str) -> Record {
    Record::Completion { prompt: prompt.into(), completion: completion.into() }
}

#[test]
fn a_completion_is_learned_with_its_end_and_the_prompt_is_not() {
    assert_eq!(show(&plain().sequences(&completion("say hello:", " hello")).unwrap()), "say hello:[ hello</s>]");
    assert_eq!(
        show(&chat().sequences(&completion("hi", "hello")).unwrap()),
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[hello<|im_end|>]"
    );
}

#[test]
fn an_end_token_inside_a_prompt_is_not_learned_and_the_one_at_the_end_is() {
    assert_eq!(show(&plain().sequences(&completion("a</s>b", "c</s>d")).unwrap()), "a</s>b[c</s>d</s>]");
    assert_eq!(show(&plain().sequences(&completion("a", "b</s>")).unwrap()), "a[b</s>]", "the end is not doubled");
}

#[test]
fn a_token_across_the_boundary_belongs_to_the_completion() {
    assert_eq!(show(&plain().sequences(&completion("say ", "hello")).unwrap()), "say[ hello</s>]");
}

#[test]
fn white_space_and_split_characters_are_marked_where_they_stand() {
    assert_eq!(show(&plain().sequences(&completion("a \n\n", "\n b \n")).unwrap()), "a \n\n[\n b \n</s>]");
    let encoded = plain().sequences(&completion("é🌍", "🌍é")).unwrap().remove(0);
    assert_eq!(encoded.learn, [[false; 6].as_slice(), &[true; 7]].concat());
}

#[test]
fn of_a_preference_the_two_answers_are_learned_and_no_turn_of_the_prompt() {
    let texts = r#"{"prompt": "say ", "chosen": "a", "rejected": "hello"}"#;
    let (_, record) = Record::parse(texts, Objective::Preferences).unwrap();
    assert_eq!(show(&plain().sequences(&record).unwrap()), "say [a</s>] | say[ hello</s>]");
    let turns = r#"{"prompt": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "x"}], "chosen": "y", "rejected": [{"role": "assistant", "content": "z"}]}"#;
    let (_, record) = Record::parse(&turns.replace('\n', " "), Objective::Preferences).unwrap();
    let prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n\
                  <|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n";
    let expected = format!("{prompt}[y<|im_end|>] | {prompt}[z<|im_end|>]");
    assert_eq!(show(&chat().sequences(&record).unwrap()), expected);
}

#[test]
fn all_assistant_turns_are_learned_and_nothing_else() {
    let say = |role, text: &str| Message { role, text: text.into() };
    let messages = vec![
        say(Role::User, "hello"),
        say(Role::Assistant, "hello"),
        say(Role::User, "x"),
        say(Role::Assistant, "y\n"),
    ];
    let record = Record::Conversation(Conversation { system: Some("s".into()), messages });
    assert_eq!(
        show(&chat().sequences(&record).unwrap()),
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[hello<|im_end|>]\n\
         <|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n[y\n<|im_end|>]"
    );
}

#[test]
fn documents_are_learned_whole_but_for_the_token_nothing_stands_before() {
    assert_eq!(show(&plain().sequences(&Record::Text("hello hello".into())).unwrap()), "hello[ hello</s>]");
}

#[test]
fn a_text_has_one_beginning_whoever_wrote_it() {
    let mut tokenizer = tokenizer();
    let begin = tokenizers::processors::template::TemplateProcessing::builder()
        .try_single("<s> $A")
        .unwrap()
        .special_tokens(vec![("<s>", tokenizer.token_to_id("<s>").unwrap())])
        .build()
        .unwrap();
    tokenizer.with_post_processor(Some(begin));
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let with = Encoder::new(tokenizer.clone(), Some("<s>"), Some("</s>"), Some(template)).unwrap();
    let without = Encoder::new(tokenizer, Some("<s>"), Some("</s>"), None).unwrap();
    assert_eq!(show(&with.sequences(&completion("a", "b")).unwrap()), "<s>[user]a[assistant][b</s>]");
    assert_eq!(show(&without.sequences(&completion("a", "b")).unwrap()), "<s>a[b</s>]");
    assert_eq!(show(&without.sequences(&completion("<s>a", "b")).unwrap()), "<s>a[b</s>]");
    assert_eq!(show(&without.sequences(&Record::Text("ab".into())).unwrap()), "<s>[ab</s>]");
}

#[test]
fn conversations_need_a_template() {
    let talk = Record::parse(
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
        Objective::FineTuning,
    );
    let error = plain().sequences(&talk.unwrap().1).unwrap_err();
    assert!(error.message().starts_with("This base model has no chat template"), "{error}");
}

#[test]
fn the_end_of_a_turn_is_known_to_serving() {
    assert_eq!(chat().end_of_turn(), tokenizer().token_to_id("<|im_end|>"));
    assert_eq!(plain().end_of_turn(), None);
}

#[test]
fn a_prompt_that_holds_special_tokens_is_taken_as_it_is() {
    let written = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(chat().text_prompt(written).unwrap(), chat().text_prompt("hi").unwrap());
    assert_eq!(show(&chat().sequences(&completion(written, "yo")).unwrap()), format!("{written}[yo</s>]"));
}

proptest! {
    #[test]
    fn what_serving_gives_is_what_training_showed(prompt in "\\PC{0,12}[a-z.?:]", answer in "[a-z]\\PC{0,12}") {
        // Without special tokens in the text, and without a token across the boundary of plain text.
        prop_assume!(!prompt.contains('<') && !prompt.ends_with(['h', 'e', 'l', 'o']));
        for encoder in [chat(), plain()] {
            let trained = encoder.sequences(&completion(&prompt, &answer)).unwrap().remove(0);
            let served = encoder.text_prompt(&prompt).unwrap();
            prop_assert_eq!(&trained.tokens[..served.len()], &served[..]);
            prop_assert!(trained.learn[..served.len()].iter().all(|learn| !learn));
            prop_assert!(trained.learn[served.len()..].iter().all(|learn| *learn));
        }
    }
}
