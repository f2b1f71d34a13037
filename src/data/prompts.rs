//! Prompts for reinforcement fine-tuning: conversations that end with the user, in OpenAI's chat form, each with
//! what its grader is to know (`reference_answer` and any other member). All of them are held in memory, up to
//! [`MAX_HELD_BYTES`]: AWS takes 20,000 at most, and the texts are needed with every grade.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::batches::Cursor;
use super::corpus::SourceFacts;
use super::encode::Encoder;
use super::jsonl::{Class, Content, Fault, Lines, MAX_TREE_LINE_BYTES};
use super::prepare::Source;
use super::records::{Conversation, Message, Role, join_blocks};
use super::report::{Collector, DataReport};
use super::shuffle::Shuffle;
use crate::error::{Kind, Result};

/// The most bytes of prompts that one file may have.
pub const MAX_HELD_BYTES: u64 = 256 << 20;

/// What a record looks like.
const EXAMPLE: &str = r#"{"messages": [{"role": "user", "content": "..."}], "reference_answer": "..."}"#;

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRecord {
    /// The conversation as the model reads it, up to where the assistant begins to speak.
    pub tokens: Vec<u32>,
    /// The conversation as it was given.
    pub messages: Vec<Value>,
    /// What the record holds beside it: for the grader.
    pub item: Map<String, Value>,
    /// The line it stands on.
    pub line: u64,
}

/// The prompts of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    /// In the order of the file.
    pub records: Vec<PromptRecord>,
    /// The file.
    pub source: SourceFacts,
    /// Digest over the data, the tokenizer and the limit: equal keys mean equal prompts.
    pub key: String,
}

/// What came of a file.
#[derive(Debug)]
pub enum ReadPrompts {
    /// Every record is good.
    Ready(Prompts),
    /// The data is refused; the report names every bad line.
    Refused(DataReport),
}

impl Prompts {
    /// Reads `source`; prompts may have `max_tokens` tokens. A report of bad lines is written into `folder`. `goes_on` is
    /// asked before every line.
    ///
    /// # Errors
    /// When a file cannot be read or written, and what `goes_on` says.
    pub fn read(
        source: &Source,
        encoder: &Encoder,
        max_tokens: usize,
        folder: &Path,
        goes_on: &dyn Fn() -> Result<()>,
    ) -> Result<ReadPrompts> {
        let file = Hashing { inner: File::open(&source.path)?, digest: Sha256::new() };
        let mut lines = Lines::with_cap(file, MAX_TREE_LINE_BYTES)?;
        let mut bad = Collector::new(folder);
        let (mut records, mut blank_lines) = (Vec::new(), 0);
        let mut held = 0;
        while let Some(line) = lines.next_line()? {
            goes_on()?;
            let (fault, beginning) = match line.content {
                Content::Blank => {
                    blank_lines += 1;
                    continue;
                }
                Content::Bad(fault) | Content::Unreadable(fault) => (fault, String::new()),
                Content::Text(text) if held + text.len() as u64 > MAX_HELD_BYTES => {
                    let reason = format!("the prompts up to here take more than {MAX_HELD_BYTES} bytes; give fewer");
                    bad.add(&source.name, line.number, Fault::format(None, reason), "")?;
                    break;
                }
                Content::Text(text) => match record(&text, line.number, encoder, max_tokens)? {
                    Ok(record) => {
                        held += text.len() as u64;
                        records.push(record);
                        continue;
                    }
                    Err(fault) => (fault, text.chars().take(60).collect()),
                },
            };
            bad.add(&source.name, line.number, fault, &beginning)?;
        }
        if records.is_empty() && bad.is_empty() {
            bad.add(
                &source.name,
                0,
                Fault::syntax(None, format!("the file holds no prompt; give one per line, such as {EXAMPLE}")),
                "",
            )?;
        }
        if !bad.is_empty() {
            return Ok(ReadPrompts::Refused(bad.finish()?));
        }
        let sha256 = hex::encode(lines.into_inner().digest.finalize());
        let key = hex::encode(Sha256::digest(format!("{} {sha256} {max_tokens}", encoder.digest())));
        let source = SourceFacts { name: source.name.clone(), sha256, records: records.len() as u64, blank_lines };
        Ok(ReadPrompts::Ready(Self { records, source, key }))
    }

