//! Constraints on requests, and Bedrock's sentences about them:
//! `1 validation error detected: Value 'X' at 'field.path' failed to satisfy constraint: …`. Every
//! violation of a request is reported at once.

use std::fmt::Write;

use regex::Regex;

use crate::error::{Error, Result};

/// What is wrong with a request so far.
#[derive(Debug, Default)]
pub struct Violations(Vec<String>);

/// Something that can be checked against the service model.
pub trait Shape {
    /// Reports what is wrong with the value found at the path `at`.
    fn check(&self, at: &str, violations: &mut Violations);
}

/// A quoted value longer than this is cut: a reply should not repeat a megabyte.
const QUOTED_CHARS: usize = 256;

impl Violations {
    /// Reports one violation.
    pub fn add(&mut self, value: &str, at: &str, constraint: &str) {
        let mut quoted: String = value.chars().take(QUOTED_CHARS).collect();
        if quoted.len() < value.len() {
            quoted.push('…');
        }
        self.0.push(format!("Value '{quoted}' at '{at}' failed to satisfy constraint: {constraint}"));
    }

    /// A member that must be there, and in shape.
    pub fn required(&mut self, at: &str, value: Option<&impl Shape>) {
        match value {
            Some(value) => value.check(at, self),
            None => self.missing(at),
        }
    }

    /// A member that may be left out.
    pub fn optional(&mut self, at: &str, value: Option<&impl Shape>) {
        if let Some(value) = value {
            value.check(at, self);
        }
    }

    /// A list that must be there, with `min` to `max` members, each in shape.
    pub fn required_list(&mut self, at: &str, list: Option<&[impl Shape]>, min: usize, max: usize) {
        match list {
            Some(list) => self.list(at, Some(list), min, max),
            None => self.missing(at),
        }
    }

    /// A list that may be left out.
    pub fn list(&mut self, at: &str, list: Option<&[impl Shape]>, min: usize, max: usize) {
        let Some(list) = list else { return };
        let size = format!("[{} members]", list.len());
        if list.len() < min {
            self.add(&size, at, &format!("Member must have length greater than or equal to {min}"));
        }
        if list.len() > max {
            self.add(&size, at, &format!("Member must have length less than or equal to {max}"));
            return;
        }
        for (index, member) in list.iter().enumerate() {
            member.check(&format!("{at}.{}.member", index + 1), self);
        }
    }

    /// A number that may be left out, between two limits.
    pub fn range<T: PartialOrd + std::fmt::Display>(&mut self, at: &str, number: Option<T>, min: T, max: T) {
        let Some(number) = number else { return };
        if number < min {
            self.add(&number.to_string(), at, &format!("Member must have value greater than or equal to {min}"));
        }
        if number > max {
            self.add(&number.to_string(), at, &format!("Member must have value less than or equal to {max}"));
        }
    }

    /// A union: exactly one of its members must be there.
    pub fn union(&mut self, at: &str, members: &[(&str, bool)]) {
        let there: Vec<&str> = members.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
        if there.len() != 1 {
            let names: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
            let constraint = format!("Member must have exactly one of: {}", names.join(", "));
            self.add(&format!("[{}]", there.join(", ")), at, &constraint);
        }
    }

    /// Reports a member that must be there and is not.
    pub fn missing(&mut self, at: &str) {
        self.0.push(format!("Value null at '{at}' failed to satisfy constraint: Member must not be null"));
    }

    /// Nothing, or one error that names every violation.
    pub fn finish(self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            count => {
                let noun = if count == 1 { "error" } else { "errors" };
                Err(Error::validation(format!("{count} validation {noun} detected: {}", self.0.join("; "))))
            }
        }
    }
}

/// Checks one value.
pub fn check(at: &str, value: &impl Shape) -> Result<()> {
    let mut violations = Violations::default();
    value.check(at, &mut violations);
    violations.finish()
}

/// A member that [`Violations::required`] has already asked for.
pub fn given<T>(value: Option<T>, at: &str) -> Result<T> {
    let mut violations = Violations::default();
    violations.missing(at);
    value.ok_or_else(|| violations.finish().err().unwrap_or_else(|| Error::validation(at)))
}

