//! Which base models there are: one Hugging Face directory each, named by the model's Bedrock id.
//! A directory that cannot be used is reported with the reason and left out; the rest stays usable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

use super::decoder::Decoder;
use super::limits::{read_small_text, wrong};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// What a base model may be customized with, by Bedrock's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Customization {
    /// Supervised training on prompts and answers.
    FineTuning,
    /// Training on plain text.
    ContinuedPreTraining,
    /// Training on another model's answers.
    Distillation,
}

impl Customization {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::FineTuning, Self::ContinuedPreTraining, Self::Distillation];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::FineTuning => "FINE_TUNING",
            Self::ContinuedPreTraining => "CONTINUED_PRE_TRAINING",
            Self::Distillation => "DISTILLATION",
        }
    }
}

/// A base model that can be trained on and asked.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundationModel {
    /// Bedrock id, for example `meta.llama3-2-1b-instruct-v1:0`.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Who made it.
    pub provider: String,
    /// The Hugging Face directory.
    pub dir: PathBuf,
    /// Longest sequence, in tokens.
    pub context_length: usize,
    /// What it may be customized with.
    pub customizations: Vec<Customization>,
    /// It has a chat template: conversations can be learned and held.
    pub chat: bool,
    /// Why its chat template is not used, though it has one.
    pub chat_fault: Option<String>,
    /// What others call it, for example `meta-llama/Llama-3.2-1B-Instruct`: adapters made elsewhere name
    /// their base so.
    pub aliases: Vec<String>,
    /// Hyperparameters that suit it better than the trainer's own defaults.
    pub hyper_parameters: BTreeMap<String, String>,
}

const CARD: &str = "card.toml";

/// `card.toml`, which may lie in a model's directory.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Card {
    provider: Option<String>,
    name: Option<String>,
    customizations: Option<Vec<Customization>>,
    context_length: Option<usize>,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    hyper_parameters: BTreeMap<String, CardValue>,
}

/// A hyperparameter of a card: for every tuning method, or in a table of its own for one.
#[derive(Deserialize)]
#[serde(untagged)]
enum CardValue {
    Always(String),
    Of(BTreeMap<String, String>),
}

/// The hyperparameters by name; those for one method stand behind its name: `prefix.learningRate`.
fn flat(values: BTreeMap<String, CardValue>) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    for (name, value) in values {
        match value {
            CardValue::Always(value) => drop(flat.insert(name, value)),
            CardValue::Of(table) => {
                flat.extend(table.into_iter().map(|(own, value)| (format!("{name}.{own}"), value)));
            }
        }
    }
    flat
}

/// A directory that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The directory.
    pub dir: PathBuf,
    /// Why, in a sentence for the operator.
    pub reason: String,
}

/// All base models, by id.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    models: BTreeMap<String, FoundationModel>,
    unreadable: Vec<Unreadable>,
}

impl Registry {
    /// Looks through `roots`: each is a folder of model directories. Of two directories with the
    /// same name the one in the earlier root counts.
    ///
    /// # Errors
    /// When a root cannot be listed. A directory inside that cannot be used is no error; see
    /// [`Registry::unreadable`].
    pub fn open(roots: &[PathBuf]) -> Result<Self> {
        let mut registry = Self::default();
        for root in roots {
            let listing = |cause: std::io::Error| {
                Error::validation(format!("cannot list the models folder {}: {cause}", root.display()))
            };
            let mut dirs = Vec::new();
            for entry in std::fs::read_dir(root).map_err(listing)? {
                let path = entry.map_err(listing)?.path();
                // Dot folders are caches and version control; plain files are notes beside the models.
                if path.is_dir() && !file_name(&path).starts_with('.') {
                    dirs.push(path);
                }
            }
            dirs.sort();
            for dir in dirs {
                registry.add(dir);
            }
        }
        Ok(registry)
    }

    fn add(&mut self, dir: PathBuf) {
        match inspect(&dir) {
            Ok(model) if self.models.contains_key(&model.id) => {
                let reason = format!("{} is already there from another folder", model.id);
                self.leave_out(dir, reason);
            }
            Ok(model) => {
                if let Some(fault) = &model.chat_fault {
                    tracing::warn!(model.id, model.reason = %fault, "a base model is not offered for chat: {fault}");
                }
                self.models.insert(model.id.clone(), model);
            }
            Err(error) => self.leave_out(dir, error.message().to_string()),
        }
    }

    fn leave_out(&mut self, dir: PathBuf, reason: String) {
        tracing::warn!(model.dir = %dir.display(), model.reason = %reason, "a model directory was left out: {reason}");
        self.unreadable.push(Unreadable { dir, reason });
    }

