//! A bound on prompts before they are tokenised whole: tokens take a hundred times the memory of their text, so a text
//! that is far too long is found out piece by piece.

use super::engine::Prompt;
use crate::error::{Error, Result};
use crate::models::Tokenizer;

/// Texts up to this many bytes, or this many bytes for each token that may come, are tokenised whole at once.
const SMALL: usize = 64 * 1024;
const USUAL_BYTES: usize = 4;
/// Tokens that a cut in the text may add.
const PER_CUT: usize = 4;

/// Refuses a prompt that certainly has more than `most` tokens.
///
/// # Errors
/// `Validation` with the number, and when the tokenizer does not take the text.
pub(super) fn check_length(tokenizer: &Tokenizer, prompt: &Prompt, most: usize) -> Result<()> {
    let texts: Vec<&str> = match prompt {
        Prompt::Text(text) => vec![text],
        Prompt::Chat(chat) => {
            let messages = chat.messages.iter().map(|message| message.text.as_str());
            chat.system.as_deref().into_iter().chain(messages).collect()
        }
    };
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    if bytes <= SMALL.max(most.saturating_mul(USUAL_BYTES)) {
        return Ok(());
    }
    let mut tokens = 0_usize;
    for piece in texts.iter().flat_map(|text| pieces(text)) {
        tokens += tokenizer.encode(piece, false)?.len().saturating_sub(PER_CUT);
        if tokens > most {
            return Err(Error::validation(format!(
                "The prompt has more than {most} tokens, which are the most that can be read: send a shorter one"
            )));
        }
    }
    Ok(())
}

/// The text in pieces of about [`SMALL`] bytes, cut at white space where there is some.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let mut end = SMALL.min(text.len());
        while !text.is_char_boundary(end) {
            end += 1;
        }
        let at = match text[..end].rfind(char::is_whitespace) {
            Some(space) if end < text.len() && space > 0 => space,
            _ => end,
        };
        let (piece, rest) = text.split_at(at);
        text = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn pieces_together_are_the_text_and_none_is_long() {
        for text in ["word ".repeat(100_000), "x".repeat(300_000), "ä€ ".repeat(60_000), " ".repeat(200_000)] {
            let all: Vec<&str> = pieces(&text).collect();
            assert_eq!(all.concat(), text);
            assert!(all.len() > 1 && all.iter().all(|piece| piece.len() <= SMALL + 4));
        }
    }

    #[test]
    fn a_prompt_far_above_the_context_is_refused_and_one_that_fits_is_not() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama");
        let tokenizer = Tokenizer::read(&dir).unwrap();
        let long = Prompt::Text("a b ".repeat(100_000));
        let exactly = match &long {
            Prompt::Text(text) => tokenizer.encode(text, false).unwrap().len(),
            Prompt::Chat(_) => unreachable!("it is a text"),
        };
        assert!(check_length(&tokenizer, &long, 100).unwrap_err().message().contains("more than 100 tokens"));
        assert!(check_length(&tokenizer, &long, exactly / 10).is_err());
        check_length(&tokenizer, &long, exactly).unwrap();
        check_length(&tokenizer, &Prompt::Text("a b".into()), 1).unwrap();
    }
}
