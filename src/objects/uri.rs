//! `s3://bucket/key`, as Bedrock's `S3Uri` pattern allows it.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use regex::Regex;

use crate::error::{Error, Result};

/// Bedrock's `S3Uri` pattern. The `regex` crate matches in linear time, so a hostile value cannot
/// make it backtrack.
static PATTERN: LazyLock<Regex> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "the pattern is a constant, compiled by a unit test")]
    Regex::new(r"\As3://([a-z0-9][-.a-z0-9]{1,61}[a-z0-9])(?:/([-!_*'().a-z0-9A-Z]+(?:/[-!_*'().a-z0-9A-Z]+)*)?/?)?\z")
        .expect("the S3Uri pattern compiles")
});

/// Longest URI Bedrock takes.
const MAX_LENGTH: usize = 1024;

/// A bucket and a key (or a prefix, or nothing) in it. The key is opaque: it never becomes a path
/// of the file system, so `..` in it means two dots.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uri {
    bucket: String,
    key: String,
}

impl Uri {
    /// Reads what a caller sent.
    ///
    /// # Errors
    /// `Validation` when the text is longer than 1024 characters or does not match the pattern.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            // A caller's own text is repeated only as far as it stays readable.
            let shown: String = text.chars().take(200).collect();
            Error::validation(format!("{shown:?} is not an S3 URI: {why}"))
        };
        if text.len() > MAX_LENGTH {
            return Err(wrong("it is longer than 1024 characters"));
        }
        let parts = PATTERN.captures(text).ok_or_else(|| {
            wrong(
                "write s3://bucket/key, the bucket in lower-case letters, digits, '-' and '.', the key in letters, \
                 digits and -!_*'(). between single slashes",
            )
        })?;
        // The pattern leaves a trailing slash outside its groups; for a folder it belongs to the key.
        let bucket = parts.get(1).map_or("", |m| m.as_str());
        let key = text["s3://".len() + bucket.len()..].strip_prefix('/').unwrap_or_default();
        Ok(Self::new(bucket, key))
    }

    /// A URI from parts we already trust to belong together, such as a listing's answer. Any key is taken.
    pub fn new(bucket: impl Into<String>, key: impl Into<String>) -> Self {
        Self { bucket: bucket.into(), key: key.into() }
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key without its leading slash; empty for the whole bucket.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What follows the key's last slash: the object's own name. Empty for a folder.
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// This as a folder, and `below` in it, with exactly one slash between them.
    #[must_use]
    pub fn join(&self, below: &str) -> Self {
        let folder = self.key.trim_end_matches('/');
        let below = below.trim_start_matches('/');
        let key = if folder.is_empty() { below.to_string() } else { format!("{folder}/{below}") };
        Self { bucket: self.bucket.clone(), key }
    }

    /// This as a folder: listing it does not find `output-2` beside `output`.
    #[must_use]
    pub fn folder(&self) -> Self {
        if self.key.is_empty() { self.clone() } else { self.join("") }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bucket_and_key_are_told_apart() {
        for (text, bucket, key) in [
            ("s3://data/train.jsonl", "data", "train.jsonl"),
            ("s3://my.data-1/a/b/c.jsonl", "my.data-1", "a/b/c.jsonl"),
            ("s3://data", "data", ""),
            ("s3://data/", "data", ""),
            ("s3://data/output/", "data", "output/"),
            ("s3://data/../../etc/passwd", "data", "../../etc/passwd"),
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!((uri.bucket(), uri.key()), (bucket, key), "{text}");
        }
    }

    #[test]
    fn what_bedrock_refuses_is_refused_with_a_reason() {
        let long = format!("s3://data/{}", "a".repeat(1015));
        for text in [
            "",
            "data/key",
            "s3:/data/key",
            "s3://",
            "s3:///key",
            "s3://ab",
            "s3://Data/key",
            "s3://da_ta/key",
            "s3://data//key",
            "s3://data/a//b",
            "s3://data/a b",
            "s3://data/a//",
            "s3://data/a\n",
            "s3://data/a\0b",
            "s3://data/a%2e%2e",
            "s3://-data/key",
            "https://data/key",
            "s3://data/ключ",
            "s3://data/a?b",
            &long,
        ] {
            let error = Uri::parse(text).unwrap_err();
            assert!(error.message().contains("is not an S3 URI"), "{text}: {error}");
            assert!(error.message().len() < 600, "{error}");
        }
    }

    #[test]
    fn joining_puts_one_slash_between() {
        let folder = Uri::parse("s3://data/output/").unwrap();
        assert_eq!(folder.join("x/y.csv").to_string(), "s3://data/output/x/y.csv");
        assert_eq!(Uri::parse("s3://data/output").unwrap().join("/x").to_string(), "s3://data/output/x");
        assert_eq!(Uri::parse("s3://data").unwrap().join("x").to_string(), "s3://data/x");
        assert_eq!(Uri::parse("s3://data/output").unwrap().folder().key(), "output/");
        assert_eq!(Uri::parse("s3://data").unwrap().folder().key(), "");
        assert_eq!(folder.join("x/y.csv").name(), "y.csv");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_reads_again_the_same(text in "(s3://)?[ -~\u{0}é/]{0,60}") {
            if let Ok(uri) = Uri::parse(&text) {
                prop_assert_eq!(Uri::parse(&uri.to_string()).unwrap(), uri.clone());
                prop_assert!(!uri.bucket().contains('/'));
                prop_assert!(!uri.key().starts_with('/'));
                prop_assert!(!uri.key().contains('\0'));
            }
        }

        #[test]
        fn what_the_pattern_allows_is_read_whole(
            bucket in "[a-z0-9][-.a-z0-9]{1,61}[a-z0-9]",
            segments in prop::collection::vec("[-!_*'().a-z0-9A-Z]{1,20}", 0..5),
            slash in any::<bool>(),
        ) {
            let key = segments.join("/") + if slash && !segments.is_empty() { "/" } else { "" };
            let uri = Uri::parse(&format!("s3://{bucket}/{key}")).unwrap();
            prop_assert_eq!(uri.bucket(), bucket);
            prop_assert_eq!(uri.key(), key);
        }

        #[test]
        fn joining_stays_inside_the_bucket_and_under_the_folder(below in "[/.a-z]{0,20}") {
            let folder = Uri::new("data", "output");
            let inside = folder.join(&below);
            prop_assert_eq!(inside.bucket(), "data");
            prop_assert!(inside.key().starts_with("output/"));
        }
    }
}
