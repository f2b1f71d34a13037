//! The base model's chat template: conversations to text, for training and for serving alike, and
//! which parts of the text the assistant spoke.
//!
//! Templates are Jinja as `transformers` runs it (`apply_chat_template`): blocks trimmed, Python's
//! string methods, `raise_exception`, `tojson` without HTML escapes. `{% generation %}` marks the
//! assistant's words where a template has it; elsewhere they are found by rendering the conversation
//! with a stand-in for each answer.

use std::ops::Range;

use minijinja::context;
use minijinja::value::Value;

use super::records::{Conversation, Message, Role};
use crate::error::{Error, Result};
use crate::models::{ChatTemplate, GENERATION_CLOSE as CLOSE, GENERATION_OPEN as OPEN, Load};

/// A noncharacter of Unicode, reserved for use inside a program, so no text may hold it.
const STAND_IN: &str = "\u{FDD2}";
/// Messages of a conversation whose answers are looked for by rendering it once for each.
const MAX_SEARCHED: usize = 2000;

/// Asks whether a text is still wanted.
type GoesOn<'a> = &'a dyn Fn() -> Result<()>;

/// A compiled chat template with the special tokens it may name.
#[derive(Debug)]
pub struct Template {
    program: ChatTemplate,
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
    ///
    /// # Errors
    /// As [`ChatTemplate::compile`].
    pub fn parse(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let program = ChatTemplate::compile(source)?;
        let marked = program.marks_generation();
        Ok(Self { program, bos: bos.map(str::to_owned), eos: eos.map(str::to_owned), marked })
    }

    /// What `reasoning_effort` is in the template.
    pub fn set_reasoning_effort(&mut self, effort: &str) {
        self.program.set_global("reasoning_effort", effort.to_owned());
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the assistant begins to speak.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String> {
        let text = self.run(conversation, add_generation_prompt)?;
        Ok(self.without_marks(text))
    }

    /// The text of a conversation, up to where the assistant begins to speak, as long as `goes_on` says that it is
    /// wanted.
    ///
    /// # Errors
    /// As [`Template::render`]; else what `goes_on` says.
    pub fn prompt_while(&self, conversation: &Conversation, goes_on: GoesOn<'_>) -> Result<String> {
        let text = self.run_with(conversation, true, Some(goes_on))?;
        Ok(self.without_marks(text))
    }

    fn without_marks(&self, text: String) -> String {
        if self.marked { text.replace([OPEN, CLOSE], "") } else { text }
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
        let count = conversation.messages.len();
        if count > MAX_SEARCHED {
            return Err(Error::validation(format!(
                "The conversation has {count} messages; at most {MAX_SEARCHED} are taken with a chat template that does \
                 not mark the assistant's words. Give shorter conversations, or a template with {{% generation %}} marks"
            )));
        }
        let last = count - 1;
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
        self.run_with(conversation, add_generation_prompt, None)
    }

    fn run_with(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
        goes_on: Option<GoesOn<'_>>,
    ) -> Result<String> {
        let reserved = |text: &str| text.contains([OPEN, CLOSE]);
        if conversation.system.as_deref().is_some_and(reserved)
            || conversation.messages.iter().any(|message| reserved(&message.text))
        {
            return Err(Error::validation("The text holds U+FDD0 or U+FDD1, which Unicode reserves; remove it"));
        }
        let texts = conversation.messages.iter().map(|message| message.text.len());
        let load = Load {
            messages: conversation.messages.len() + 1,
            bytes: texts.sum::<usize>() + conversation.system.as_deref().map_or(0, str::len),
        };
        let system = conversation.system.as_deref().map(|text| context! { role => "system", content => text });
        let turns = conversation
            .messages
            .iter()
            .map(|Message { role, text }| context! { role => role.name(), content => text.as_str() });
        // A model without the token leaves the name undefined, as `transformers` does.
        let token = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
        let given = [
            ("messages", Value::from(system.into_iter().chain(turns).collect::<Vec<Value>>())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("bos_token", token(&self.bos)),
            ("eos_token", token(&self.eos)),
        ];
        match goes_on {
            None => self.program.render(given, load),
            Some(goes_on) => self.program.render_while(given, load, goes_on),
        }
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
