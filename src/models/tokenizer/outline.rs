//! `tokenizer.json` as far as it is held to limits before it is believed. Its parts are small programs over texts: what
//! they may add to a text is bounded here, so that no prompt and no answer becomes a multiple of itself without end.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::super::limits::{MAX_ADDED_BYTES, MAX_ADDED_TOKENS, at_most, shortened};

/// Parts of a tokenizer: normalizers, pre-tokenizers, processors and decoders together.
const MAX_PARTS: usize = 256;
/// Entries of one list among those parts.
const MAX_LIST: usize = 64;
/// Bytes of all texts and regular expressions that parts look for. The longest published ones have about 2,000.
const MAX_PATTERNS: usize = 16 << 10;
/// Bytes that a regular expression may take once compiled, for each stretch of it that is compiled by itself.
const MAX_COMPILED_PATTERN: usize = 1 << 20;
/// Counted repetitions (`{1,3}`) of all regular expressions: each may make a stretch as large as it may be.
const MAX_REPETITIONS: usize = 64;
/// How many times longer all replacements together may make a text.
const MAX_GROWTH: usize = 64;
/// Bytes of a text that a part puts somewhere as a whole: a prefix, or what one character becomes.
const MAX_PIECE: usize = 256;

#[derive(Deserialize)]
struct Outline<'a> {
    /// Held to its limits while it is read.
    #[serde(default, rename = "added_tokens")]
    _added: Added,
    #[serde(borrow)]
    normalizer: Option<Part<'a>>,
    #[serde(borrow)]
    pre_tokenizer: Option<Part<'a>>,
    #[serde(borrow)]
    post_processor: Option<Part<'a>>,
    #[serde(borrow)]
    decoder: Option<Part<'a>>,
    #[serde(borrow)]
    model: Option<Model<'a>>,
}

/// A normalizer, pre-tokenizer, processor or decoder, or a sequence of them.
#[derive(Deserialize, Default)]
struct Part<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pattern: Option<Pattern<'a>>,
    #[serde(borrow)]
    prepend: Option<Cow<'a, str>>,
    #[serde(borrow)]
    precompiled_charsmap: Option<Cow<'a, str>>,
    #[serde(borrow, default, alias = "pretokenizers", alias = "processors", alias = "decoders")]
    normalizers: List<Part<'a>>,
    #[serde(default)]
    single: List<Piece>,
    #[serde(default)]
    pair: List<Piece>,
    #[serde(default)]
    special_tokens: Specials,
}

/// What a replacement looks for.
#[derive(Deserialize)]
enum Pattern<'a> {
    #[serde(borrow)]
    String(Cow<'a, str>),
    #[serde(borrow)]
    Regex(Cow<'a, str>),
}

/// A piece of the template that is put around a text.
#[derive(Deserialize)]
enum Piece {
    Sequence { id: String },
    SpecialToken { id: String },
}

#[derive(Deserialize)]
struct Special {
    #[serde(default)]
    ids: List<u32>,
}

/// The special tokens of a template; what is no map of them the tokenizer itself refuses.
#[derive(Deserialize, Default)]
#[serde(transparent)]
struct Specials(BTreeMap<String, Special>);

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow)]
    continuing_subword_prefix: Option<Cow<'a, str>>,
    #[serde(borrow)]
    end_of_word_suffix: Option<Cow<'a, str>>,
}

/// At most [`MAX_LIST`] entries.
struct List<T>(Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(file: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<List<T>, S::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    entries.push(entry);
                    at_most("the length of a list of parts", entries.len(), MAX_LIST).map_err(S::Error::custom)?;
                }
                Ok(List(entries))
            }
        }
        file.deserialize_seq(Entries(PhantomData))
    }
}

/// How many tokens are added, and the bytes of their texts: a machine that looks for all of them at once takes many
/// times those bytes.
#[derive(Default)]
struct Added {
    tokens: usize,
    bytes: usize,
}

impl<'de> Deserialize<'de> for Added {
    fn deserialize<D: Deserializer<'de>>(file: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Token<'a> {
            #[serde(borrow)]
            content: Cow<'a, str>,
        }
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Added;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tokens")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Added, S::Error> {
                let mut added = Added::default();
                while let Some(token) = list.next_element::<Token<'_>>()? {
                    added.tokens += 1;
                    added.bytes += token.content.len();
                    at_most("the number of added tokens", added.tokens, MAX_ADDED_TOKENS)
                        .and_then(|()| at_most("the size of added tokens", added.bytes, MAX_ADDED_BYTES))
                        .map_err(S::Error::custom)?;
                }
                Ok(added)
            }
        }
        file.deserialize_seq(Tokens)
    }
}

