//! What an answer is, and how it is written down token by token: text goes out as soon as it is certain, and
//! ends at a stop sequence.

use super::detokenize::Detokenizer;
use super::sampling::Sampling;
use super::stops::Stops;
use crate::error::Result;
use crate::models::Tokenizer;

/// How to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The most tokens to produce; at least 1.
    pub max_tokens: usize,
    /// 0 always takes the most likely token; 1 draws as the model says; higher is wilder.
    pub temperature: f32,
    /// Draw only from the fewest tokens that hold this share of probability.
    pub top_p: f32,
    /// Draw only from this many tokens.
    pub top_k: Option<usize>,
    /// Decides the draws.
    pub seed: u64,
    /// Texts that end the answer; they are not part of it.
    pub stop_sequences: Vec<String>,
    /// A place is kept for this answer: it goes before those that wait, and waits for none of them.
    pub reserved: bool,
}

impl Default for Options {
    /// Greedy, 512 tokens.
    fn default() -> Self {
        Self {
            max_tokens: 512,
            temperature: 0.0,
            top_p: 1.0,
            top_k: None,
            seed: 0,
            stop_sequences: Vec::new(),
            reserved: false,
        }
    }
}

impl Options {
    /// How the tokens are drawn.
    pub fn sampling(&self) -> Sampling {
        let Self { max_tokens, temperature, top_p, top_k, seed, .. } = *self;
        Sampling { max_tokens, temperature, top_p, top_k, seed }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model said all it had to say.
    EndTurn,
    /// The most tokens asked for were produced.
    MaxTokens,
    /// One of the stop sequences came.
    StopSequence,
    /// The model can hold no more text.
    ContextWindow,
}

impl StopReason {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndTurn => "end_turn",
            Self::MaxTokens => "max_tokens",
            Self::StopSequence => "stop_sequence",
            Self::ContextWindow => "model_context_window_exceeded",
        }
    }
}

/// Text of an answer as soon as it is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// What was said since the last piece; not empty.
    pub text: &'a str,
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// Tokens produced so far.
    pub output_tokens: usize,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What the model said.
    pub text: String,
    /// The tokens it said, without the one that ended the answer.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Which stop sequence ended it.
    pub stop_sequence: Option<String>,
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// Tokens produced, the one that ended the answer included.
    pub output_tokens: usize,
}

/// An answer as it is written.
pub(super) struct Writer<'a> {
    words: Detokenizer<'a>,
    stops: Stops,
    input_tokens: usize,
    text: String,
    tokens: Vec<u32>,
    stopped: Option<String>,
    on_piece: &'a mut dyn FnMut(Piece<'_>),
}

impl<'a> Writer<'a> {
    /// Nothing written yet, to a prompt of `input_tokens`. The pieces together are the answer's text.
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        stop_sequences: &[String],
        input_tokens: usize,
        on_piece: &'a mut dyn FnMut(Piece<'_>),
    ) -> Self {
        let (words, stops) = (Detokenizer::new(tokenizer), Stops::new(stop_sequences));
        Self { words, stops, input_tokens, text: String::new(), tokens: Vec::new(), stopped: None, on_piece }
    }

    /// Takes the next token; whether more may come.
    pub(super) fn push(&mut self, token: u32) -> Result<bool> {
        self.tokens.push(token);
        let words = self.words.push(token)?;
        self.pass(&words, self.tokens.len());
        Ok(self.stopped.is_none())
    }

    /// No more tokens come, for this reason where no stop sequence was the reason.
    pub(super) fn finish(mut self, reason: StopReason) -> Result<Answer> {
        let output_tokens = self.tokens.len() + usize::from(reason == StopReason::EndTurn);
        if self.stopped.is_none() {
            let words = self.words.finish()?;
            self.pass(&words, output_tokens);
            if self.stopped.is_none() {
                let rest = self.stops.finish();
                self.show(&rest, output_tokens);
            }
        }
        let Self { text, tokens, stopped, input_tokens, .. } = self;
        let stop_reason = if stopped.is_some() { StopReason::StopSequence } else { reason };
        Ok(Answer { text, tokens, stop_reason, stop_sequence: stopped, input_tokens, output_tokens })
    }

    fn pass(&mut self, words: &str, output_tokens: usize) {
        let passed = self.stops.push(words);
        self.stopped = passed.stopped;
        self.show(&passed.text, output_tokens);
    }

    fn show(&mut self, piece: &str, output_tokens: usize) {
        if !piece.is_empty() {
            self.text.push_str(piece);
            (self.on_piece)(Piece { text: piece, input_tokens: self.input_tokens, output_tokens });
        }
    }
}
