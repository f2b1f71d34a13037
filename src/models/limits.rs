//! Limits of model files. Whoever may name a folder in object storage may write its files, so every number in them is
//! capped by name before anything is allocated from it, and every small file is read through [`read_small`], which
//! stops at the size that such a file may have.

use std::fmt::Display;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// Layers of a decoder. The deepest published ones have about 130.
pub const MAX_LAYERS: usize = 1024;
/// Width of the residual stream. The widest published ones have 18,432.
pub const MAX_HIDDEN: usize = 1 << 17;
/// Width inside the MLP.
pub const MAX_INTERMEDIATE: usize = 1 << 20;
/// Query heads of a layer.
pub const MAX_HEADS: usize = 4096;
/// Width of one head.
pub const MAX_HEAD_DIM: usize = 1 << 14;
/// Heads times the width of a head.
pub const MAX_ATTENTION_WIDTH: usize = 1 << 19;
/// Rows of the embedding table, and tokens of a tokenizer.
pub const MAX_VOCABULARY: usize = 1 << 22;
/// Tokens of a context or of a sliding window.
pub const MAX_POSITIONS: usize = 1 << 24;
/// Values of all weights of a model: more than an import holds in four bits each.
pub const MAX_WEIGHTS: u64 = 1 << 40;
/// Tokens that end a text.
pub const MAX_END_TOKENS: usize = 1024;
/// Tokens added to a tokenizer's vocabulary.
pub const MAX_ADDED_TOKENS: usize = 1 << 18;
/// Bytes of the text of one token. The longest published ones have about 500.
pub const MAX_TOKEN: usize = 2048;
/// Bytes of the texts of added tokens.
pub const MAX_ADDED_BYTES: usize = 16 << 20;
/// Files that the weights of a model are spread over.
pub const MAX_SHARDS: usize = 512;
/// Tensors of a model or an adapter.
pub const MAX_TENSORS: usize = 200_000;
/// Bytes of the header of a safetensors file.
pub const MAX_HEADER: u64 = 16 << 20;
/// Rank of an adapter, and width of a bottleneck.
pub const MAX_RANK: usize = 1 << 15;
/// Tokens that an adapter puts in front of a text.
pub const MAX_VIRTUAL_TOKENS: usize = 1 << 16;
/// Entries of `alpha_pattern`.
pub const MAX_PATTERNS: usize = 4096;
/// Bytes of one pattern.
pub const MAX_PATTERN: usize = 1024;
/// Entries of `alpha_pattern` times the projections that each is matched with.
pub const MAX_MATCHES: usize = 1 << 19;
/// Bytes that one pattern may take once compiled.
pub const MAX_COMPILED_PATTERN: usize = 256 << 10;
/// Bytes of a file for which [`SMALL_FILES`] names no other limit.
pub const MAX_SMALL_FILE: u64 = 1 << 20;

/// Characters of a message about a file. What it quotes from the file may be as long as the file.
const MAX_MESSAGE: usize = 600;

/// The small files of a model directory that may have more than [`MAX_SMALL_FILE`] bytes. The largest published
/// `tokenizer.json` has about 33 MB.
const SMALL_FILES: [(&str, u64); 8] = [
    ("tokenizer.json", 128 << 20),
    ("tokenizer_config.json", 16 << 20),
    ("added_tokens.json", 16 << 20),
    ("special_tokens_map.json", 16 << 20),
    ("model.safetensors.index.json", 16 << 20),
    ("tokenizer.model", 64 << 20),
    ("vocab.json", 64 << 20),
    ("merges.txt", 64 << 20),
];

/// Bytes that a small file of this name may have.
pub fn max_bytes(name: &str) -> u64 {
    SMALL_FILES.iter().find(|(known, _)| *known == name).map_or(MAX_SMALL_FILE, |(_, most)| *most)
}

/// A small file of a directory, whole; `None` when there is none of this name. No more than it may have is read.
///
/// # Errors
/// When it has more bytes than [`max_bytes`], or cannot be read; the message names the file and not its directory.
pub fn read_small(dir: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = dir.join(name);
    let unreadable = |cause: std::io::Error| wrong(&path, format!("it cannot be read: {cause}"));
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(unreadable(cause)),
    };
    let most = max_bytes(name);
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(wrong(&path, too_large(most)));
    }
    Ok(Some(bytes))
}

/// The same as text, of a file that must be there.
///
/// # Errors
/// As [`read_small`]; and when the file is missing or no UTF-8.
pub fn read_small_text(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(name);
    let bytes = read_small(dir, name)?.ok_or_else(|| wrong(&path, "there is no such file"))?;
    String::from_utf8(bytes).map_err(|cause| wrong(&path, cause))
}

/// What is said of a file with too many bytes.
pub fn too_large(most: u64) -> String {
    format!("it has more than the {most} bytes that such a file may have")
}

/// Refuses a number above its limit, by name.
///
/// # Errors
/// When `value` is larger than `most`.
pub fn at_most(name: &str, value: usize, most: usize) -> std::result::Result<(), String> {
    if value > most { Err(format!("{name} is {value}; {most} is the most")) } else { Ok(()) }
}

/// An error about a file: its owner reads the file's name, the log where it lies.
pub fn wrong(path: &Path, what: impl Display) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Error::validation(shortened(format!("{name}: {what}"))).at(path.display().to_string())
}

/// A message that quotes at most so much of a file.
pub fn shortened(mut message: String) -> String {
    if let Some((at, _)) = message.char_indices().nth(MAX_MESSAGE) {
        message.truncate(at);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit_and_refused_by_name_beyond_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |length: u64| {
            let file = File::create(dir.path().join("config.json")).unwrap();
            file.set_len(length).unwrap();
        };
        assert_eq!(read_small(dir.path(), "config.json").unwrap(), None);
        write(MAX_SMALL_FILE);
        assert_eq!(read_small(dir.path(), "config.json").unwrap().unwrap().len() as u64, MAX_SMALL_FILE);
        // Sparse: a reader that trusted it would need a terabyte.
        for length in [MAX_SMALL_FILE + 1, 1 << 40] {
            write(length);
            let error = read_small(dir.path(), "config.json").unwrap_err();
            assert_eq!(error.message(), "config.json: it has more than the 1048576 bytes that such a file may have");
            assert!(error.log().contains(&*dir.path().to_string_lossy()), "{}", error.log());
        }
        assert!(max_bytes("tokenizer.json") > 33_000_000);
        for name in ["tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"] {
            assert_eq!(max_bytes(name), 16 << 20, "{name}");
        }
    }

    #[test]
    fn a_message_quotes_no_more_of_a_file_than_a_reader_bears() {
        let error = wrong(Path::new("/srv/models/config.json"), "é".repeat(1 << 20));
        assert_eq!(error.message().chars().count(), MAX_MESSAGE + 1);
        assert!(error.message().starts_with("config.json: é") && !error.message().contains("/srv"));
    }
}
