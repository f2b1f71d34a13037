//! Chat templates give what `transformers` gives, and say what the assistant spoke.
//! `tests/golden/chat.py` makes the renders that these are compared with.

use serde_json::Value;
use tunesmith::data::chat::{Rendered, Template};
use tunesmith::data::{Conversation, Message, Role};

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat")
}

fn template(name: &str) -> Template {
    let source = std::fs::read_to_string(folder().join(format!("{name}.jinja"))).unwrap();
    Template::parse(&source, Some("<s>"), Some("</s>")).unwrap()
}

fn conversation(messages: &[Value]) -> Conversation {
    let mut conversation = Conversation::default();
    for message in messages {
        let text = message["content"].as_str().unwrap().to_owned();
        match message["role"].as_str().unwrap() {
            "system" => conversation.system = Some(text),
            "user" => conversation.messages.push(Message { role: Role::User, text }),
            _ => conversation.messages.push(Message { role: Role::Assistant, text }),
        }
    }
    conversation
}

fn of(system: Option<&str>, texts: &[&str]) -> Conversation {
    let role = |i| if i % 2 == 0 { Role::User } else { Role::Assistant };
    let messages = texts.iter().enumerate().map(|(i, text)| Message { role: role(i), text: (*text).into() }).collect();
    Conversation { system: system.map(str::to_owned), messages }
}

fn spoken(rendered: &Rendered) -> Vec<&str> {
    rendered.spoken.iter().map(|span| &rendered.text[span.clone()]).collect()
}

#[test]
fn templates_render_byte_for_byte_as_transformers_does() {
    let renders: Vec<Value> = serde_json::from_slice(&std::fs::read(folder().join("renders.json")).unwrap()).unwrap();
    assert!(renders.len() >= 50);
    for render in renders {
        let case = format!("{} / {}", render["template"], render["conversation"]);
        let template = template(render["template"].as_str().unwrap());
        let whole = conversation(render["messages"].as_array().unwrap());
        let mut asked = whole.clone();
        asked.messages.pop();
        assert_eq!(template.render(&whole, false).unwrap(), render["text"].as_str().unwrap(), "{case}");
        assert_eq!(template.render(&asked, true).unwrap(), render["prompt"].as_str().unwrap(), "{case}, prompt");
        if let Some(expected) = render["spoken"].as_array() {
            let rendered = template.render_spoken(&whole).unwrap();
            let expected: Vec<_> = expected.iter().map(|text| text.as_str().unwrap()).collect();
            assert_eq!(spoken(&rendered), expected, "{case}, spoken");
        }
    }
}

#[test]
fn the_assistants_words_and_the_end_of_each_turn_are_found_without_marks() {
    let talk = of(None, &["a", "b", "b", "b c"]);
    for (name, expected) in [
        ("llama", ["b<|eot_id|>", "b c<|eot_id|>"]),
        ("mistral", [" b</s>", " b c</s>"]),
        ("chatml", ["b<|im_end|>", "b c<|im_end|>"]),
        ("thinking", ["b<|im_end|>", "<think>\n\n</think>\n\nb c<|im_end|>"]),
    ] {
        assert_eq!(spoken(&template(name).render_spoken(&talk).unwrap()), expected, "{name}");
    }
}

#[test]
fn an_answer_that_repeats_the_question_or_the_marker_is_still_found() {
    let talk = of(Some("yes"), &["yes", "yes", "<|im_end|>", "no <|im_end|> no"]);
    let rendered = template("chatml").render_spoken(&talk).unwrap();
    assert_eq!(spoken(&rendered), ["yes<|im_end|>", "no <|im_end|> no<|im_end|>"]);
    assert_eq!(rendered.text[..rendered.spoken[0].start].matches("yes").count(), 2);
}

#[test]
fn training_and_serving_agree_on_the_prompt() {
    for name in ["llama", "mistral", "chatml", "thinking", "marked"] {
        let template = template(name);
        let whole = of(None, &["question", "first", "more", "second"]);
        let rendered = template.render_spoken(&whole).unwrap();
        let mut asked = whole.clone();
        asked.messages.pop();
        let prompt = template.render(&asked, true).unwrap();
        assert_eq!(rendered.text[..rendered.spoken[1].start], prompt, "{name}");
    }
}

#[test]
fn where_a_template_writes_an_answered_question_differently_serving_decides() {
    // This template gives the system prompt with the last question, and only while it is unanswered.
    let template = template("mistral");
    let rendered = template.render_spoken(&of(Some("S"), &["a", "b", "c", "d"])).unwrap();
    assert_eq!(rendered.text, "<s>[INST] a[/INST] b</s>[INST] S\n\nc[/INST] d</s>");
    assert_eq!(spoken(&rendered), ["b</s>", " d</s>"]);
    assert!(rendered.text.starts_with(&template.render(&of(Some("S"), &["a", "b", "c"]), true).unwrap()));

    let source =
        "{% for m in messages %}{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}[think]\n{% endif %}";
    let rendered = Template::parse(source, None, None).unwrap().render_spoken(&of(None, &["a", "b"])).unwrap();
    assert_eq!((rendered.text.as_str(), spoken(&rendered)), ("a<end>[think]\nb<end>", vec!["b<end>"]));
}

#[test]
fn a_template_without_an_end_marker_says_so() {
    let source = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let rendered = Template::parse(source, None, None).unwrap().render_spoken(&of(None, &["a", "b"])).unwrap();
    assert_eq!((spoken(&rendered), rendered.end_of_turn.as_str()), (vec!["b\n"], ""));
}

#[test]
fn what_a_template_refuses_or_hides_is_said_plainly() {
    let message = |source: &str, talk: Conversation| {
        Template::parse(source, None, None)
            .and_then(|template| template.render_spoken(&talk))
            .unwrap_err()
            .message()
            .to_owned()
    };
    let talk = of(Some("S"), &["a", "b"]);
    assert_eq!(
        message(
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
            talk.clone()
        ),
        "The base model's chat template refuses this conversation: System role not supported"
    );
    assert!(
        message("{% for m in messages %}", talk.clone()).starts_with("The model's chat template cannot be compiled: ")
    );
    assert!(message("{{ messages[-1].content | upper }}", talk.clone()).contains("messages[1]"));
    assert!(message("{{ messages[-1].content }}", of(None, &["a\u{FDD0}", "b"])).contains("U+FDD0"));
}

#[test]
fn the_date_in_a_template_is_the_same_on_every_day() {
    let template = Template::parse("{{ strftime_now('%d %b %Y') }}|{{ messages[-1].content }}", None, None).unwrap();
    assert_eq!(template.render(&of(None, &["a"]), true).unwrap(), "26 Jul 2024|a");
}

#[test]
fn json_in_a_template_is_pythons_json() {
    let source = r#"{{ {'a': "<b> & 'c' \\u003c é"} | tojson(ensure_ascii=false) }}{{ [1, 2] | tojson(indent=2) }}"#;
    let template = Template::parse(source, None, None).unwrap();
    assert_eq!(template.render(&of(None, &["x"]), false).unwrap(), "{\"a\": \"<b> & 'c' \\\\u003c é\"}[\n  1,\n  2\n]");
}
