//! A model directory's tokenizer with what belongs to it: the special tokens, the chat template,
//! and which tokens end an answer.

mod outline;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;

use super::chat_template::ChatTemplate;
use super::config::{DecoderConfig, OneOrMany};
use super::limits::{self, wrong};
use crate::error::{Error, Kind, Result, panic_message};

const FILE: &str = "tokenizer.json";

/// Text to token ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<String>,
    eos: Option<String>,
    chat_template: Option<String>,
    ends: Vec<u32>,
}

/// `tokenizer_config.json`.
#[derive(Deserialize, Default)]
struct Settings {
    bos_token: Option<Special>,
    eos_token: Option<Special>,
    chat_template: Option<Template>,
}

/// A special token: its text, or the text with flags.
#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Flagged { content: String },
}

/// One template, or several of which `default` is meant.
#[derive(Deserialize)]
#[serde(untagged)]
enum Template {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// `generation_config.json`.
#[derive(Deserialize, Default)]
struct Generation {
    eos_token_id: Option<OneOrMany>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`, `chat_template.jinja`
    /// and `generation_config.json`.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing, or a file cannot be understood; the message names the file.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let Some(file) = limits::read_small(dir, FILE)? else {
            return Err(Error::validation(format!("The model has no {FILE}")).at(dir.display().to_string()));
        };
        let broken = |cause: tokenizers::Error| wrong(&path, cause);
        outline::check(&file).map_err(|cause| wrong(&path, cause))?;
        let mut inner = library(|| tokenizers::Tokenizer::from_bytes(&file)).map_err(broken)?;
        drop(file);
        let vocabulary = inner.get_vocab(true);
        limits::at_most("the number of tokens", vocabulary.len(), limits::MAX_VOCABULARY)
            .and_then(|()| {
                // An answer may be the longest of them again and again.
                let longest = vocabulary.keys().map(String::len).max().unwrap_or_default();
                limits::at_most("the length of a token", longest, limits::MAX_TOKEN)
            })
            .map_err(|cause| wrong(&path, cause))?;
        drop(vocabulary);
        // A tokenizer.json may carry the settings of whoever saved it; they would cut texts silently.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(broken)?;

        let settings: Settings = read_json(dir, "tokenizer_config.json")?.unwrap_or_default();
        let generation: Generation = read_json(dir, "generation_config.json")?.unwrap_or_default();

        let text = |special: Option<Special>| special.map(Special::into_text);
        let (bos, eos) = (text(settings.bos_token), text(settings.eos_token));
        let mut ends = generation.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default();
        limits::at_most("the number of eos_token_id", ends.len(), limits::MAX_END_TOKENS)
            .map_err(|cause| wrong(&dir.join("generation_config.json"), cause))?;
        if dir.join("config.json").exists() {
            ends.extend(DecoderConfig::read(dir)?.eos_token_ids);
        }
        ends.extend(eos.as_deref().and_then(|eos| inner.token_to_id(eos)));
        ends.sort_unstable();
        ends.dedup();

        let chat_template = if dir.join("chat_template.jinja").exists() {
            Some(limits::read_small_text(dir, "chat_template.jinja")?)
        } else {
            settings.chat_template.and_then(Template::into_default)
        };
        Ok(Self { inner, bos, eos, chat_template, ends })
    }

    /// The tokenizer itself.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// The token that ends a text, if the model has one.
    pub fn eos(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// The source of the chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The chat template, compiled and tried; `None` when the model has none.
    ///
    /// # Errors
    /// As [`ChatTemplate::try_out`].
    pub fn try_chat_template(&self) -> Result<Option<ChatTemplate>> {
        self.chat_template().map(|source| ChatTemplate::try_out(source, self.bos(), self.eos())).transpose()
    }

    /// The tokens after which the model has said all: end-of-text and end-of-turn.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The ids of a text. With `special` the tokenizer adds what it puts around every text.
    ///
    /// # Errors
    /// When the tokenizer cannot take the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        encode_text(&self.inner, text, special)
    }

    /// The text of ids; special tokens are left out unless `special`.
    ///
    /// # Errors
    /// When the tokenizer cannot take the ids.
    pub fn decode(&self, ids: &[u32], special: bool) -> Result<String> {
        library(|| self.inner.decode(ids, !special)).map_err(|cause| {
            Error::new(Kind::Model, "The model's tokenizer cannot give the text of its tokens")
                .because(anyhow::anyhow!("tokenizer: {cause}"))
        })
    }
}

/// The ids of a text.
///
/// # Errors
/// As [`encode_with_offsets`].
pub(crate) fn encode_text(tokenizer: &tokenizers::Tokenizer, text: &str, special: bool) -> Result<Vec<u32>> {
    let encoding = library(|| tokenizer.encode_fast(text, special)).map_err(refused)?;
    Ok(encoding.get_ids().to_vec())
}

/// The tokens of a text with the bytes of it that each stands for.
///
/// # Errors
/// When the tokenizer cannot take the text: it has no token for a part of it, or cannot be run on it.
pub(crate) fn encode_with_offsets(
    tokenizer: &tokenizers::Tokenizer,
    text: &str,
    special: bool,
) -> Result<tokenizers::Encoding> {
    library(|| tokenizer.encode(text, special)).map_err(refused)
}

/// The tokenizers library on a file that a stranger wrote: where it panics instead of refusing, that is an error too.
fn library<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // Its only shared state is a cache, which passes over a poisoned lock.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(format!("the tokenizers library failed: {}", panic_message(&*panic)).into()))
}

/// The text is at fault only together with the tokenizer: another text may pass.
fn refused(cause: tokenizers::Error) -> Error {
    let message = limits::shortened(format!("The model's tokenizer cannot take this text: {cause}"));
    Error::validation(message).because(anyhow::anyhow!("tokenizer: {cause}"))
}

fn read_json<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>> {
    let Some(bytes) = limits::read_small(dir, name)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|cause| wrong(&dir.join(name), cause))
}

impl Special {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Flagged { content: text } => text,
        }
    }
}

impl Template {
    fn into_default(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(all) => all.into_iter().find(|one| one.name == "default").map(|one| one.template),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word-level tokenizer of five words, two of them special.
    pub(crate) const WORDS: &str = r#"{
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null, "added_tokens": [
            {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "red": 2, "blue": 3, "[UNK]": 4}, "unk_token": "[UNK]"}
    }"#;

    #[test]
    fn special_tokens_template_and_ends_come_from_the_files_around_the_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(Tokenizer::read(dir.path()).unwrap_err().message().contains("no tokenizer.json"));
        write("tokenizer.json", WORDS);
        let bare = Tokenizer::read(dir.path()).unwrap();
        assert_eq!((bare.bos(), bare.eos(), bare.chat_template(), bare.ends()), (None, None, None, &[][..]));

        write(
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>",
                "chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}"#,
        );
        write("generation_config.json", r#"{"eos_token_id": [3, 1]}"#);
        let full = Tokenizer::read(dir.path()).unwrap();
        assert_eq!((full.bos(), full.eos(), full.chat_template()), (Some("<s>"), Some("</s>"), Some("d")));
        assert_eq!(full.ends(), [1, 3]);

        write("chat_template.jinja", "from the file");
        assert_eq!(Tokenizer::read(dir.path()).unwrap().chat_template(), Some("from the file"));

        write("generation_config.json", "{");
        assert!(Tokenizer::read(dir.path()).unwrap_err().message().contains("generation_config.json"));
    }

    #[test]
    fn a_file_on_which_the_library_panics_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        // Half a surrogate pair in a member that nobody reads: the library expects that no reading fails there.
        let file = WORDS.replace(r#""decoder": null"#, r#""decoder": {"type": "Fuse", "note": "\ud800"}"#);
        std::fs::write(dir.path().join("tokenizer.json"), file).unwrap();
        let error = Tokenizer::read(dir.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Validation);
        assert!(error.message().contains("tokenizer.json"), "{error}");
    }

    #[test]
    fn a_text_that_the_tokenizer_has_no_token_for_is_the_callers_to_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = WORDS.replace(r#""unk_token": "[UNK]""#, r#""unk_token": "[NONE]""#);
        std::fs::write(dir.path().join("tokenizer.json"), file).unwrap();
        let tokenizer = Tokenizer::read(dir.path()).unwrap();
        assert_eq!(tokenizer.encode("red", false).unwrap(), [2]);
        let error = tokenizer.encode("green", false).unwrap_err();
        assert_eq!(error.kind(), Kind::Validation);
        assert!(error.message().contains("cannot take this text"), "{error}");
    }

    #[test]
    fn a_saved_truncation_setting_does_not_cut_texts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), WORDS).unwrap();
        let tokenizer = Tokenizer::read(dir.path()).unwrap();
        let ids = tokenizer.encode("red blue red blue", true).unwrap();
        assert_eq!(ids, [2, 3, 2, 3]);
        assert_eq!(tokenizer.decode(&[0, 2, 1], false).unwrap(), "red");
        assert_eq!(tokenizer.decode(&[0, 2], true).unwrap(), "<s> red");
    }
}
