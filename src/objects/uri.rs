//! `s3://bucket/key`, checked against the pattern of Bedrock's service model. A key is an opaque
//! name: it is never used as a path on a disk, so there is nothing in it to escape with.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use regex::Regex;

use crate::error::{Error, Result};

/// The pattern of the service model's `S3Uri` (source: botocore, bedrock 2023-04-20).
const PATTERN: &str = r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](?:/[-!_*'().a-z0-9A-Z]+(?:/[-!_*'().a-z0-9A-Z]+)*)?/?";

/// The longest URI that a request may carry, in characters.
const MAX_LENGTH: usize = 1024;

#[expect(clippy::expect_used, reason = "a constant pattern, compiled by a test")]
static WHOLE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&format!("^(?:{PATTERN})$")).expect("the pattern compiles"));

/// A bucket, and a key or a prefix of keys in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uri {
    bucket: String,
    key: String,
}

impl Uri {
    /// Reads `s3://bucket/key`; a slash at the end is dropped, so `s3://b/out/` and `s3://b/out` are
    /// the same place.
    ///
    /// # Errors
    /// `Validation` when the text is longer than 1,024 characters or does not match the pattern.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_LENGTH || !WHOLE.is_match(text) {
            return Err(Error::validation(format!(
                "{text:?} is not an S3 URI: write s3://bucket/key with letters, digits and -!_*'(). in the key"
            )));
        }
        let rest = text.strip_prefix("s3://").unwrap_or_default();
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        Ok(Self { bucket: bucket.to_string(), key: key.trim_end_matches('/').to_string() })
    }

    /// A place whose key need not fit the request's pattern, as listed by a server.
    pub fn new(bucket: impl Into<String>, key: impl Into<String>) -> Self {
        Self { bucket: bucket.into(), key: key.into() }
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key, without a slash at either end; empty for the bucket itself.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The place `name` under this one, with exactly one slash between.
    ///
    /// # Errors
    /// `Validation` when the key would be longer than the 1,024 bytes that S3 allows.
    pub fn join(&self, name: &str) -> Result<Self> {
        let key = if self.key.is_empty() { name.to_string() } else { format!("{}/{name}", self.key) };
        if key.len() > 1024 {
            return Err(Error::validation(format!(
                "The S3 key {:?} would be longer than 1024 bytes: choose a shorter outputDataConfig.s3Uri",
                key.chars().take(60).chain("…".chars()).collect::<String>()
            )));
        }
        Ok(Self { bucket: self.bucket.clone(), key })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.key.is_empty() { Ok(()) } else { write!(f, "/{}", self.key) }
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
    fn a_uri_is_a_bucket_and_a_key() {
        let uri = Uri::parse("s3://my-bucket/data/train.jsonl").unwrap();
        assert_eq!((uri.bucket(), uri.key()), ("my-bucket", "data/train.jsonl"));
        assert_eq!(Uri::parse("s3://my-bucket").unwrap().key(), "");
        assert_eq!(Uri::parse("s3://my-bucket/").unwrap(), Uri::parse("s3://my-bucket").unwrap());
        assert_eq!(Uri::parse("s3://my-bucket/out/").unwrap().join("a").unwrap().to_string(), "s3://my-bucket/out/a");
    }

    #[test]
    fn what_the_service_model_refuses_is_refused() {
        for text in [
            "",
            "s3://",
            "s3://a",
            "s3://My-bucket/k",
            "s3://b_b/k",
            "s3://bucket//k",
            "s3://bucket/a b",
            "https://b/k",
        ] {
            assert!(Uri::parse(text).is_err(), "{text}");
        }
        assert!(Uri::parse(&format!("s3://bucket/{}", "k".repeat(1024))).is_err());
        assert!(Uri::parse("s3://bucket/k").unwrap().join(&"k".repeat(1024)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_comes_back_as_it_was(text in ".{0,80}|s3://[a-z0-9.-]{3,10}(/[a-zA-Z0-9!_*'().-]{1,5}){0,4}/?") {
            if let Ok(uri) = Uri::parse(&text) {
                prop_assert_eq!(uri.to_string(), text.trim_end_matches('/'));
            }
        }
    }
}
