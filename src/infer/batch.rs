//! One model that goes on with many sequences at once: every step is one pass over the newest token of each.
//! Sequences join and leave at any step; those that go on from the same prompt share its first pass. What is
//! drawn for a sequence depends on its own seed and tokens, never on who else is in the batch.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::generate::StopReason;
use super::rooms::{Next, Rooms, Whole};
use super::sampling::{Sampler, Sampling};
use crate::error::{Error, Result};
use crate::models::{Decoder, Tuning};

/// Tokens of prompts that go through the model in one pass; a longer prompt goes alone.
const PROMPT_TOKENS: usize = 4096;
/// A room holds this many tokens more than the prompt at first, then twice as many.
const SPARE: usize = 64;

/// Names a sequence in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

/// One token drawn for one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// For which.
    pub sequence: SequenceId,
    /// The token; where it ends the answer, the end token itself.
    pub token: u32,
    /// ln of the probability that the model gave it, at the sequence's temperature, among all tokens.
    pub log_probability: f32,
    /// Why the sequence ended with this token, if it did: it has left the batch then.
    pub ended: Option<StopReason>,
}

/// Sequences under way over one model.
pub struct Batch<'a> {
    decoder: &'a Decoder,
    tuning: &'a dyn Tuning,
    /// The tokens after which a sequence has said all.
    ends: &'a [u32],
    /// The longest text, prompt and answer together, in tokens.
    context_length: usize,
    rooms: Rooms,
    sequences: Vec<Sequence>,
    next_id: u64,
}

/// One sequence.
struct Sequence {
    id: SequenceId,
    prompt: Arc<[u32]>,
    /// What was drawn so far; the last token has not been through the model.
    tokens: Vec<u32>,
    sampler: Sampler,
    max_tokens: usize,
    /// Where its keys and values lie, and how many rows of that are filled.
    room: Range<usize>,
    held: usize,
}

/// Sequences that get their logits from one row of a pass.
type Readers = Vec<usize>;

impl<'a> Batch<'a> {
    /// Nobody in it yet.
    pub fn new(decoder: &'a Decoder, tuning: &'a dyn Tuning, ends: &'a [u32], context_length: usize) -> Self {
        let rooms = Rooms::new(decoder.config().layers);
        // What the tuning puts in front takes positions too.
        let context_length = context_length.saturating_sub(tuning.virtual_tokens());
        Self { decoder, tuning, ends, context_length, rooms, sequences: Vec::new(), next_id: 0 }
    }

    /// How many sequences are under way.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Adds a sequence for each of `ways` to go on from `prompt`. They draw their first token in the next step.
    ///
    /// # Errors
    /// When the prompt is empty or leaves no room for an answer.
    pub fn join(&mut self, prompt: &[u32], ways: &[Sampling]) -> Result<Vec<SequenceId>> {
        if prompt.is_empty() {
            return Err(Error::validation("The prompt is empty"));
        }
        if prompt.len() >= self.context_length {
            return Err(Error::validation(format!(
                "The prompt has {} tokens and leaves no room for an answer: the model's context is {} tokens",
                prompt.len(),
                self.context_length
            )));
        }
        let prompt: Arc<[u32]> = prompt.into();
        let rows = prompt.len() + self.tuning.virtual_tokens();
        let joined = ways.iter().map(|way| {
            let id = SequenceId(self.next_id);
            self.next_id += 1;
            self.sequences.push(Sequence {
                id,
                prompt: Arc::clone(&prompt),
                tokens: Vec::new(),
                sampler: Sampler::new(way),
                max_tokens: way.max_tokens.max(1),
                room: self.rooms.take(rows + way.max_tokens.clamp(1, SPARE)),
                held: 0,
            });
            id
        });
        Ok(joined.collect())
    }