/// Length in characters, then the pattern over the whole text.
pub(super) fn check_text(
    text: &str,
    at: &str,
    (min, max): (usize, usize),
    pattern: &str,
    regex: Option<&Regex>,
    violations: &mut Violations,
) {
    let length = text.chars().count();
    if length < min {
        violations.add(text, at, &format!("Member must have length greater than or equal to {min}"));
    }
    if length > max {
        violations.add(text, at, &format!("Member must have length less than or equal to {max}"));
    }
    if !regex.is_some_and(|regex| regex.is_match(text)) {
        violations.add(text, at, &format!("Member must satisfy regular expression pattern: {pattern}"));
    }
}

/// The sentence about a value that is not among the allowed ones.
pub(super) fn one_of(allowed: &[&str]) -> String {
    let mut text = String::from("Member must satisfy enum value set: [");
    for (index, name) in allowed.iter().enumerate() {
        let _ = write!(text, "{}{name}", if index == 0 { "" } else { ", " });
    }
    text.push(']');
    text
}

/// Texts with a length and a pattern.
macro_rules! texts {
    ($( $(#[$doc:meta])* $name:ident, $min:literal ..= $max:literal, $pattern:literal; )+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $crate::bedrock::constraint::Shape for $name {
            fn check(&self, at: &str, violations: &mut $crate::bedrock::constraint::Violations) {
                static REGEX: std::sync::LazyLock<Option<regex::Regex>> =
                    std::sync::LazyLock::new(|| regex::Regex::new(concat!("^(?:", $pattern, ")$")).ok());
                let limits = ($min, $max);
                $crate::bedrock::constraint::check_text(&self.0, at, limits, $pattern, REGEX.as_ref(), violations);
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::SchemaType::new(utoipa::openapi::schema::Type::String))
                    .min_length(Some($min))
                    .max_length(Some($max))
                    .pattern(Some(concat!("^(?:", $pattern, ")$")))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    )+};
}

/// Texts out of a fixed set.
macro_rules! choices {
    ($( $(#[$doc:meta])* $name:ident, [$($choice:literal),+ $(,)?]; )+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// Every allowed value.
            pub const ALL: &[&str] = &[$($choice),+];
        }

        impl $crate::bedrock::constraint::Shape for $name {
            fn check(&self, at: &str, violations: &mut $crate::bedrock::constraint::Violations) {
                if !Self::ALL.contains(&self.0.as_str()) {
                    violations.add(&self.0, at, &$crate::bedrock::constraint::one_of(Self::ALL));
                }
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::SchemaType::new(utoipa::openapi::schema::Type::String))
                    .enum_values(Some(Self::ALL.iter().copied()))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    )+};
}

pub(crate) use {choices, texts};

#[cfg(test)]
mod tests {
    #![expect(unreachable_pub, reason = "the macros make shapes for other modules")]

    use super::*;

    texts! {
        /// For these tests.
        Word, 2..=3, "[a-z]+";
    }

    choices! {
        /// For these tests.
        Colour, ["red", "blue"];
    }

    #[test]
    fn one_violation_reads_as_aws_writes_it() {
        let refusal = check("a.b", &Word("A1".into())).unwrap_err();
        assert_eq!(
            refusal.message(),
            "1 validation error detected: Value 'A1' at 'a.b' failed to satisfy constraint: Member must satisfy regular \
             expression pattern: [a-z]+"
        );
    }

    #[test]
    fn several_violations_are_joined_and_counted() {
        let mut violations = Violations::default();
        violations.required("first", None::<&Word>);
        violations.required("second", Some(&Colour("green".into())));
        violations.list("third", Some([Word("ab".into()), Word("b".into())].as_slice()), 0, 5);
        assert_eq!(
            violations.finish().unwrap_err().message(),
            "3 validation errors detected: Value null at 'first' failed to satisfy constraint: Member must not be null; \
             Value 'green' at 'second' failed to satisfy constraint: Member must satisfy enum value set: [red, blue]; \
             Value 'b' at 'third.2.member' failed to satisfy constraint: Member must have length greater than or equal to 2"
        );
    }

    #[test]
    fn a_long_value_is_not_repeated_whole() {
        let refusal = check("a", &Word("x".repeat(1_000_000))).unwrap_err();
        assert!(refusal.message().len() < 1000);
    }
}
