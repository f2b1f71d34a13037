//! Token ids to text as they come. A character may be spread over several tokens, and what a token
//! reads as may depend on the one before it; text is given out only when it will not change.

use crate::error::Result;
use crate::models::Tokenizer;

/// No character has more bytes than this; more undecided tokens are bytes that form none.
const LONGEST: usize = 4;

/// Turns the tokens of one answer into text.
pub(super) struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens that what comes next is read together with, then the undecided ones.
    ids: Vec<u32>,
    /// How many of `ids` were given out already.
    shown: usize,
}

impl<'a> Detokenizer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), shown: 0 }
    }

    /// Takes the next token and gives the text that is now certain.
    pub(super) fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.unseen()?;
        // The replacement character stands for bytes that are not a character yet.
        if text.is_empty() || (text.ends_with('\u{FFFD}') && self.ids.len() - self.shown < LONGEST) {
            return Ok(String::new());
        }
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(text)
    }

    /// No more tokens come: whatever is left, without the bytes of a character that was cut off.
    pub(super) fn finish(&self) -> Result<String> {
        Ok(self.unseen()?.trim_end_matches('\u{FFFD}').to_string())
    }

    fn unseen(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.shown], false)?;
        let all = self.tokenizer.decode(&self.ids, false)?;
        Ok(all.strip_prefix(before.as_str()).unwrap_or_default().to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama")).unwrap()
    }

    fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut words = Detokenizer::new(tokenizer);
        let mut pieces: Vec<String> = ids.iter().map(|id| words.push(*id).unwrap()).collect();
        pieces.push(words.finish().unwrap());
        pieces
    }

    #[test]
    fn a_character_of_many_tokens_comes_out_whole() {
        let tokenizer = tokenizer();
        for text in ["the hat", "naïve café", "日本語", "👩‍🚀 ok", "a\u{FFFD}b"] {
            let ids = tokenizer.encode(text, false).unwrap();
            let pieces = stream(&tokenizer, &ids);
            assert_eq!(pieces.concat(), text);
            if !text.contains('\u{FFFD}') {
                assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
            }
        }
    }

    #[test]
    fn a_character_that_was_cut_off_is_left_out() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("ok 語", false).unwrap();
        assert_eq!(stream(&tokenizer, &ids[..ids.len() - 1]).concat(), "ok ");
    }

    #[test]
    fn bytes_that_are_no_character_do_not_hold_back_what_follows() {
        let tokenizer = tokenizer();
        let lead = tokenizer.encode("語", false).unwrap()[0];
        let mut ids = vec![lead; 6];
        ids.extend(tokenizer.encode(" then", false).unwrap());
        let text = stream(&tokenizer, &ids).concat();
        assert!(text.ends_with(" then") && text.starts_with('\u{FFFD}'), "{text:?}");
    }

    #[test]
    fn special_tokens_are_not_shown() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("<|begin|>the<|turn|> hat<|end|>", false).unwrap();
        assert_eq!(stream(&tokenizer, &ids).concat(), "the hat");
    }
}