/// Holds a `tokenizer.json` to its limits.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    let outline: Outline<'_> = serde_json::from_slice(file).map_err(|cause| cause.to_string())?;
    let parts = [outline.normalizer, outline.pre_tokenizer, outline.post_processor, outline.decoder];
    let mut totals = Totals::default();
    for part in parts.iter().flatten() {
        // What goes in and what comes out are texts of their own.
        totals.growth = 1;
        part.check(&mut totals)?;
    }
    let model = outline.model.as_ref();
    let affixes = model.map(|model| [&model.continuing_subword_prefix, &model.end_of_word_suffix]);
    for affix in affixes.into_iter().flatten().flatten() {
        at_most("the length of a prefix or a suffix of subwords", affix.len(), MAX_PIECE)?;
    }
    Ok(())
}

/// What all parts come to.
#[derive(Default)]
struct Totals {
    parts: usize,
    growth: usize,
    patterns: usize,
    repetitions: usize,
}

impl Totals {
    /// A pattern that is compiled: its size is held to a limit before the tokenizer compiles it without one.
    fn add(&mut self, pattern: &Pattern<'_>) -> Result<(), String> {
        let (Pattern::String(text) | Pattern::Regex(text)) = pattern;
        self.patterns += text.len();
        at_most("the length of all patterns", self.patterns, MAX_PATTERNS)?;
        let Pattern::Regex(text) = pattern else { return Ok(()) };
        // A brace before a letter is the name of a class.
        let counted = |(at, _): &(usize, &str)| !text[at + 1..].starts_with(|next: char| next.is_ascii_alphabetic());
        self.repetitions += text.match_indices('{').filter(counted).count();
        at_most("the number of counted repetitions in patterns", self.repetitions, MAX_REPETITIONS)?;
        let compiled = fancy_regex::RegexBuilder::new(text)
            .delegate_size_limit(MAX_COMPILED_PATTERN)
            .delegate_dfa_size_limit(MAX_COMPILED_PATTERN)
            .build();
        compiled.map(drop).map_err(|cause| format!("the pattern {:?}: {cause}", shortened(text.to_string())))
    }
}

impl Part<'_> {
    fn check(&self, totals: &mut Totals) -> Result<(), String> {
        totals.parts += 1;
        at_most("the number of parts", totals.parts, MAX_PARTS)?;
        if let (Some(content), Some(pattern)) = (&self.content, &self.pattern) {
            let times = match pattern {
                Pattern::String(text) if !text.is_empty() => content.len().div_ceil(text.len()).max(1),
                // What matches nothing stands before every character.
                Pattern::String(_) => content.len().saturating_add(1),
                Pattern::Regex(_) => content.len().saturating_add(1),
            };
            totals.growth = totals.growth.saturating_mul(times);
            at_most("how many times longer replacements make a text", totals.growth, MAX_GROWTH)?;
        }
        if let Some(pattern) = &self.pattern {
            totals.add(pattern)?;
        }
        let prepended = self.prepend.as_ref().map_or(0, |text| text.len());
        at_most("the length of what is put in front of a text", prepended, MAX_PIECE)?;
        if let Some(map) = &self.precompiled_charsmap {
            at_most("what a character becomes in precompiled_charsmap", longest_replacement(map), MAX_PIECE)?;
        }
        for template in [&self.single, &self.pair] {
            for wanted in ["A", "B"] {
                let times = template.0.iter().filter(|piece| matches!(piece, Piece::Sequence { id } if id == wanted));
                at_most("how many times a template repeats a text", times.count(), 1)?;
            }
        }
        for piece in self.single.0.iter().chain(&self.pair.0) {
            // The tokenizer looks it up for every text, and panics without it.
            if let Piece::SpecialToken { id } = piece
                && !self.special_tokens.0.contains_key(id)
            {
                return Err(format!("a template names {:?}, which is not in special_tokens", shortened(id.clone())));
            }
        }
        if self.single.0.iter().any(|piece| matches!(piece, Piece::Sequence { id } if id != "A")) {
            return Err("the template for a single text names a second one".into());
        }
        let ids = self.special_tokens.0.values().map(|special| special.ids.0.len()).sum();
        at_most("the number of ids of special tokens in a template", ids, 16 * MAX_LIST)?;
        self.normalizers.0.iter().try_for_each(|part| part.check(totals))
    }
}