    /// The model of this id.
    pub fn get(&self, id: &str) -> Option<&FoundationModel> {
        self.models.get(id)
    }

    /// The model that an adapter means by its `base_model_name_or_path`: an id, a folder whose name is
    /// one, or an alias of a model's `card.toml`.
    pub fn known_as(&self, name: &str) -> Option<&FoundationModel> {
        let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
        self.get(name)
            .or_else(|| self.get(last))
            .or_else(|| self.all().find(|one| one.aliases.iter().any(|a| a == name)))
    }

    /// All models, sorted by id.
    pub fn all(&self) -> impl Iterator<Item = &FoundationModel> {
        self.models.values()
    }

    /// The directories that were left out, and why.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }
}

/// Whether this is an id that Bedrock's clients accept for a base model: two names joined by one
/// dot, then at most two version parts behind colons.
pub fn is_model_id(id: &str) -> bool {
    static PATTERN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new("^[a-z0-9-]{1,63}[.][a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2}$").ok());
    PATTERN.as_ref().is_some_and(|pattern| pattern.is_match(id))
}

/// Reads what the registry needs. Every weight is held to be there by the headers of its files; none is loaded.
fn inspect(dir: &Path) -> Result<FoundationModel> {
    let id = file_name(dir);
    if !is_model_id(&id) {
        return Err(Error::validation(format!(
            "the directory's name is the model's id and {id:?} is none: lower-case letters, digits and '-', with exactly \
             one dot, for example meta.llama3-2-1b-instruct-v1:0"
        )));
    }
    let config = Decoder::check_headers(dir)?;
    let tokenizer = Tokenizer::read(dir)?;
    let card = card(dir)?;
    if let Some(length) = card.context_length.filter(|length| *length == 0 || *length > config.max_positions) {
        return Err(Error::validation(format!(
            "card.toml: context_length {length} must be between 1 and the model's {}",
            config.max_positions
        )));
    }
    let (chat, chat_fault) = match tokenizer.try_chat_template() {
        Ok(template) => (template.is_some(), None),
        Err(fault) => (false, Some(fault.message().to_string())),
    };
    let (provider, name) = id.split_once('.').unwrap_or((&id, &id));
    Ok(FoundationModel {
        name: card.name.unwrap_or_else(|| name.to_string()),
        provider: card.provider.unwrap_or_else(|| provider.to_string()),
        dir: dir.to_path_buf(),
        context_length: card.context_length.unwrap_or(config.max_positions),
        customizations: card.customizations.unwrap_or_else(|| Customization::ALL.to_vec()),
        chat,
        chat_fault,
        aliases: card.aliases,
        hyper_parameters: flat(card.hyper_parameters),
        id,
    })
}

/// The hyperparameters that the `card.toml` in a model's directory recommends; none without a card.
///
/// # Errors
/// When the card cannot be understood.
pub fn recommended_hyper_parameters(dir: &Path) -> Result<BTreeMap<String, String>> {
    Ok(flat(card(dir)?.hyper_parameters))
}

