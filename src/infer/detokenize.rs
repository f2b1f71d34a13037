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
    pub(super) fn finish(self) -> Result<String> {
        Ok(self.unseen()?.trim_end_matches('\u{FFFD}').to_string())
    }

    fn unseen(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.shown], false)?;
        let all = self.tokenizer.decode(&self.ids, false)?;
        Ok(all.strip_prefix(before.as_str()).unwrap_or_default().to_string())
    }
}
