//! The files of a model that an import fetches: those that a model or an adapter consists of, and the shards that its
//! index names. What is missing or too large is refused by name before anything large is downloaded, and no small
//! file is read beyond the size that it may have.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::halt::Halt;
use super::retry::retry_unavailable;
use crate::artifacts::{QUANTIZATION, WEIGHT_FILES};
use crate::durable;
use crate::error::{Error, Kind, Result};
use crate::models::limits::{max_bytes, too_large};
use crate::models::{INDEX, SINGLE, shard_names};
use crate::objects::{Listed, Objects, Uri};

/// More objects than any model consists of.
const MOST_OBJECTS: usize = 10_000;
/// The most bytes of a model (AWS, "Import a customized model").
const MOST_BYTES: u64 = 200 << 30;

/// What an adapter consists of beside its weights.
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", QUANTIZATION];
/// What a whole model consists of beside its weights.
const MODEL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// A model's files, found and not fetched yet.
pub(super) struct Files {
    /// It is an adapter, not a whole model.
    pub(super) adapter: bool,
    /// Bytes of all of them.
    pub(super) bytes: u64,
    source: Uri,
    /// Each is read whole into memory.
    small: Vec<Listed>,
    weights: Vec<Listed>,
}

impl Files {
    /// Looks through a folder; `custom` says that it may hold an adapter.
    ///
    /// # Errors
    /// `Validation` that names what is missing, too large or no model.
    pub(super) async fn find(objects: &Objects, halt: &Halt, source: &Uri, custom: bool) -> Result<Self> {
        let listed = retry_unavailable(halt, "listing a model", async || list(objects, source).await).await?;
        let found: BTreeMap<&str, &Listed> = listed.iter().map(|object| (object.uri.name(), object)).collect();
        let adapter = custom && found.contains_key("adapter_config.json");
        refuse_what_is_no_model(source, &found.keys().copied().collect::<Vec<_>>(), adapter)?;
        let mut small: Vec<&str> = if adapter { ADAPTER_FILES.to_vec() } else { MODEL_FILES.to_vec() };
        let mut shards: Vec<String> = if adapter { WEIGHT_FILES } else { [SINGLE; 2] }.map(String::from).to_vec();
        shards.dedup();
        if !adapter && !found.contains_key(SINGLE) {
            let uri = source.join(INDEX);
            let read = async || objects.get_bytes(&uri, max_bytes(INDEX)).await;
            let index = retry_unavailable(halt, "reading the index of a model", read).await?;
            shards = shard_names(&index).map_err(|error| Error::validation(format!("{source}/{}", error.message())))?;
            if let Some(missing) = shards.iter().find(|name| !found.contains_key(name.as_str())) {
                return Err(Error::validation(format!("{source}/{missing} is missing: {INDEX} names it")));
            }
            small.push(INDEX);
        }
        let of = |names: &[&str]| -> Vec<Listed> {
            names.iter().filter_map(|name| found.get(name)).map(|object| (*object).clone()).collect()
        };
        let small = of(&small);
        let weights = of(&shards.iter().map(String::as_str).collect::<Vec<_>>());
        if let Some(large) = small.iter().find(|object| object.size > max_bytes(object.uri.name())) {
            return Err(Error::validation(format!("{}: {}", large.uri, too_large(max_bytes(large.uri.name())))));
        }
        let sizes = small.iter().chain(&weights).map(|object| object.size);
        let bytes = sizes.fold(0_u64, u64::saturating_add);
        if bytes > MOST_BYTES {
            return Err(Error::validation(format!(
                "The model in {source} has {bytes} bytes; {MOST_BYTES} are the most"
            )));
        }
        Ok(Self { adapter, bytes, source: source.clone(), small, weights })
    }

