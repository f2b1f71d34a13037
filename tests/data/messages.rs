//! What a user reads about a record that cannot be used: the place, what was expected, what to change.

use tunesmith::data::{Conversation, Format, Message, Objective, Record, Role};

fn refused(line: &str) -> String {
    refused_for(line, Objective::FineTuning)
}

fn refused_for(line: &str, objective: Objective) -> String {
    let fault = Record::parse(line, objective).unwrap_err();
    format!("{}: {}", fault.column.map_or("-".to_owned(), |column| column.to_string()), fault.reason)
}

#[test]
fn every_format_is_read() {
    let read = |line: &str, objective| Record::parse(line, objective).unwrap();
    assert_eq!(
        read(r#"{"completion": "b\n", "prompt": "a"}"#, Objective::FineTuning),
        (Format::Completion, Record::Completion { prompt: "a".into(), completion: "b\n".into() })
    );
    assert_eq!(
        read(r#"{"input": "Gr\u00fc\u00dfe"}"#, Objective::ContinuedPreTraining),
        (Format::Text, Record::Text("Grüße".into()))
    );
    let bedrock = r#"{"schemaVersion": "bedrock-conversation-2024", "system": [{"text": "s"}, {"text": "t"}],
        "messages": [{"role": "user", "content": [{"text": "a"}]}, {"content": [{"text": "b"}], "role": "assistant"}]}"#;
    let claude =
        r#"{"system": "s\nt", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let expected = Record::Conversation(Conversation {
        system: Some("s\nt".into()),
        messages: vec![
            Message { role: Role::User, text: "a".into() },
            Message { role: Role::Assistant, text: "b".into() },
        ],
    });
    for line in [bedrock, claude] {
        assert_eq!(read(line, Objective::FineTuning), (Format::Conversation, expected.clone()));
    }
}

#[test]
fn syntax_errors_name_the_column() {
    assert_eq!(refused(r#"{"prompt": "a" "completion": "b"}"#), "16: not valid JSON: expected `,` or `}`");
    assert_eq!(
        refused(r#"{"prompt": "a", "completion": "b""#),
        "33: not valid JSON: EOF while parsing an object; the record ends too early: one whole JSON object must stand on the line"
    );
    assert_eq!(refused("prompt,completion"), "1: not valid JSON: expected value");
    assert_eq!(refused(r#"{"prompt": "a", "completion": "b"},"#), "35: not valid JSON: trailing characters");
    assert_eq!(refused(r#""prompt""#), "1: expected a JSON object on each line, found a string");
}

#[test]
fn wrong_keys_are_named_with_what_is_expected() {
    assert_eq!(
        refused(r#"{"prompt": "a", "completon": "b"}"#),
        r#"17: unknown key "completon" (did you mean "completion"?); a record here is {"prompt": "...", "completion": "..."}"#
    );
    assert_eq!(
        refused(r#"{"prompt": "a"}"#),
        r#"1: the key "completion" is missing; a record here is {"prompt": "...", "completion": "..."}"#
    );
    assert_eq!(
        refused(r#"{"prompt": "a", "completion": "b", "id": 7}"#),
        r#"36: unknown key "id"; a record here is {"prompt": "...", "completion": "..."}"#
    );
    assert!(
        refused(r#"{"question": "a", "answer": "b"}"#)
            .starts_with(r#"2: unknown key "question"; a record here is {"prompt""#)
    );
    assert!(refused("{}").starts_with(r#"1: the record is empty; a record here is {"prompt""#));
    assert_eq!(
        refused(r#"{"prompt": "a", "prompt": "b", "completion": "c"}"#),
        r#"17: the record: the key "prompt" appears twice"#
    );
    assert_eq!(
        refused_for(r#"{"text": "a"}"#, Objective::ContinuedPreTraining),
        r#"2: unknown key "text"; a record here is {"input": "..."}"#
    );
}

#[test]
fn wrong_types_and_empty_texts_are_named_with_their_path() {
    assert_eq!(refused(r#"{"prompt": 5, "completion": "b"}"#), "12: prompt: expected a string, found a number");
    assert_eq!(refused(r#"{"prompt": "", "completion": "b"}"#), "12: prompt: is empty; there is nothing to answer");
    assert_eq!(
        refused(r#"{"prompt": "a", "completion": " \n"}"#),
        "31: completion: is empty; there is nothing to learn"
    );
    assert_eq!(
        refused(
            r#"{"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": [{"text": null}]}]}"#
        ),
        "92: messages[1].content[0].text: expected a string, found null"
    );
    assert_eq!(
        refused(r#"{"messages": [{"role": "user", "content": 7}]}"#),
        r#"43: messages[0].content: expected a string or an array of {"text": "..."} blocks, found a number"#
    );
    assert_eq!(refused(r#"{"messages": {}}"#), "14: messages: expected an array, found an object");
    assert_eq!(refused(r#"{"system": [1], "messages": []}"#), "13: system[0]: expected an object, found a number");
}

#[test]
fn turns_out_of_order_are_named() {
    assert_eq!(
        refused(r#"{"messages": [{"role": "system", "content": "a"}]}"#),
        "24: messages[0].role: expected \"user\", found \"system\" (a system prompt goes into the key \"system\" beside \
         \"messages\"); messages start with the user and alternate"
    );
    assert_eq!(
        refused(r#"{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]}"#),
        "58: messages[1].role: expected \"assistant\", found \"user\"; messages start with the user and alternate"
    );
    assert_eq!(
        refused(r#"{"messages": [{"role": "user", "content": "a"}]}"#),
        "15: messages[0]: the last message is the user's; a record ends with the assistant's answer"
    );
    assert_eq!(
        refused(r#"{"messages": []}"#),
        "14: messages: is empty; give at least a user's and an assistant's turn"
    );
    assert_eq!(
        refused(
            r#"{"messages": [{"role": "user", "content": [{"text": ""}]}, {"role": "assistant", "content": "b"}]}"#
        ),
        "43: messages[0].content: is empty"
    );
}

#[test]
fn images_are_refused_with_what_to_do() {
    let line =
        r#"{"messages": [{"role": "user", "content": [{"text": "a"}, {"image": {"format": "png", "source": {}}}]}]}"#;
    assert_eq!(
        refused(line),
        "60: messages[0].content[1].image: this model reads text only; remove the image or the record"
    );
}

#[test]
fn data_for_the_other_customization_type_says_which_to_set() {
    assert_eq!(
        refused(r#"{"input": "a"}"#),
        "1: {\"input\": ...} is for continued pre-training: set customizationType to CONTINUED_PRE_TRAINING, or give \
         {\"prompt\": \"...\", \"completion\": \"...\"}"
    );
    assert_eq!(
        refused_for(r#"{"prompt": "a", "completion": "b"}"#, Objective::ContinuedPreTraining),
        "1: prompts with answers are for fine-tuning: set customizationType to FINE_TUNING, or give {\"input\": \"...\"}"
    );
}