    /// How many steps `epochs` epochs take with so many prompts each.
    pub fn steps(&self, epochs: u64, batch_size: usize) -> u64 {
        (self.records.len().div_ceil(batch_size.max(1)) as u64) * epochs
    }

    /// The places of the next `batch_size` prompts in the order of the cursor's epoch, the last batch of an epoch
    /// perhaps with fewer; and where the one after them begins.
    pub fn deal(&self, seed: u64, batch_size: usize, cursor: Cursor) -> (Vec<usize>, Cursor) {
        let n = self.records.len() as u64;
        let order = Shuffle::new(n, seed, cursor.epoch);
        let end = (cursor.position + batch_size.max(1) as u64).min(n);
        let dealt = (cursor.position..end).map(|position| order.at(position) as usize).collect();
        let next =
            if end == n { Cursor { epoch: cursor.epoch + 1, position: 0 } } else { Cursor { position: end, ..cursor } };
        (dealt, next)
    }
}

/// One line as a prompt, or what is wrong with it; the outer error is ours.
fn record(
    text: &str,
    line: u64,
    encoder: &Encoder,
    max_tokens: usize,
) -> Result<std::result::Result<PromptRecord, Fault>> {
    let (messages, conversation, item) = match parse(text) {
        Ok(parsed) => parsed,
        Err(fault) => return Ok(Err(fault)),
    };
    let encoded = match (encoder.template(), conversation.messages.as_slice()) {
        (None, [only]) if conversation.system.is_none() => encoder.text_prompt(&only.text),
        _ => encoder.chat_prompt(&conversation),
    };
    let tokens = match encoded {
        Ok(tokens) => tokens,
        Err(error) if error.kind() == Kind::Validation => return Ok(Err(Fault::format(None, error.message()))),
        Err(error) => return Err(error),
    };
    if tokens.len() > max_tokens {
        let reason = format!("Maximum input token count {} exceeds limit of {max_tokens}", tokens.len());
        return Ok(Err(Fault { column: None, reason, class: Class::Length }));
    }
    Ok(Ok(PromptRecord { tokens, messages, item, line }))
}

type Parsed = (Vec<Value>, Conversation, Map<String, Value>);

fn parse(text: &str) -> std::result::Result<Parsed, Fault> {
    // Syntax errors, and keys that appear twice, with their place.
    super::json::parse(text)?.members("")?;
    let wrong = |reason: String| Fault::format(None, reason);
    let value: Value = serde_json::from_str(text).map_err(|cause| wrong(format!("not valid JSON: {cause}")))?;
    let Value::Object(mut item) = value else { return Err(wrong(format!("expected a JSON object such as {EXAMPLE}"))) };
    let messages = match item.shift_remove("messages") {
        Some(Value::Array(messages)) => messages,
        Some(_) => return Err(wrong("messages: expected an array".into())),
        None => return Err(wrong(format!("the key \"messages\" is missing; a record here is {EXAMPLE}"))),
    };
    let mut conversation = Conversation::default();
    for (i, message) in messages.iter().enumerate() {
        let role = message.get("role").and_then(Value::as_str);
        let text = content(message.get("content")).ok_or_else(|| {
            wrong(format!("messages[{i}].content: expected a string or an array of {{\"text\": \"...\"}} blocks"))
        })?;
        if text.trim().is_empty() {
            return Err(wrong(format!("messages[{i}].content: is empty")));
        }
        let expected = if conversation.messages.len().is_multiple_of(2) { Role::User } else { Role::Assistant };
        match role {
            Some("system" | "developer") if i == 0 => conversation.system = Some(text),
            Some(name) if name == expected.name() => conversation.messages.push(Message { role: expected, text }),
            _ => {
                let found = role.map_or_else(|| "nothing".to_string(), |role| format!("\"{role}\""));
                return Err(wrong(format!(
                    "messages[{i}].role: expected \"{}\", found {found}; a prompt may begin with the system, then the user \
                     and the assistant take turns",
                    expected.name()
                )));
            }
        }
    }
    match conversation.messages.last() {
        Some(Message { role: Role::User, .. }) => Ok((messages, conversation, item)),
        Some(_) => Err(wrong(
            "messages: the last message is the assistant's; a prompt ends with the user, and the model answers".into(),
        )),
        None => Err(wrong("messages: is empty; give at least a user's message".into())),
    }
}