    /// Downloads them into `dir`, and gives the digest of each by its name.
    ///
    /// # Errors
    /// `Conflict` when one was replaced since it was found; as the object store has it.
    pub(super) async fn fetch(&self, objects: &Objects, halt: &Halt, dir: &Path) -> Result<BTreeMap<String, String>> {
        let mut digests = BTreeMap::new();
        for object in &self.small {
            let name = object.uri.name();
            let read = async || objects.get_bytes(&object.uri, max_bytes(name)).await;
            let bytes = retry_unavailable(halt, "downloading a model", read).await?;
            digests.insert(name.to_string(), hex::encode(Sha256::digest(&bytes)));
            let path = dir.join(name);
            tokio::task::spawn_blocking(move || durable::write(&path, &bytes)).await.map_err(Error::internal)??;
        }
        for object in &self.weights {
            let name = object.uri.name();
            let path = dir.join(name);
            let fetch = async || objects.get_to_file(&object.uri, &path).await;
            let fetched = retry_unavailable(halt, "downloading a model", fetch).await?;
            if fetched.size != object.size {
                return Err(Error::new(Kind::Conflict, format!("{} was replaced while it was read", object.uri)));
            }
            digests.insert(name.to_string(), fetched.sha256);
        }
        Ok(digests)
    }

    /// An error about one of the files as its owner knows the file: by its place in object storage.
    pub(super) fn placed(&self, error: Error) -> Error {
        let names = || self.small.iter().chain(&self.weights).map(|object| object.uri.name());
        let (message, kind) = (error.message(), error.kind());
        if kind == Kind::Validation && names().any(|name| message.starts_with(&format!("{name}: "))) {
            let placed = Error::validation(format!("{}/{message}", self.source));
            return match error.cause() {
                Some(cause) => placed.because(anyhow::anyhow!(cause)),
                None => placed,
            };
        }
        error
    }
}

/// The objects directly in the folder.
async fn list(objects: &Objects, source: &Uri) -> Result<Vec<Listed>> {
    let folder = source.folder();
    let mut pages = objects.list(&folder);
    let (mut seen, mut found) = (0, Vec::new());
    while let Some(page) = pages.next().await? {
        seen += page.len();
        if seen > MOST_OBJECTS {
            return Err(Error::validation(format!(
                "{source} holds more than {MOST_OBJECTS} objects: give the folder of one model"
            )));
        }
        let direct = |object: &Listed| {
            let below = object.uri.key().strip_prefix(folder.key());
            below.is_some_and(|name| !matches!(name, "" | "." | "..") && !name.contains('/'))
        };
        found.extend(page.into_iter().filter(direct));
    }
    Ok(found)
}

/// Says what is missing before anything is downloaded.
fn refuse_what_is_no_model(source: &Uri, names: &[&str], adapter: bool) -> Result<()> {
    let has = |name: &str| names.contains(&name);
    if !adapter && has("adapter_config.json") && !has("config.json") {
        return Err(Error::validation(format!(
            "{source} holds an adapter, not a whole model: make it a custom model with CreateCustomModel"
        )));
    }
    if adapter && !WEIGHT_FILES.iter().any(|name| has(name)) {
        return Err(Error::validation(format!("{source} lacks the adapter's weights: {}", WEIGHT_FILES.join(" or "))));
    }
    let needed: &[&str] = if adapter { &[] } else { &["config.json", "tokenizer.json"] };
    if let Some(missing) = needed.iter().find(|name| !has(name)) {
        return Err(Error::validation(format!("{source} lacks the file {missing}")));
    }
    if !adapter && !has(SINGLE) && !has(INDEX) {
        return Err(Error::validation(format!(
            "{source} has neither {SINGLE} nor {INDEX}; weights must be in the safetensors format"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_before_anything_is_downloaded() {
        let source = Uri::parse("s3://bucket/model").unwrap();
        let message = |names: &[&str], adapter| {
            refuse_what_is_no_model(&source, names, adapter).err().map(|error| error.message().to_string())
        };
        assert_eq!(message(&["config.json", "tokenizer.json", "model.safetensors"], false), None);
        assert_eq!(message(&["config.json", "tokenizer.json", "model.safetensors.index.json"], false), None);
        assert_eq!(message(&["config.json"], false).unwrap(), "s3://bucket/model lacks the file tokenizer.json");
        let weights = message(&["config.json", "tokenizer.json", "pytorch_model.bin"], false).unwrap();
        assert!(weights.contains("neither model.safetensors nor model.safetensors.index.json"), "{weights}");
        assert!(message(&["adapter_config.json"], false).unwrap().contains("CreateCustomModel"));
        assert!(message(&["adapter_config.json"], true).unwrap().contains("adapter_model.safetensors"));
        assert_eq!(message(&["adapter_config.json", "adapter.safetensors"], true), None);
    }
}