    /// Ends a sequence; nothing more is drawn for it.
    pub fn leave(&mut self, id: SequenceId) {
        if let Some(at) = self.sequences.iter().position(|sequence| sequence.id == id) {
            let sequence = self.sequences.remove(at);
            self.rooms.leave(&sequence.room);
        }
    }

    /// Draws the next token of every sequence, in the order in which they joined.
    ///
    /// # Errors
    /// When a token lies outside the vocabulary, the model produces values that are not numbers, or the device
    /// fails.
    pub fn step(&mut self) -> Result<Vec<Drawn>> {
        // Who has nothing in their room, or what is there was turned by the frequencies of shorter texts.
        let (mut whole, mut running): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        for (index, sequence) in self.sequences.iter().enumerate() {
            let held = sequence.held;
            let again = held == 0 || self.decoder.config().frequencies_change(held, held + 1);
            if again { whole.push(index) } else { running.push(index) }
        }
        let mut logits: Vec<(Readers, Vec<f32>)> = Vec::new();
        for texts in self.passes(&whole) {
            logits.extend(self.whole(texts)?);
        }
        if !running.is_empty() {
            let rows = self.next(&running)?;
            logits.extend(running.into_iter().map(|index| vec![index]).zip(rows));
        }
        self.draw(logits)
    }

    /// The texts of `sequences`, each with those that share it, in passes that are not too large.
    fn passes(&self, sequences: &[usize]) -> Vec<Vec<(Vec<u32>, Readers)>> {
        let mut texts: Vec<(Vec<u32>, Readers)> = Vec::new();
        for index in sequences {
            let Sequence { prompt, tokens, .. } = &self.sequences[*index];
            let shared = texts.last_mut().filter(|(_, readers)| {
                let first = &self.sequences[readers[0]];
                Arc::ptr_eq(&first.prompt, prompt) && first.tokens.is_empty() && tokens.is_empty()
            });
            match shared {
                Some((_, readers)) => readers.push(*index),
                None => texts.push(([&prompt[..], tokens].concat(), vec![*index])),
            }
        }
        let mut passes: Vec<Vec<(Vec<u32>, Readers)>> = Vec::new();
        let mut tokens = 0;
        for text in texts {
            if passes.is_empty() || tokens + text.0.len() > PROMPT_TOKENS {
                passes.push(Vec::new());
                tokens = 0;
            }
            tokens += text.0.len();
            if let Some(pass) = passes.last_mut() {
                pass.push(text);
            }
        }
        passes
    }

    /// Sends whole texts through the decoder; the logits of each one's last token.
    fn whole(&mut self, texts: Vec<(Vec<u32>, Readers)>) -> Result<Vec<(Readers, Vec<f32>)>> {
        let rows_before = self.tuning.virtual_tokens();
        for (text, readers) in &texts {
            for index in readers {
                self.make_room(*index, rows_before + text.len())?;
                self.sequences[*index].held = rows_before + text.len();
            }
        }
        let takers: Vec<Vec<usize>> = texts
            .iter()
            .map(|(_, readers)| readers.iter().map(|index| self.sequences[*index].room.start).collect())
            .collect();
        let lengths: Vec<usize> = texts.iter().map(|(text, _)| text.len()).collect();
        let tokens: Vec<u32> = texts.iter().flat_map(|(text, _)| text.iter().copied()).collect();
        let packing = self.decoder.packing(&lengths, self.tuning)?;
        let rows = packing.lengths().to_vec();
        let mut memory = Whole::new(&mut self.rooms, &rows, &takers, self.tuning.prefix_tokens() > 0);
        let mut x = self.decoder.embed(&tokens, &packing, self.tuning)?.detach();
        for layer in 0..self.decoder.config().layers {
            x = self.decoder.layer_with_memory(layer, &x, &packing, self.tuning, &mut memory)?.detach();
        }
        let ends: Vec<u32> = rows
            .iter()
            .scan(0, |end, rows| {
                *end += *rows as u32;
                Some(*end - 1)
            })
            .collect();
        let ends = Tensor::from_vec(ends, rows.len(), x.device())?;
        let logits = self.logits(&x.index_select(&ends, 0)?)?;
        Ok(texts.into_iter().map(|(_, readers)| readers).zip(logits).collect())
    }