/// The text of a message: a string, or text blocks.
fn content(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Array(blocks) => {
            let texts: Option<Vec<&str>> = blocks.iter().map(|block| block.get("text")?.as_str()).collect();
            Some(join_blocks(&texts?))
        }
        _ => None,
    }
}

/// Digests what is read through it.
struct Hashing<R> {
    inner: R,
    digest: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.digest.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Tokenizer;

    fn encoder() -> Encoder {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/starter");
        Encoder::of(&Tokenizer::read(&dir).unwrap()).unwrap()
    }

    fn read(lines: &str, max_tokens: usize) -> ReadPrompts {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.jsonl");
        std::fs::write(&path, lines).unwrap();
        let source = Source { path, name: "prompts.jsonl".into() };
        Prompts::read(&source, &encoder(), max_tokens, dir.path(), &|| Ok(())).unwrap()
    }

    #[test]
    fn reading_ends_when_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.jsonl");
        std::fs::write(&path, "\n".repeat(10)).unwrap();
        let source = Source { path, name: "prompts.jsonl".into() };
        let told = || Err(crate::error::Error::unavailable(anyhow::anyhow!("told to end")));
        let error = Prompts::read(&source, &encoder(), 8, dir.path(), &told).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
    }

    fn ready(lines: &str) -> Prompts {
        match read(lines, 64) {
            ReadPrompts::Ready(prompts) => prompts,
            ReadPrompts::Refused(report) => panic!("{}", report.message),
        }
    }

    #[test]
    fn a_record_is_a_conversation_that_ends_with_the_user_and_what_the_grader_is_to_know() {
        let prompts = ready(concat!(
            r#"{"id": "7", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "reference_answer": {"a": 1}}"#,
            "\n\n",
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}"#,
            "\n"
        ));
        let [first, second] = prompts.records.as_slice() else { panic!("two records") };
        assert_eq!((first.line, second.line, prompts.source.blank_lines), (1, 3, 1));
        assert_eq!(Value::from(first.item.clone()), serde_json::json!({"id": "7", "reference_answer": {"a": 1}}));
        assert_eq!((first.messages.len(), second.item.len()), (2, 0));
        let message = |text: &str| Message { role: Role::User, text: text.into() };
        let asked = Conversation { system: Some("Be brief.".into()), messages: vec![message("Hi")] };
        assert_eq!(first.tokens, encoder().chat_prompt(&asked).unwrap());
    }

    #[test]
    fn every_bad_line_is_told_with_what_is_wrong() {
        let lines = [
            r#"{"prompt": "a"}"#,
            "{",
            r#"{"messages": []}"#,
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            r#"{"messages": [{"role": "assistant", "content": "b"}]}"#,
            r#"{"messages": [{"role": "user", "content": 7}]}"#,
            r#"{"messages": [{"role": "user", "content": " "}]}"#,
        ];
        let ReadPrompts::Refused(report) = read(&lines.join("\n"), 64) else { panic!("it was taken") };
        assert_eq!(report.bad, 7);
        for part in [
            "\"messages\" is missing",
            "not valid JSON",
            "is empty; give",
            "ends with the user",
            "expected \"user\"",
            "expected a string",
            "content: is empty",
        ] {
            assert!(report.message.contains(part), "{part}: {}", report.message);
        }
        let ReadPrompts::Refused(report) = read(r#"{"messages": [{"role": "user", "content": "one two three"}]}"#, 4)
        else {
            panic!("it was taken")
        };
        assert!(report.message.contains("exceeds limit of 4"), "{}", report.message);
        let ReadPrompts::Refused(report) = read("\n", 4) else { panic!("it was taken") };
        assert!(report.message.contains("holds no prompt"), "{}", report.message);
    }

    #[test]
    fn every_epoch_deals_every_prompt_once_and_goes_on_from_its_cursor() {
        let line = |n: usize| format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"say {n}\"}}]}}\n");
        let prompts = ready(&(0..10).map(line).collect::<String>());
        assert_eq!(prompts.steps(2, 4), 6);
        let (mut cursor, mut dealt) = (Cursor::default(), Vec::new());
        while cursor.epoch < 2 {
            let (batch, next) = prompts.deal(5, 4, cursor);
            dealt.push(batch);
            cursor = next;
        }
        assert_eq!(dealt.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2]);
        for epoch in dealt.chunks(3) {
            let mut all = epoch.concat();
            all.sort_unstable();
            assert_eq!(all, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(dealt[0..3], dealt[3..6]);
    }
}
