//! Texts with `{{ item.reference_answer }}` or `{{ sample.output_text }}` in them, which become the values of
//! each sample. Source: OpenAI's guide to graders, "Templating".

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::train::Sample;

/// Places of one text.
const MAX_PLACES: usize = 100;
/// Members and indices of one place.
const MAX_KEYS: usize = 32;
/// Bytes of a text once its places are filled.
const MAX_FILLED: usize = 1 << 20;
/// Characters of a text that a message quotes.
const QUOTED: usize = 80;

/// A text with places to fill.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    /// `{{ item.… }}`: a member of the prompt's record.
    Item(Vec<Key>),
    /// `{{ sample.output_text }}`
    Output,
    /// `{{ sample.output_json.… }}`: a member of the answer read as JSON.
    OutputJson(Vec<Key>),
}

#[derive(Debug, Clone, PartialEq)]
enum Key {
    Member(String),
    Index(usize),
}

impl Template {
    /// Reads `text`.
    ///
    /// # Errors
    /// `Validation` when a place names something that there is not.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (mut pieces, mut places) = (Vec::new(), 0);
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (place, later) = after.split_once("}}").ok_or_else(|| {
                Error::validation(format!("the grader's text {:?} opens {{{{ and does not close it", quoted(text)))
            })?;
            places += 1;
            if places > MAX_PLACES {
                return Err(Error::validation(format!(
                    "the grader's text {:?} has more than {MAX_PLACES} places to fill",
                    quoted(text)
                )));
            }
            if !before.is_empty() {
                pieces.push(Piece::Text(before.into()));
            }
            pieces.push(Piece::parse(place.trim())?);
            rest = later;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        Ok(Self { pieces })
    }

    /// The text for one sample. What an answer lacks is empty, because that is the policy's doing; what the
    /// record lacks is an error.
    pub(super) fn fill(&self, sample: &Sample<'_>) -> std::result::Result<String, String> {
        let mut text = String::new();
        let mut answer = None;
        for piece in &self.pieces {
            let filled = match piece {
                Piece::Text(piece) => Cow::Borrowed(piece.as_str()),
                Piece::Output => Cow::Borrowed(sample.output),
                Piece::OutputJson(keys) => {
                    let answer = answer.get_or_insert_with(|| serde_json::from_str(sample.output.trim()).ok());
                    answer.as_ref().and_then(|value| walk(value, keys)).map_or(Cow::Borrowed(""), plain)
                }
                Piece::Item(keys) => match member(sample.item, keys) {
                    Some(value) => plain(value),
                    None => return Err(format!("the record has no member {}", path(keys))),
                },
            };
            // Before it is copied: one field may be as large as a record.
            if text.len() + filled.len() > MAX_FILLED {
                return Err(format!("a grader's text grows beyond {MAX_FILLED} bytes"));
            }
            text += &filled;
        }
        Ok(text)
    }
}

impl Piece {
    fn parse(place: &str) -> Result<Self> {
        let unknown = || {
            Error::validation(format!(
                "the grader names {{{{ {} }}}}; there are item.<member of the record>, sample.output_text and \
                 sample.output_json.<member>",
                quoted(place)
            ))
        };
        let keys = keys(place).filter(|keys| keys.len() <= MAX_KEYS).ok_or_else(unknown)?;
        match keys.as_slice() {
            [Key::Member(space), rest @ ..] if space == "item" && !rest.is_empty() => Ok(Self::Item(rest.to_vec())),
            [Key::Member(space), Key::Member(name)] if space == "sample" && name == "output_text" => Ok(Self::Output),
            [Key::Member(space), Key::Member(name), rest @ ..] if space == "sample" && name == "output_json" => {
                Ok(Self::OutputJson(rest.to_vec()))
            }
            _ => Err(unknown()),
        }
    }
}

