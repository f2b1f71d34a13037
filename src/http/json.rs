//! JSON from strangers: nesting is counted before anything is parsed, a member that stands twice is
//! refused instead of one of the two being taken, and a value of the wrong type is named by its place,
//! in the sentence that Bedrock uses for broken constraints.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_path_to_error::{Path, Segment};

use crate::error::{Error, Result};

/// How many objects and arrays may stand inside each other; no request of the contract has ten.
pub const MAX_DEPTH: usize = 64;
/// A quoted value longer than this is cut.
const QUOTED_CHARS: usize = 256;

/// How many values a body may hold: each takes far more memory than the two bytes that it may be written in.
pub const MAX_VALUES: usize = 200_000;

/// Refuses a body whose objects and arrays are nested too deep, or that holds too many values, and gives a bound of
/// their number. It walks the bytes once and keeps counters, so that no depth is a risk to it; whether they are JSON
/// at all is for [`parse`] to say.
pub fn check_form(body: &[u8]) -> Result<usize> {
    let (mut depth, mut quoted, mut escaped, mut values) = (0_usize, false, false, 1_usize);
    for &byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => (depth, values) = (depth + 1, values + 1),
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if values > MAX_VALUES {
            return Err(Error::validation(format!(
                "The request body holds more than {MAX_VALUES} values: send fewer or longer ones"
            )));
        }
        if depth > MAX_DEPTH {
            return Err(Error::validation(format!(
                "The request body is nested more than {MAX_DEPTH} levels deep: send fewer objects and arrays inside \
                 each other"
            )));
        }
    }
    Ok(values)
}

/// Reads the JSON object sent by a caller; an empty body is `{}`.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let value = if body.is_empty() {
        Value::Object(Map::new())
    } else {
        let strict: Strict = serde_json::from_slice(body)
            .map_err(|cause| Error::validation(format!("The request body is not valid JSON: {cause}")))?;
        strict.0
    };
    if !value.is_object() {
        return Err(Error::validation("The request body must be a JSON object"));
    }
    // Postgres stores no NUL in text, and no field has a use for one.
    if has_nul(&value) {
        return Err(Error::validation("The request body holds the character U+0000, which no field allows"));
    }
    serde_path_to_error::deserialize(&value).map_err(|cause| misfit(&value, cause.path(), &cause.inner().to_string()))
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

/// What serde says about a value, in Bedrock's words.
fn misfit(body: &Value, path: &Path, said: &str) -> Error {
    let (place, value) = locate(body, path);
    let expected = said.split_once(", expected ").map(|(_, expected)| expected);
    let Some(expected) = expected.filter(|_| said.starts_with("invalid type: ")) else {
        let at = if place.is_empty() { String::new() } else { format!(" at '{place}'") };
        return Error::validation(format!("Malformed request{at}: {said}"));
    };
    let (quoted, constraint) = match value {
        Some(Value::Null) => ("null".to_string(), "Member must not be null".to_string()),
        value => (format!("'{}'", value.map(quote).unwrap_or_default()), format!("Member must be {}", kind(expected))),
    };
    Error::validation(format!(
        "1 validation error detected: Value {quoted} at '{place}' failed to satisfy constraint: {constraint}"
    ))
}

/// The place as Bedrock writes it (`jobTags.1.member.key`), and what stands there.
fn locate<'a>(body: &'a Value, path: &Path) -> (String, Option<&'a Value>) {
    let (mut place, mut value) = (String::new(), Some(body));
    for segment in path {
        let step = match segment {
            Segment::Seq { index } => {
                value = value.and_then(|value| value.get(index));
                format!("{}.member", index + 1)
            }
            Segment::Map { key } => {
                value = value.and_then(|value| value.get(key));
                key.clone()
            }
            _ => continue,
        };
        if !place.is_empty() {
            place.push('.');
        }
        place.push_str(&step);
    }
    (place, value)
}

fn quote(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > QUOTED_CHARS => {
            text.chars().take(QUOTED_CHARS).chain(['…']).collect()
        }
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{} members]", items.len()),
        Value::Object(members) => format!("{{{} members}}", members.len()),
        plain => plain.to_string(),
    }
}