/// The bytes of the longest text that one match becomes: behind a trie, whose size stands first, lie all such texts,
/// each ended by a zero. What cannot be read the tokenizer itself refuses.
fn longest_replacement(map: &str) -> usize {
    let Ok(bytes) = STANDARD.decode(map) else { return 0 };
    let Some((size, rest)) = bytes.split_first_chunk::<4>() else { return 0 };
    let texts = rest.get(u32::from_le_bytes(*size) as usize..).unwrap_or(rest);
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(file: &Value) -> String {
        check(file.to_string().as_bytes()).err().unwrap_or_default()
    }

    fn replace(pattern: Value, content: &str) -> Value {
        json!({ "type": "Replace", "pattern": pattern, "content": content })
    }

    #[test]
    fn a_template_of_what_is_not_there_is_refused_by_name() {
        let template = |single: Value, tokens: Value| {
            said(&json!({ "post_processor": { "type": "TemplateProcessing", "single": single, "pair": [],
                "special_tokens": tokens } }))
        };
        let begin = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
        let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        let there = json!({ "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } });
        assert_eq!(template(json!([begin, text("A")]), there), "");
        let other = json!({ "<s6": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } });
        assert!(template(json!([begin, text("A")]), other).contains("\"<s>\", which is not in special_tokens"));
        assert!(template(json!([text("B")]), json!({})).contains("names a second one"));
    }

    #[test]
    fn the_parts_of_published_tokenizers_pass() {
        let space = json!({ "String": " " });
        // Of Llama 3, of GPT-4o and its heirs, and of DeepSeek V3.
        let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let gpt = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let deepseek = r#"[!"\#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#;
        let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated" });
        for file in [
            json!({ "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                split(llama), split(gpt), split(deepseek), split(r"\p{N}{1,3}"), split("[一-龥\u{3040}-ゟ゠-ヿ]+")] } }),
            json!({ "normalizer": null, "model": { "type": "BPE", "continuing_subword_prefix": null } }),
            json!({ "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "▁" }, replace(space.clone(), "▁")] } }),
            json!({ "normalizer": { "type": "Sequence", "normalizers": [
                replace(json!({ "Regex": " {2,}" }), "▁"), { "type": "Strip" }] },
                "decoder": { "type": "Sequence", "decoders": [replace(json!({ "String": "▁" }), " "),
                    { "type": "ByteFallback" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] } }),
            json!({ "post_processor": { "type": "TemplateProcessing",
                "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
                "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } } }),
        ] {
            assert_eq!(said(&file), "", "{file}");
        }
    }

    #[test]
    fn a_part_that_makes_texts_grow_without_end_is_refused() {
        let double = replace(json!({ "String": "a" }), "aa");
        let template = |times: usize| vec![json!({ "Sequence": { "id": "A", "type_id": 0 } }); times];
        let mut map = 0_u32.to_le_bytes().to_vec();
        map.extend(vec![b'x'; 300]);
        for (file, expected) in [
            (json!({ "normalizer": { "normalizers": vec![&double; 7] } }), "how many times longer"),
            (json!({ "decoder": { "decoders": [{ "decoders": vec![&double; 7] }] } }), "how many times longer"),
            (json!({ "normalizer": replace(json!({ "Regex": "" }), &"x".repeat(1 << 20)) }), "how many times longer"),
            (json!({ "normalizer": { "normalizers": vec![json!({}); 65] } }), "the length of a list of parts"),
            (
                json!({ "decoder": { "decoders": vec![json!({ "decoders": vec![json!({}); 60] }); 60] } }),
                "parts is 257",
            ),
            (json!({ "pre_tokenizer": { "pattern": { "Regex": "a".repeat(16385) } } }), "all patterns is 16385"),
            (json!({ "pre_tokenizer": { "pattern": { "String": "a".repeat(16385) } } }), "all patterns is 16385"),
            (
                json!({ "pre_tokenizer": { "pretokenizers": vec![json!({ "pattern": { "Regex": "a".repeat(5000) } }); 4] } }),
                "all patterns is 20000",
            ),
            (json!({ "decoder": { "pattern": { "Regex": r"(\p{L}{99}){99}" } } }), "{99}\": Error compiling regex"),
            (
                json!({ "decoder": { "pattern": { "Regex": "a{2}".repeat(65) } } }),
                "counted repetitions in patterns is 65",
            ),
            (json!({ "normalizer": { "prepend": "x".repeat(257) } }), "in front of a text"),
            (json!({ "normalizer": { "precompiled_charsmap": STANDARD.encode(map) } }), "precompiled_charsmap is 300"),
            (json!({ "post_processor": { "single": template(2) } }), "repeats a text is 2"),
            (json!({ "post_processor": { "processors": [{ "pair": template(2) }] } }), "repeats a text is 2"),
            (json!({ "model": { "end_of_word_suffix": "x".repeat(257) } }), "suffix of subwords is 257"),
            (json!({ "added_tokens": vec![json!({ "content": "x".repeat(1 << 20) }); 17] }), "size of added tokens"),
            (json!({ "added_tokens": vec![json!({ "content": "" }); (1 << 18) + 1] }), "number of added tokens"),
        ] {
            let said = said(&file);
            assert!(said.contains(expected), "{expected}: {said}");
        }
        let deep = format!("{{\"normalizer\":{}{}}}", "{\"normalizers\":[".repeat(100_000), "]}".repeat(100_000));
        assert!(check(deep.as_bytes()).unwrap_err().contains("recursion limit"));
    }
}