/// `a.b[0].c` as its keys.
fn keys(place: &str) -> Option<Vec<Key>> {
    let mut keys = Vec::new();
    for part in place.split('.') {
        let (name, indices) = part.split_once('[').map_or((part, None), |(name, rest)| (name, Some(rest)));
        if name.is_empty() {
            return None;
        }
        keys.push(Key::Member(name.to_string()));
        let Some(indices) = indices else { continue };
        for index in indices.strip_suffix(']')?.split("][") {
            keys.push(Key::Index(index.trim().parse().ok()?));
        }
    }
    Some(keys)
}

fn member<'a>(item: &'a Map<String, Value>, keys: &[Key]) -> Option<&'a Value> {
    let [Key::Member(first), rest @ ..] = keys else { return None };
    walk(item.get(first)?, rest)
}

fn walk<'a>(value: &'a Value, keys: &[Key]) -> Option<&'a Value> {
    keys.iter().try_fold(value, |value, key| match key {
        Key::Member(name) => value.get(name),
        Key::Index(index) => value.get(index),
    })
}

/// A string as it is, anything else as JSON.
fn plain(value: &Value) -> Cow<'_, str> {
    value.as_str().map_or_else(|| Cow::Owned(value.to_string()), Cow::Borrowed)
}

/// The beginning of a text that may be long.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

fn path(keys: &[Key]) -> String {
    let mut text = String::from("item");
    for key in keys {
        match key {
            Key::Member(name) => text += &format!(".{name}"),
            Key::Index(index) => text += &format!("[{index}]"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(text: &str, output: &str) -> std::result::Result<String, String> {
        let item = json!({"reference_answer": {"label": "refund", "orders": [7, 9]}, "note": "n"});
        let sample = Sample { id: "1", messages: &[], output, item: item.as_object().unwrap() };
        Template::parse(text).unwrap().fill(&sample)
    }

    #[test]
    fn places_are_filled_from_the_record_and_the_answer() {
        assert_eq!(fill("{{item.reference_answer.label}}!", "").unwrap(), "refund!");
        assert_eq!(fill("<{{ item.note }}|{{ sample.output_text }}>", "yes").unwrap(), "<n|yes>");
        assert_eq!(fill("{{ item.reference_answer.orders[1] }}", "").unwrap(), "9");
        assert_eq!(fill("{{ item.reference_answer.orders }}", "").unwrap(), "[7,9]");
        assert_eq!(fill("{{ sample.output_json.a.b }}", r#" {"a": {"b": "c"}}"#).unwrap(), "c");
    }

    #[test]
    fn what_an_answer_lacks_is_empty_and_what_the_record_lacks_is_said() {
        assert_eq!(fill("[{{ sample.output_json.a }}]", "not json").unwrap(), "[]");
        assert_eq!(fill("{{ item.answer }}", "").unwrap_err(), "the record has no member item.answer");
    }

    #[test]
    fn places_that_name_nothing_are_refused() {
        for text in ["{{ item }}", "{{ sample.text }}", "{{ item.a[x] }}", "{{ item.", "{{}}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_text_has_few_places_and_stays_small_when_they_are_filled() {
        for many in ["{{ sample.output_text }}".repeat(101), "{{ sample.output_text }} ".repeat(101)] {
            assert!(Template::parse(&many).unwrap_err().message().contains("more than 100 places"));
        }
        let deep = format!("{{{{ item{} }}}}", ".a".repeat(10_000));
        let message = Template::parse(&deep).unwrap_err().message().to_string();
        assert!(message.contains("the grader names") && message.chars().count() < 300, "{message}");
        let some = "{{ sample.output_text }}".repeat(100);
        assert!(fill(&some, &"x".repeat(20_000)).unwrap_err().contains("grows beyond"));
        assert_eq!(fill(&some, &"x".repeat(MAX_FILLED / 100)).unwrap().len(), MAX_FILLED / 100 * 100);
        let json = "{{ sample.output_json.a }}".repeat(2);
        let half = format!(r#"{{"a": "{}"}}"#, "x".repeat(MAX_FILLED / 2));
        assert_eq!(fill(&json, &half).unwrap().len(), MAX_FILLED);
        assert!(fill(&format!("{json}."), &half).unwrap_err().contains("grows beyond"), "not a byte more");
        assert_eq!(fill(&some, "x").unwrap().len(), 100);
    }
}
