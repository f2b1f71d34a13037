//! The base model's chat template: conversations to text, for training and for serving alike, and
//! which parts of the text the assistant spoke.
//!
//! Templates are Jinja as `transformers` runs it (`apply_chat_template`): blocks trimmed, Python's
//! string methods, `raise_exception`, `tojson` without HTML escapes. `{% generation %}` marks the
//! assistant's words where a template has it; elsewhere they are found by rendering the conversation
//! with a stand-in for each answer.

use std::ops::Range;
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use regex::Regex;

use super::records::{Conversation, Message, Role};
use crate::error::{Error, Result};

/// Noncharacters of Unicode: reserved for use inside a program, so no text may hold them.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';
const STAND_IN: &str = "\u{FDD2}";

/// The date that `strftime_now` gives: fixed, because an answer learned under one date and asked for
/// under another would be asked with a prompt it never saw. It is what Llama's template falls back to.
const DATE: jiff::civil::Date = jiff::civil::date(2024, 7, 26);

/// A compiled chat template with the special tokens it may name.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
    marked: bool,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text; it holds the template's special tokens, so it is tokenised without adding more.
    pub text: String,
    /// Byte ranges that the assistant spoke, each with the marker that ends its turn.
    pub spoken: Vec<Range<usize>>,
    /// What ends the assistant's turn (`<|eot_id|>`, `</s>`, …); empty when the template has no marker.
    pub end_of_turn: String,
}

impl Template {
    /// Compiles `source`; `bos` and `eos` are the tokenizer's special tokens as text.
    pub fn parse(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let refused = |error: minijinja::Error| {
            Error::validation(format!("The model's chat template cannot be compiled: {error:#}"))
        };
        static GENERATION: LazyLock<Option<Regex>> =
            LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
        let mut marked = false;
        // Still a block tag to the trimming rules, as `{% generation %}` is.
        let source = match &*GENERATION {
            Some(tag) => tag.replace_all(source, |found: &regex::Captures<'_>| {
                marked = true;
                let mark = if found.get(2).is_some() { CLOSE } else { OPEN };
                format!("{{%{} if true %}}{mark}{{% endif {}%}}", &found[1], &found[3])
            }),
            None => source.into(),
        };
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refused)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| DATE.strftime(&format).to_string());
        environment.add_template_owned("chat", source.into_owned()).map_err(refused)?;
        Ok(Self { environment, bos: bos.map(str::to_owned), eos: eos.map(str::to_owned), marked })
    }

    /// What `reasoning_effort` is in the template.
    pub fn set_reasoning_effort(&mut self, effort: &str) {
        self.environment.add_global("reasoning_effort", effort.to_owned());
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the assistant begins to speak.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String> {
        let text = self.run(conversation, add_generation_prompt)?;
        Ok(if self.marked { text.replace([OPEN, CLOSE], "") } else { text })
    }

    /// The text of a whole conversation and what the assistant spoke in it.
    pub fn render_spoken(&self, conversation: &Conversation) -> Result<Rendered> {
        if conversation.messages.last().is_none_or(|last| last.role != Role::Assistant) {
            return Err(Error::validation("The conversation does not end with the assistant's answer"));
        }
        let (text, contents) =
            if self.marked { unmark(&self.run(conversation, false)?)? } else { self.find_answers(conversation)? };
        let end_of_turn = self.marker(&text, &contents, conversation).to_owned();
        let spoken = contents
            .into_iter()
            .map(|span| {
                let ended = text[span.clone()].trim_end().ends_with(&end_of_turn);
                let follows = !ended && text[span.end..].starts_with(&end_of_turn);
                span.start..if follows { span.end + end_of_turn.len() } else { span.end }
            })
            .collect();
        Ok(Rendered { text, spoken, end_of_turn: end_of_turn.trim().to_owned() })
    }

    /// What ends the assistant's turn, as a short conversation shows it; none when the template shows none.
    pub(crate) fn end_of_turn(&self) -> Option<String> {
        let say = |role, text: &str| Message { role, text: text.to_owned() };
        let messages = vec![say(Role::User, "a"), say(Role::Assistant, "b")];
        let rendered = self.render_spoken(&Conversation { system: None, messages }).ok()?;
        Some(rendered.end_of_turn).filter(|end| !end.is_empty())
    }

    /// What ends the assistant's turn: the text after the last answer, without the layout's line break that
    /// may follow. Where there is nothing but white space, that is what ends it.
    fn marker<'a>(&self, text: &'a str, spans: &[Range<usize>], conversation: &Conversation) -> &'a str {
        let (Some(last), Some(answer)) = (spans.last(), conversation.messages.last()) else { return "" };
        let mut end = last.end;
        if self.marked {
            // `{% generation %}` may enclose the marker too.
            let inside = &text[last.clone()];
            let found = [answer.text.as_str(), answer.text.trim()]
                .into_iter()
                .find_map(|answer| inside.rfind(answer).map(|at| last.start + at + answer.len()));
            end = found.unwrap_or(end);
        }
        let tail = &text[end..];
        if tail.trim_end().is_empty() { tail } else { tail.trim_end() }
    }

    /// Where the answers stand in the text of a template without `{% generation %}`: each is replaced by
    /// a stand-in, and what differs is the answer. It begins where the generation prompt ends, so that
    /// everything a served model must say by itself is learned.
    ///
    /// The text is what serving gives for the last question, and then the answer. Some templates write the
    /// question differently once it is answered (they drop the system prompt, say); serving decides.
    fn find_answers(&self, conversation: &Conversation) -> Result<(String, Vec<Range<usize>>)> {
        let last = conversation.messages.len() - 1;
        let asked = first(conversation, last);
        let mut text = self.run(&asked, true)?;
        let mut answers = Vec::new();
        for i in (0..last).filter(|i| conversation.messages[*i].role == Role::Assistant) {
            let (before, span) = self.find(&asked, i, &text, true)?;
            let prompt = self.run(&first(conversation, i), true)?;
            answers.push(if before.starts_with(&prompt) { prompt.len()..span.end } else { span });
        }
        let whole = self.run(conversation, false)?;
        let (before, span) = self.find(conversation, last, &whole, false)?;
        let start = text.len();
        if before.starts_with(&text) {
            answers.push(start..span.end);
            return Ok((whole, answers));
        }
        if !text.ends_with(char::is_whitespace) {
            text += &before[before.trim_end().len()..];
        }
        text += &whole[span.start..];
        answers.push(start..text.len() - (whole.len() - span.end));
        Ok((text, answers))
    }

    /// Where the answer `messages[i]` stands in `text`, the render of `conversation`, and what the template
    /// writes before it.
    fn find(&self, conversation: &Conversation, i: usize, text: &str, prompt: bool) -> Result<(String, Range<usize>)> {
        let mut changed = conversation.clone();
        let answer = std::mem::replace(&mut changed.messages[i].text, STAND_IN.to_owned());
        let changed = self.run(&changed, prompt)?;
        let place = changed.split_once(STAND_IN).and_then(|(before, after)| {
            let found = text.strip_prefix(before)?.strip_suffix(after)?;
            (found.trim() == answer.trim()).then(|| (before.to_owned(), before.len()..before.len() + found.len()))
        });
        place.ok_or_else(|| {
            Error::validation(format!(
                "The base model's chat template does not show where the answer messages[{i}] stands: it changes the \
                 answer's text. Give the template {{% generation %}} marks around the assistant's words"
            ))
        })
    }

    fn run(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String> {
        let reserved = |text: &str| text.contains([OPEN, CLOSE]);
        if conversation.system.as_deref().is_some_and(reserved)
            || conversation.messages.iter().any(|message| reserved(&message.text))
        {
            return Err(Error::validation("The text holds U+FDD0 or U+FDD1, which Unicode reserves; remove it"));
        }
        let system = conversation.system.as_deref().map(|text| context! { role => "system", content => text });
        let turns = conversation
            .messages
            .iter()
            .map(|Message { role, text }| context! { role => role.name(), content => text.as_str() });
        // A model without the token leaves the name undefined, as `transformers` does.
        let token = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
        let context = context! {
            messages => system.into_iter().chain(turns).collect::<Vec<Value>>(),
            add_generation_prompt,
            tools => Value::from(()),
            documents => Value::from(()),
            bos_token => token(&self.bos),
            eos_token => token(&self.eos),
        };
        let template = self.environment.get_template("chat").map_err(Error::internal)?;
        template.render(context).map_err(|error| {
            let detail = error.detail().map_or_else(|| error.to_string(), str::to_owned);
            Error::validation(format!("The base model's chat template refuses this conversation: {detail}"))
                .because(error)
        })
    }
}

