//! JSON that knows where it stands. A user who gets "expected a string" wants to know where, and
//! `serde_json` tells the place of syntax errors only. So it judges the syntax first, and the
//! [`Node`]s here walk text that is known to be valid and remember each value's place.

use std::collections::HashSet;

use serde::de::IgnoredAny;

use super::jsonl::Fault;

/// Members or items directly within one value: no record needs so many, and memory holds all of them.
const MAX_PARTS: usize = 100_000;

/// One value of a line of valid JSON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node<'a> {
    line: &'a str,
    /// Byte range of the value in the line.
    start: usize,
    end: usize,
}

/// A member of an object: its name, where the name stands, its value.
pub(crate) struct Member<'a> {
    pub(crate) name: String,
    pub(crate) key: Node<'a>,
    pub(crate) value: Node<'a>,
}

/// Checks the syntax of `line` and returns its only value.
pub(crate) fn parse(line: &str) -> Result<Node<'_>, Fault> {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(line) {
        let byte = error.column().saturating_sub(1);
        let text = error.to_string();
        let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
        let hint = if error.is_eof() {
            "; the record ends too early: one whole JSON object must stand on the line"
        } else {
            ""
        };
        return Err(Fault::syntax(column(line, byte), format!("not valid JSON: {reason}{hint}")));
    }
    let start = skip_space(line.as_bytes(), 0);
    Ok(Node { line, start, end: end_of_value(line.as_bytes(), start) })
}

impl<'a> Node<'a> {
    /// Where the value begins, in characters from 1.
    pub(crate) fn column(&self) -> usize {
        column(self.line, self.start)
    }

    fn text(&self) -> &'a str {
        &self.line[self.start..self.end]
    }

    /// What kind of value it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.line.as_bytes().get(self.start) {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        }
    }

    /// The members of an object; `path` is what a message calls the value.
    pub(crate) fn members(self, path: &str) -> Result<Vec<Member<'a>>, Fault> {
        let mut members: Vec<Member<'a>> = Vec::new();
        let mut names = HashSet::new();
        for (key, value) in self.parts(path, b'{', "an object")? {
            let key = key.unwrap_or(value);
            let name = key.string(path)?;
            if !names.insert(name.clone()) {
                return Err(Fault::format(key.column(), format!("{}: the key \"{name}\" appears twice", of(path))));
            }
            members.push(Member { name, key, value });
        }
        Ok(members)
    }

    /// The items of an array.
    pub(crate) fn items(self, path: &str) -> Result<Vec<Node<'a>>, Fault> {
        Ok(self.parts(path, b'[', "an array")?.into_iter().map(|(_, value)| value).collect())
    }

    /// The text of a string.
    pub(crate) fn string(self, path: &str) -> Result<String, Fault> {
        if self.kind() != "a string" {
            return Err(self.expected(path, "a string"));
        }
        serde_json::from_str(self.text()).map_err(|_| {
            // Escapes are checked before; a lone half of a surrogate pair is all that is left.
            Fault::format(
                self.column(),
                format!("{}: the string holds half of a surrogate pair (\\uD800 to \\uDFFF)", of(path)),
            )
        })
    }

    /// "expected …, found …" at this value.
    pub(crate) fn expected(&self, path: &str, what: &str) -> Fault {
        Fault::format(self.column(), format!("{}: expected {what}, found {}", of(path), self.kind()))
    }

    /// Keys (of objects) and values that stand directly inside.
    fn parts(self, path: &str, open: u8, what: &str) -> Result<Vec<(Option<Node<'a>>, Node<'a>)>, Fault> {
        let bytes = self.line.as_bytes();
        if bytes.get(self.start) != Some(&open) {
            return Err(self.expected(path, what));
        }
        let value_at = |at: usize| Node { line: self.line, start: at, end: end_of_value(bytes, at) };
        let mut parts = Vec::new();
        let mut at = skip_space(bytes, self.start + 1);
        while at + 1 < self.end {
            let mut key = None;
            if open == b'{' {
                let name = value_at(at);
                at = skip_space(bytes, skip_space(bytes, name.end) + 1);
                key = Some(name);
            }
            let value = value_at(at);
            if parts.len() == MAX_PARTS {
                return Err(Fault::format(value.column(), format!("{}: has more than {MAX_PARTS} parts", of(path))));
            }
            parts.push((key, value));
            // Over the comma or the closing bracket.
            at = skip_space(bytes, skip_space(bytes, value.end) + 1);
        }
        Ok(parts)
    }
}

/// How a message names the place `path`; the empty path is the record itself.
fn of(path: &str) -> &str {
    if path.is_empty() { "the record" } else { path }
}

/// The column, in characters from 1, of byte `at`.
fn column(line: &str, at: usize) -> usize {
    line.char_indices().take_while(|(i, _)| *i < at).count() + 1
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The end of the valid value that begins at `at`.
fn end_of_value(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while !matches!(bytes.get(at), None | Some(b'"')) {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if depth == 0 {
                    return at + 1;
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => return if depth == 0 { at } else { at + 1 },
            b'}' | b']' => depth -= 1,
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Rebuilds what the nodes say.
    fn rebuild(node: Node<'_>) -> Value {
        match node.kind() {
            "an object" => {
                node.members("").unwrap().into_iter().map(|member| (member.name, rebuild(member.value))).collect()
            }
            "an array" => node.items("").unwrap().into_iter().map(rebuild).collect(),
            _ => serde_json::from_str(node.text()).unwrap(),
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::hash_map(any::<String>(), inner, 0..5)
                    .prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn nodes_say_what_serde_json_says(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            prop_assert_eq!(rebuild(parse(&text).unwrap()), value);
        }

        #[test]
        fn arbitrary_text_never_panics(text in "[\\[\\]{}\":, \\\\a-cé0-9]{0,40}") {
            if let Ok(node) = parse(&text) {
                let _ = node.members("x").map(|members| members.len());
                let _ = node.items("x").map(|items| items.len());
            }
        }
    }

    #[test]
    fn a_fault_names_the_column_in_characters() {
        let fault = parse("{\"é\": tru}").unwrap_err();
        assert_eq!((fault.column, fault.reason.as_str()), (Some(10), "not valid JSON: expected ident"));
        let fault = parse(r#"{"a": 1, "a": 2}"#).unwrap().members("").map(|_| ()).unwrap_err();
        assert_eq!((fault.column, fault.reason.as_str()), (Some(10), "the record: the key \"a\" appears twice"));
    }

    #[test]
    fn values_of_many_parts_are_refused_and_looked_through_in_time() {
        let array = format!("[{}1]", "1,".repeat(MAX_PARTS));
        let fault = parse(&array).unwrap().items("messages").map(|_| ()).unwrap_err();
        assert_eq!(fault.reason, "messages: has more than 100000 parts");
        // Compared each with each, these names would take a minute.
        let members: Vec<String> = (0..MAX_PARTS).map(|n| format!("\"{n}\":1")).collect();
        assert_eq!(parse(&format!("{{{}}}", members.join(","))).unwrap().members("").unwrap().len(), MAX_PARTS);
        // As deep as it may be, nothing recurses.
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(parse(&deep).unwrap().members("").unwrap().len(), 1);
    }

    #[test]
    fn half_a_surrogate_pair_is_a_fault_and_not_a_panic() {
        let fault = parse(r#"{"a": "\ud800"}"#).unwrap().members("").unwrap()[0].value.string("a").unwrap_err();
        assert_eq!(fault.column, Some(7));
    }
}