fn card(dir: &Path) -> Result<Card> {
    if !dir.join(CARD).exists() {
        return Ok(Card::default());
    }
    let text = read_small_text(dir, CARD)?;
    toml::from_str(&text).map_err(|cause| wrong(&dir.join(CARD), cause.message()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of model directories, each a copy of a fixture with some files changed.
    fn folder(models: &[(&str, &[(&str, &str)])]) -> tempfile::TempDir {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama");
        let root = tempfile::tempdir().unwrap();
        for (id, files) in models {
            let dir = root.path().join(id);
            std::fs::create_dir(&dir).unwrap();
            for entry in std::fs::read_dir(&fixture).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
            }
            for (name, text) in *files {
                std::fs::write(dir.join(name), text).unwrap();
            }
        }
        root
    }

    #[test]
    fn a_directory_is_a_model_and_its_card_says_more() {
        let card = "name = \"Tiny\"\nprovider = \"Us\"\ncustomizations = [\"FINE_TUNING\"]\ncontext_length = 32\n\
                    aliases = [\"us/Tiny-32\"]\n";
        let root = folder(&[("test.tiny-v1:0", &[]), ("test.carded", &[("card.toml", card)])]);
        std::fs::write(root.path().join("README.md"), "notes").unwrap();
        let registry = Registry::open(&[root.path().to_path_buf()]).unwrap();
        assert!(registry.unreadable().is_empty(), "{:?}", registry.unreadable());
        assert_eq!(
            registry.all().map(|model| model.id.as_str()).collect::<Vec<_>>(),
            ["test.carded", "test.tiny-v1:0"]
        );
        let plain = registry.get("test.tiny-v1:0").unwrap();
        assert_eq!((plain.name.as_str(), plain.provider.as_str(), plain.context_length), ("tiny-v1:0", "test", 64));
        assert_eq!(plain.customizations, Customization::ALL);
        assert!(plain.chat);
        let carded = registry.get("test.carded").unwrap();
        assert_eq!((carded.name.as_str(), carded.provider.as_str(), carded.context_length), ("Tiny", "Us", 32));
        assert_eq!(carded.customizations, [Customization::FineTuning]);
        assert!(registry.get("test.other").is_none());
        for (name, id) in [
            ("test.tiny-v1:0", Some("test.tiny-v1:0")),
            ("/models/test.tiny-v1:0/", Some("test.tiny-v1:0")),
            ("us/Tiny-32", Some("test.carded")),
            ("us/Tiny", None),
        ] {
            assert_eq!(registry.known_as(name).map(|model| model.id.as_str()), id, "{name}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_left_out_with_its_reason() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama");
        let mut deeper: serde_json::Value =
            serde_json::from_slice(&std::fs::read(fixture.join("config.json")).unwrap()).unwrap();
        let layers = deeper["num_hidden_layers"].as_u64().unwrap();
        deeper["num_hidden_layers"] = (layers + 1).into();
        let (deeper, lacking) = (deeper.to_string(), format!("it lacks the tensor model.layers.{layers}.self_attn"));
        let gpt2 = r#"{"architectures": ["GPT2LMHeadModel"]}"#;
        let root = folder(&[
            ("good.model", &[]),
            ("two.dots.here", &[]),
            ("bad.architecture", &[("config.json", gpt2)]),
            ("bad.card", &[("card.toml", "colour = 1")]),
            ("bad.length", &[("card.toml", "context_length = 65")]),
            ("bad.tokenizer", &[("tokenizer.json", "{}")]),
            ("bad.weights", &[("model.safetensors", "short")]),
            ("few.weights", &[("config.json", &deeper)]),
        ]);
        let registry = Registry::open(&[root.path().to_path_buf()]).unwrap();
        assert_eq!(registry.all().count(), 1);
        let reasons: Vec<_> = registry.unreadable().iter().map(|one| one.reason.as_str()).collect();
        for (reason, said) in reasons.iter().zip([
            "GPT2LMHeadModel is not supported; supported are LlamaForCausalLM, MistralForCausalLM",
            "unknown field `colour`",
            "context_length 65 must be between 1 and the model's 64",
            "tokenizer.json",
            "model.safetensors",
            &lacking,
            "exactly one dot",
        ]) {
            assert!(reason.contains(said), "{reason:?} should say {said:?}");
        }
        assert_eq!(reasons.len(), 7);
    }

    #[test]
    fn a_base_whose_chat_template_cannot_be_used_is_kept_and_not_offered_for_chat() {
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
        let root = folder(&[
            ("good.model", &[]),
            ("bad.chain", &[("chat_template.jinja", &format!("{{{{ a{} }}}}", "+a".repeat(20_000)))]),
            ("bad.loop", &[("chat_template.jinja", endless)]),
        ]);
        let registry = Registry::open(&[root.path().to_path_buf()]).unwrap();
        assert!(registry.unreadable().is_empty(), "{:?}", registry.unreadable());
        let of = |id: &str| registry.get(id).map(|model| (model.chat, model.chat_fault.clone())).unwrap();
        assert_eq!(of("good.model"), (true, None));
        for (id, why) in [("bad.chain", "more than 1000 words"), ("bad.loop", "takes more work")] {
            let (chat, fault) = of(id);
            assert!(!chat && fault.as_ref().unwrap().contains(why), "{id}: {fault:?}");
        }
    }

    #[test]
    fn the_earlier_folder_wins_and_a_missing_folder_is_an_error() {
        let (first, second) = (folder(&[("a.b", &[])]), folder(&[("a.b", &[]), ("c.d", &[])]));
        let registry = Registry::open(&[first.path().into(), second.path().into()]).unwrap();
        assert_eq!(registry.get("a.b").unwrap().dir, first.path().join("a.b"));
        assert!(registry.get("c.d").is_some());
        assert!(registry.unreadable()[0].reason.contains("already there"));
        let missing = Registry::open(&[first.path().join("nowhere")]).unwrap_err();
        assert!(missing.message().contains("nowhere"), "{missing}");
    }

    #[test]
    fn ids_follow_bedrocks_pattern() {
        for id in ["meta.llama3-2-1b-instruct-v1:0", "a.b", "a.b:1:2"] {
            assert!(is_model_id(id), "{id}");
        }
        for id in ["a", "a.b.c", "A.b", "a.b:1:2:3", "a.", ".b", "a.b\n", "a.b_c"] {
            assert!(!is_model_id(id), "{id:?}");
        }
    }
}
