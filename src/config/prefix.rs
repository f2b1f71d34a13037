//! A part of object storage that someone may use: a bucket, or a folder in one.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::objects::{is_plain, is_within};

/// `s3://bucket` or `s3://bucket/folder`. A folder ends where a slash does: `s3://b/data` holds
/// `s3://b/data/a` and not `s3://b/database`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix {
    bucket: String,
    folder: String,
}

impl Prefix {
    /// Whether an `s3://` URI lies inside. A key with `.` or `..` for a folder lies nowhere: some
    /// stores would read it as a path.
    pub fn holds(&self, uri: &str) -> bool {
        let Some((bucket, key)) = split(uri) else { return false };
        bucket == self.bucket && is_plain(key) && is_within(&self.folder, key)
    }
}

impl Prefix {
    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The folder, without a slash at its end; empty for the whole bucket.
    pub fn folder(&self) -> &str {
        &self.folder
    }
}

fn split(uri: &str) -> Option<(&str, &str)> {
    let rest = uri.strip_prefix("s3://")?;
    Some(rest.split_once('/').unwrap_or((rest, "")))
}

impl FromStr for Prefix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let parts = split(text).filter(|(bucket, _)| bucket.len() >= 3 && bucket.bytes().all(known));
        let (bucket, folder) =
            parts.ok_or_else(|| Error::validation(format!("{text:?} is not s3://bucket or s3://bucket/folder")))?;
        Ok(Self { bucket: bucket.to_string(), folder: folder.trim_end_matches('/').to_string() })
    }
}

impl TryFrom<String> for Prefix {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_holds_what_is_in_it_and_not_its_neighbours() {
        for (prefix, uri, holds) in [
            ("s3://data", "s3://data/a/b", true),
            ("s3://data", "s3://data", true),
            ("s3://data", "s3://data-2/a", false),
            ("s3://data/in", "s3://data/in/a.jsonl", true),
            ("s3://data/in/", "s3://data/in/a.jsonl", true),
            ("s3://data/in", "s3://data/in/", true),
            ("s3://data/in", "s3://data/in", true),
            ("s3://data/in", "s3://data/input/a", false),
            ("s3://data/in", "s3://data", false),
            ("s3://data/in", "s3://data/in/../out/a", false),
            ("s3://data", "https://data/a", false),
        ] {
            assert_eq!(prefix.parse::<Prefix>().unwrap().holds(uri), holds, "{prefix} {uri}");
        }
    }

    #[test]
    fn what_names_no_bucket_is_refused() {
        for text in ["", "data", "s3://", "s3:///key", "s3://A-b/c", "s3://a b/c", "https://data"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }
}
