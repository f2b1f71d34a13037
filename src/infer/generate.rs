//! One model answering one prompt: the prompt through the decoder once, then token by token with the
//! cache, until something ends the answer.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::DType;

use super::cache::Cache;
use super::detokenize::Detokenizer;
use super::sampling::{Sampler, Sampling};
use super::stops::Stops;
use crate::error::{Error, Kind, Result};
use crate::models::{Decoder, Tokenizer, Tuning};

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
}

impl Default for Options {
    /// Greedy, 512 tokens.
    fn default() -> Self {
        Self { max_tokens: 512, temperature: 0.0, top_p: 1.0, top_k: None, seed: 0, stop_sequences: Vec::new() }
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

/// A model with its tokenizer and what tunes it, ready to answer.
#[derive(Clone, Copy)]
pub struct Speaker<'a> {
    /// The base.
    pub decoder: &'a Decoder,
    /// What tunes it, or [`crate::models::Frozen`].
    pub tuning: &'a dyn Tuning,
    /// Reads answers and knows what ends them.
    pub tokenizer: &'a Tokenizer,
    /// The longest text, prompt and answer together, in tokens.
    pub context_length: usize,
}

impl Speaker<'_> {
    /// Answers `prompt`. Text goes to `on_piece` as soon as it is certain; the pieces together are the answer's
    /// text. `cancel` ends the work at the next token.
    ///
    /// # Errors
    /// When the prompt is empty or fills the context, the work was cancelled, or the model produces
    /// values that are not numbers.
    pub fn answer(
        &self,
        prompt: &[u32],
        options: &Options,
        cancel: &AtomicBool,
        on_piece: &mut dyn FnMut(Piece<'_>),
    ) -> Result<Answer> {
        if prompt.is_empty() {
            return Err(Error::validation("The prompt is empty"));
        }
        // What the tuning puts in front takes positions too.
        let context_length = self.context_length.saturating_sub(self.tuning.virtual_tokens());
        if prompt.len() >= context_length {
            return Err(Error::validation(format!(
                "The prompt has {} tokens and leaves no room for an answer: the model's context is {context_length} \
                 tokens",
                prompt.len(),
            )));
        }
        let mut text = String::new();
        let mut show = |piece: &str, output_tokens: usize| {
            if !piece.is_empty() {
                text.push_str(piece);
                on_piece(Piece { text: piece, input_tokens: prompt.len(), output_tokens });
            }
        };
        let mut sampler = Sampler::new(&options.sampling());
        let mut words = Detokenizer::new(self.tokenizer);
        let mut stops = Stops::new(&options.stop_sequences);
        let mut cache = Cache::new(self.decoder.config().layers);
        let mut tokens = Vec::new();
        let mut logits = self.advance(prompt, &mut cache, cancel)?;
        let mut ended = 0;

        let (stop_reason, stop_sequence) = loop {
            let token = sampler.pick(&logits)?;
            if self.tokenizer.ends().contains(&token) {
                ended = 1;
                break (StopReason::EndTurn, None);
            }
            tokens.push(token);
            let passed = stops.push(&words.push(token)?);
            show(&passed.text, tokens.len());
            if passed.stopped.is_some() {
                break (StopReason::StopSequence, passed.stopped);
            }
            if tokens.len() >= options.max_tokens {
                break (StopReason::MaxTokens, None);
            }
            if prompt.len() + tokens.len() >= context_length {
                break (StopReason::ContextWindow, None);
            }
            let held = cache.tokens();
            logits = if self.decoder.config().frequencies_change(held, held + 1) {
                // The kept keys turned by the frequencies of short texts: all tokens go through again.
                cache = Cache::new(self.decoder.config().layers);
                self.advance(&[prompt, &tokens].concat(), &mut cache, cancel)?
            } else {
                self.advance(&[token], &mut cache, cancel)?
            };
        };
        let (mut stop_reason, mut stop_sequence) = (stop_reason, stop_sequence);
        if stop_sequence.is_none() {
            let passed = stops.push(&words.finish()?);
            show(&passed.text, tokens.len() + ended);
            if passed.stopped.is_some() {
                (stop_reason, stop_sequence) = (StopReason::StopSequence, passed.stopped);
            } else {
                show(&stops.finish(), tokens.len() + ended);
            }
        }
        let output_tokens = tokens.len() + ended;
        Ok(Answer { text, tokens, stop_reason, stop_sequence, input_tokens: prompt.len(), output_tokens })
    }

    /// Sends tokens through the decoder after those in `cache`; the logits of the last one.
    fn advance(&self, tokens: &[u32], cache: &mut Cache, cancel: &AtomicBool) -> Result<Vec<f32>> {
        let packing = self.decoder.continuation(cache.tokens(), tokens.len(), self.tuning)?;
        let mut x = self.decoder.embed(tokens, &packing, self.tuning)?.detach();
        for layer in 0..self.decoder.config().layers {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Unavailable, "The answer was cancelled"));
            }
            x = self.decoder.layer_with_memory(layer, &x, &packing, self.tuning, cache)?.detach();
        }
        let last = self.decoder.finish(&x.narrow(0, x.dim(0)? - 1, 1)?)?;
        let logits = self.decoder.logits_of(&last, self.tuning)?.detach();
        Ok(logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?)
    }
}