    /// Sends the newest token of each of `sequences` through the decoder; the logits of each.
    fn next(&mut self, sequences: &[usize]) -> Result<Vec<Vec<f32>>> {
        for index in sequences {
            let rows = self.sequences[*index].held + 1;
            self.make_room(*index, rows)?;
            self.sequences[*index].held = rows;
        }
        let own = || sequences.iter().map(|index| &self.sequences[*index]);
        let tokens: Vec<u32> = own().filter_map(|sequence| sequence.tokens.last().copied()).collect();
        let places: Vec<Range<usize>> =
            own().map(|sequence| sequence.room.start..sequence.room.start + sequence.held).collect();
        let packing = self.decoder.next_tokens(&places, self.rooms.rows())?;
        let mut memory = Next { rooms: &mut self.rooms, places: &places };
        let mut x = self.decoder.embed(&tokens, &packing, self.tuning)?.detach();
        for layer in 0..self.decoder.config().layers {
            x = self.decoder.layer_with_memory(layer, &x, &packing, self.tuning, &mut memory)?.detach();
        }
        self.logits(&x)
    }

    /// Moves a sequence to a larger room where its own has fewer than `rows` rows.
    fn make_room(&mut self, index: usize, rows: usize) -> Result<()> {
        let sequence = &mut self.sequences[index];
        if sequence.room.len() < rows {
            let larger = self.rooms.take(2 * rows);
            self.rooms.copy(&sequence.room, sequence.held, &larger)?;
            let old = std::mem::replace(&mut sequence.room, larger);
            self.rooms.leave(&old);
        }
        Ok(())
    }

    /// The logits of each row of states that are not yet normalised.
    fn logits(&self, x: &Tensor) -> Result<Vec<Vec<f32>>> {
        let states = self.decoder.finish(x)?.detach();
        Ok(self.decoder.logits_of(&states, self.tuning)?.detach().to_dtype(DType::F32)?.to_vec2()?)
    }

    /// Draws from the logits, and lets those go that have ended.
    fn draw(&mut self, logits: Vec<(Readers, Vec<f32>)>) -> Result<Vec<Drawn>> {
        let mut of_sequence: Vec<&[f32]> = vec![&[]; self.sequences.len()];
        for (readers, logits) in &logits {
            readers.iter().for_each(|index| of_sequence[*index] = logits);
        }
        let (ends, context_length) = (self.ends, self.context_length);
        let drawn: Vec<Drawn> = self
            .sequences
            .par_iter_mut()
            .zip(of_sequence)
            .map(|(sequence, logits)| sequence.draw(logits, ends, context_length))
            .collect::<Result<_>>()?;
        let rooms = &mut self.rooms;
        let mut all = drawn.iter();
        self.sequences.retain(|sequence| {
            let stays = all.next().is_none_or(|drawn| drawn.ended.is_none());
            if !stays {
                rooms.leave(&sequence.room);
            }
            stays
        });
        Ok(drawn)
    }
}

impl Sequence {
    fn draw(&mut self, logits: &[f32], ends: &[u32], context_length: usize) -> Result<Drawn> {
        let token = self.sampler.pick(logits)?;
        let log_probability = self.sampler.log_probability(logits, token);
        self.tokens.push(token);
        let ended = if ends.contains(&token) {
            Some(StopReason::EndTurn)
        } else if self.tokens.len() >= self.max_tokens {
            Some(StopReason::MaxTokens)
        } else if self.prompt.len() + self.tokens.len() >= context_length {
            Some(StopReason::ContextWindow)
        } else {
            None
        };
        Ok(Drawn { sequence: self.id, token, log_probability, ended })
    }
}

#[cfg(test)]
mod tests;
