//! The shards of a model: the files that `model.safetensors.index.json` names. The index comes with the model, so its
//! names are held to be plain file names, and no more of it is kept than those.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::limits::{MAX_SHARDS, MAX_TENSORS, max_bytes, shortened, too_large};
use crate::error::{Error, Result};

/// The file that says which tensor lies in which file.
pub const INDEX: &str = "model.safetensors.index.json";
/// The one file of a model that is not spread over several.
pub const SINGLE: &str = "model.safetensors";

/// More than any file system takes with what downloads append.
const LONGEST_NAME: usize = 200;

#[derive(Deserialize)]
struct Index {
    weight_map: Shards,
}

/// The distinct files of a weight map.
struct Shards(BTreeSet<String>);

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(file: D) -> std::result::Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Shards;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("file names by the names of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Shards, M::Error> {
                let (mut tensors, mut names) = (0, BTreeSet::new());
                while let Some((_, name)) = map.next_entry::<serde::de::IgnoredAny, String>()? {
                    tensors += 1;
                    if tensors > MAX_TENSORS {
                        return Err(M::Error::custom(format!("it names more than {MAX_TENSORS} tensors")));
                    }
                    if !is_shard_name(&name) {
                        return Err(M::Error::custom(format!(
                            "{name:?} is not a file name that weights may have: a plain name that ends with .safetensors"
                        )));
                    }
                    names.insert(name);
                    if names.len() > MAX_SHARDS {
                        return Err(M::Error::custom(format!("it names more than {MAX_SHARDS} files")));
                    }
                }
                Ok(Shards(names))
            }
        }
        file.deserialize_map(Map)
    }
}

/// The files that an index names, sorted.
///
/// # Errors
/// When it is too large or no index, or names too many files or something that is no plain name of a safetensors
/// file.
pub fn shard_names(index: &[u8]) -> Result<Vec<String>> {
    let wrong = |what: String| Error::validation(shortened(format!("{INDEX}: {what}")));
    let most = max_bytes(INDEX);
    if index.len() as u64 > most {
        return Err(wrong(too_large(most)));
    }
    let Index { weight_map: Shards(names) } =
        serde_json::from_slice(index).map_err(|cause| wrong(cause.to_string()))?;
    if names.is_empty() {
        return Err(wrong("it names no file".into()));
    }
    Ok(names.into_iter().collect())
}

/// Whether weights may lie in a file of this name: one that stays in its folder and hides nothing.
fn is_shard_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(names: &[&str]) -> Result<Vec<String>> {
        let map: serde_json::Map<_, _> =
            names.iter().enumerate().map(|(at, name)| (format!("t{at}"), (*name).into())).collect();
        shard_names(serde_json::json!({ "metadata": {}, "weight_map": map }).to_string().as_bytes())
    }

    #[test]
    fn files_of_any_plain_name_are_named_once_each() {
        let names = ["pytorch_model-00002-of-00002.safetensors", "a b.safetensors", "a b.safetensors"];
        assert_eq!(index(&names).unwrap(), ["a b.safetensors", "pytorch_model-00002-of-00002.safetensors"]);
    }

    #[test]
    fn what_an_index_may_not_name_is_refused_by_name() {
        let long = format!("{}.safetensors", "x".repeat(300));
        for name in ["../a.safetensors", "a/b.safetensors", "a\\b.safetensors", ".safetensors", "..", "", &long] {
            assert!(index(&[name]).unwrap_err().message().contains("is not a file name"), "{name}");
        }
        for name in ["model.bin", "config.json", "a\n.safetensors", "a\0.safetensors"] {
            assert!(index(&[name]).unwrap_err().message().contains("is not a file name"), "{name}");
        }
        assert!(index(&[]).unwrap_err().message().contains("names no file"));
        let many: Vec<String> = (0..=MAX_SHARDS).map(|at| format!("{at}.safetensors")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(index(&many).unwrap_err().message().contains("more than 512 files"));
        assert!(index(&many[1..]).is_ok());
        let tensors = vec!["a.safetensors"; MAX_TENSORS + 1];
        assert!(index(&tensors).unwrap_err().message().contains("more than 200000 tensors"));
        let deep = format!("{}{}", "{\"weight_map\":".repeat(100_000), "}".repeat(100_000));
        assert!(shard_names(deep.as_bytes()).is_err());
        assert!(shard_names(&vec![b' '; 17 << 20]).unwrap_err().message().contains("16777216 bytes"));
    }
}