/// The conversation up to `messages[end]`.
fn first(conversation: &Conversation, end: usize) -> Conversation {
    Conversation { system: conversation.system.clone(), messages: conversation.messages[..end].to_vec() }
}

/// Takes the marks of `{% generation %}` out of a text and says where they stood.
fn unmark(marked: &str) -> Result<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut open = None;
    for c in marked.chars() {
        match (c, open) {
            (OPEN, None) => open = Some(text.len()),
            (CLOSE, Some(start)) => {
                spans.push(start..text.len());
                open = None;
            }
            (OPEN | CLOSE, _) => {
                return Err(Error::validation("The base model's chat template nests {% generation %} blocks"));
            }
            _ => text.push(c),
        }
    }
    if spans.is_empty() {
        return Err(Error::validation("The base model's chat template marks nothing with {% generation %}"));
    }
    Ok((text, spans))
}

/// `tojson` as `transformers` defines it: Python's `json.dumps`, nothing escaped for HTML.
fn tojson(value: &Value, indent: Option<Value>, arguments: Kwargs) -> Result<Value, minijinja::Error> {
    // Python's other arguments do not change what templates print in practice; non-ASCII stays as it is.
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    let escaped = minijinja::filters::tojson(value, indent, arguments)?.to_string();
    let mut text = String::with_capacity(escaped.len());
    let mut rest = escaped.as_str();
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let plain = [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')];
        match plain.iter().find(|(escape, _)| rest[at..].starts_with(escape)) {
            Some((escape, c)) => {
                text.push(*c);
                rest = &rest[at + escape.len()..];
            }
            // An escape is a backslash and one ASCII character more: "\\\\" must not be read as the start of another.
            None => {
                text.push_str(&rest[at..at + 2]);
                rest = &rest[at + 2..];
            }
        }
    }
    text.push_str(rest);
    Ok(Value::from(text))
}