/// serde names Rust's types; callers know JSON's.
fn kind(expected: &str) -> &str {
    match expected {
        "f32" | "f64" => "a number",
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        "a sequence" => "a list",
        "a map" => "an object",
        name if name.starts_with("struct ") => "an object",
        other => other,
    }
}

/// Any JSON in which no object names a member twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let Strict(value) = members.next_value()?;
            if object.contains_key(&name) {
                let name: String = name.chars().take(QUOTED_CHARS).collect();
                return Err(A::Error::custom(format!("the member '{name}' stands twice: name each once")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    #[expect(dead_code, reason = "only whether it can be read counts")]
    struct Sample {
        job_name: Option<String>,
        hyper_parameters: Option<BTreeMap<String, String>>,
        job_tags: Option<Vec<BTreeMap<String, String>>>,
        share: Option<f32>,
    }

    fn refusal(body: &str) -> String {
        parse::<Sample>(body.as_bytes()).unwrap_err().message().to_string()
    }

    #[test]
    fn sixty_four_levels_are_taken_and_sixty_five_are_not_whatever_stands_in_strings() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        check_form(nested(64).as_bytes()).unwrap();
        assert!(check_form(nested(65).as_bytes()).unwrap_err().message().contains("64 levels"));
        check_form(format!("\"\\\"{}\"", "[".repeat(100)).as_bytes()).unwrap();
        check_form("{\"a\":[]},".repeat(1000).as_bytes()).unwrap();
        assert!(check_form("{\"a\":".repeat(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn a_body_of_many_small_values_is_refused_and_one_of_long_text_is_not() {
        let many = |values: usize| format!("[{}0]", "0,".repeat(values - 2));
        assert_eq!(check_form(many(1000).as_bytes()).unwrap(), 1000);
        check_form(many(MAX_VALUES).as_bytes()).unwrap();
        assert!(check_form(many(MAX_VALUES + 1).as_bytes()).unwrap_err().message().contains("200000 values"));
        let text = format!("{{\"prompt\": \"{}\"}}", "a, b [c], {d} ".repeat(100_000));
        assert_eq!(check_form(text.as_bytes()).unwrap(), 2);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_by_its_place() {
        let detected = "1 validation error detected: Value";
        for (body, rest) in [
            (r#"{"jobName": 1}"#, "'1' at 'jobName' failed to satisfy constraint: Member must be a string"),
            (r#"{"share": "x"}"#, "'x' at 'share' failed to satisfy constraint: Member must be a number"),
            (
                r#"{"hyperParameters": []}"#,
                "'[0 members]' at 'hyperParameters' failed to satisfy constraint: Member must be an object",
            ),
            (
                r#"{"hyperParameters": {"a": null}}"#,
                "null at 'hyperParameters.a' failed to satisfy constraint: Member must not be null",
            ),
            (
                r#"{"jobTags": [{}, {"key": true}]}"#,
                "'true' at 'jobTags.2.member.key' failed to satisfy constraint: Member must be a string",
            ),
            (
                r#"{"jobTags": [null]}"#,
                "null at 'jobTags.1.member' failed to satisfy constraint: Member must not be null",
            ),
        ] {
            assert_eq!(refusal(body), format!("{detected} {rest}"), "{body}");
        }
        assert!(refusal(&format!("{{\"share\": \"{}\"}}", "x".repeat(100_000))).len() < 1000);
    }

    #[test]
    fn a_member_that_stands_twice_is_refused_at_any_depth() {
        for body in [r#"{"jobName":"a","jobName":"b"}"#, r#"{"hyperParameters":{"a":"1","b":"2","a":"1"}}"#] {
            assert!(refusal(body).contains("stands twice"), "{body}");
        }
    }

    #[test]
    fn null_is_as_if_the_member_were_left_out() {
        assert!(parse::<Sample>(br#"{"jobName":null,"share":null}"#).unwrap().job_name.is_none());
    }

    #[test]
    fn numbers_and_text_arrive_as_they_were_sent() {
        let text = r#"{"a":[1,-2,2.5,1e300,18446744073709551615,"ü\n",true,null,{"b":{}}]}"#;
        let plain: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parse::<Value>(text.as_bytes()).unwrap(), plain);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = check_form(&bytes);
            let _ = parse::<Sample>(&bytes);
        }
    }
}
