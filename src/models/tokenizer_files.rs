//! The tokenizer and chat template of the base model, copied next to what was trained with them:
//! an adapter must be asked with the text that it was taught with.

use std::path::Path;

use super::limits::read_small;
use crate::durable;
use crate::error::Result;

/// Files that make up a tokenizer in a Hugging Face directory, as far as they exist.
const FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
];

/// Copies the tokenizer in `from` to `to`.
///
/// # Errors
/// When a file is larger than it may be, or cannot be copied.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in FILES {
        // Read and written, not copied: a read-only model folder must not give read-only outputs.
        if let Some(bytes) = read_small(from, name)? {
            durable::write(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}
