//! One model that goes on with many sequences at once: every step is one pass over the newest token of each.
//! Sequences join and leave at any step, each with a tuning of its own; those that go on from the same prompt
//! share its first pass. What is drawn for a sequence depends on its own seed and tokens, never on who else is in
//! the batch: on the CPU its logits are the same, bit for bit, in any company.

mod pass;

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::answer::StopReason;
use super::rooms::Rooms;
use super::sampling::{Sampler, Sampling};
use crate::error::{Error, Result};
use crate::kernels::each_row_alone;
use crate::models::{Decoder, Frozen, Tuning};

pub(super) use self::pass::cancelled;

/// A room that may grow holds this many tokens more than the prompt at first, then twice as many.
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
    /// ln of the probability that the model gave it, at the sequence's temperature, among all tokens, in a batch
    /// that was not told to go without.
    pub log_probability: Option<f32>,
    /// Why the sequence ended with this token, if it did: it has left the batch then.
    pub ended: Option<StopReason>,
}

/// Holds a tuning for as long as a sequence needs it.
pub trait Tuned: Send + Sync {
    /// The tuning.
    fn tuning(&self) -> &dyn Tuning;
}

/// A tuning that outlives the batch.
struct Borrowed<'a>(&'a dyn Tuning);

impl Tuned for Borrowed<'_> {
    fn tuning(&self) -> &dyn Tuning {
        self.0
    }
}

impl Tuned for Box<dyn Tuning> {
    fn tuning(&self) -> &dyn Tuning {
        &**self
    }
}

/// Who is asked to go on: a tuning of the batch's model.
#[derive(Clone)]
pub struct Asked<'a> {
    tuned: Arc<dyn Tuned + 'a>,
    /// The longest text, prompt and answer together, in tokens; what the tuning puts in front is taken off.
    context_length: usize,
    /// Whether a place is kept for it.
    pub(super) reserved: bool,
}

impl<'a> Asked<'a> {
    /// A model that may hold `context_length` tokens in all.
    pub fn new(tuned: Arc<dyn Tuned + 'a>, context_length: usize) -> Self {
        // What the tuning puts in front takes positions too.
        let context_length = context_length.saturating_sub(tuned.tuning().virtual_tokens());
        Self { tuned, context_length, reserved: false }
    }

    /// One whose tuning outlives the batch.
    pub fn borrowed(tuning: &'a dyn Tuning, context_length: usize) -> Self {
        Self::new(Arc::new(Borrowed(tuning)), context_length)
    }

    /// One that keeps its tuning.
    pub fn owned(tuning: Box<dyn Tuning>, context_length: usize) -> Asked<'static> {
        Asked::new(Arc::new(tuning), context_length)
    }

    /// The same, and whether a place is kept for it.
    pub fn with_place(self, reserved: bool) -> Self {
        Self { reserved, ..self }
    }

    fn tuning(&self) -> &dyn Tuning {
        self.tuned.tuning()
    }

    /// Whether it can go on from a prompt of so many tokens.
    ///
    /// # Errors
    /// `Validation` when it has none or leaves no room for an answer.
    pub(super) fn check(&self, prompt: usize) -> Result<()> {
        if prompt == 0 {
            return Err(Error::validation("The prompt is empty"));
        }
        if prompt >= self.context_length {
            return Err(Error::validation(format!(
                "The prompt has {prompt} tokens and leaves no room for an answer: the model's context is {} tokens",
                self.context_length
            )));
        }
        Ok(())
    }
}

/// Sequences under way over one model.
pub struct Batch<'a> {
    decoder: Box<dyn Deref<Target = Decoder> + Send + Sync + 'a>,
    /// Who is asked where a sequence does not say.
    asked: Asked<'a>,
    /// The tokens after which a sequence has said all.
    ends: Vec<u32>,
    /// Whether a drawn token's probability is wanted.
    log_probabilities: bool,
    rooms: Rooms,
    sequences: Vec<Sequence<'a>>,
    next_id: u64,
}

/// One sequence.
struct Sequence<'a> {
    id: SequenceId,
    asked: Asked<'a>,
    prompt: Arc<[u32]>,
    /// What was drawn so far; the last token has not been through the model.
    tokens: Vec<u32>,
    sampler: Sampler,
    max_tokens: usize,
    /// Where its keys and values lie, and how many rows of that are filled.
    room: Range<usize>,
    held: usize,
    /// Raised when nobody waits for it any more: a long pass ends early.
    gone: Arc<AtomicBool>,
}

/// Sequences that get their logits from one row of a pass.
type Readers = Vec<usize>;
/// What a pass gives to some of them.
type Logits = Vec<(Readers, Result<Vec<f32>>)>;

impl<'a> Batch<'a> {
    /// Nobody in it yet; one tuning for all. A text may hold `context_length` tokens.
    pub fn new(decoder: &'a Decoder, tuning: &'a dyn Tuning, ends: &[u32], context_length: usize) -> Self {
        let rooms = Rooms::new(decoder.config().layers);
        Self {
            decoder: Box::new(decoder),
            asked: Asked::borrowed(tuning, context_length),
            ends: ends.to_vec(),
            log_probabilities: true,
            rooms,
            sequences: Vec::new(),
            next_id: 0,
        }
    }

    /// Nobody in it yet; each sequence brings its tuning, and all share a slab of `rows` keys and values. Tokens
    /// come without their probabilities.
    pub(super) fn shared(decoder: Arc<Decoder>, ends: &[u32], rows: usize) -> Batch<'static> {
        let config = decoder.config();
        let (rooms, asked) = (Rooms::limited(config.layers, rows), Asked::borrowed(&Frozen, config.max_positions));
        Batch {
            decoder: Box::new(decoder),
            asked,
            ends: ends.to_vec(),
            log_probabilities: false,
            rooms,
            sequences: Vec::new(),
            next_id: 0,
        }
    }

    /// How many sequences are under way.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// How many of them have no place kept for them.
    pub(super) fn on_demand(&self) -> usize {
        self.sequences.iter().filter(|sequence| !sequence.asked.reserved).count()
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
        self.join_as(&self.asked.clone(), prompt, ways, &Arc::default())
    }

    /// As [`Batch::join`], of a tuning that the sequences bring. `gone` is raised when nobody waits for them.
    pub(super) fn join_as(
        &mut self,
        asked: &Asked<'a>,
        prompt: &[u32],
        ways: &[Sampling],
        gone: &Arc<AtomicBool>,
    ) -> Result<Vec<SequenceId>> {
        asked.check(prompt.len())?;
        let prompt: Arc<[u32]> = prompt.into();
        let joined = ways.iter().map(|way| {
            let id = SequenceId(self.next_id);
            self.next_id += 1;
            let room = self.rooms.take(self.room_for(asked, prompt.len(), way));
            self.sequences.push(Sequence {
                id,
                asked: asked.clone(),
                prompt: Arc::clone(&prompt),
                tokens: Vec::new(),
                sampler: Sampler::new(way),
                max_tokens: way.max_tokens.max(1),
                room,
                held: 0,
                gone: Arc::clone(gone),
            });
            id
        });
        Ok(joined.collect())
    }

    /// Whether there is a room now for a sequence to go on from a prompt of so many tokens.
    pub(super) fn has_room(&self, asked: &Asked<'_>, prompt: usize, way: &Sampling) -> bool {
        self.rooms.has(self.room_for(asked, prompt, way))
    }

    /// Rows that a sequence begins with: all that it may ever need where its room cannot grow.
    fn room_for(&self, asked: &Asked<'_>, prompt: usize, way: &Sampling) -> usize {
        let most = way.max_tokens.clamp(1, asked.context_length.saturating_sub(prompt).max(1));
        let spare = if self.rooms.is_limited() { most } else { most.min(SPARE) };
        asked.tuning().virtual_tokens() + prompt + spare
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
        self.advance(usize::MAX, &|| ()).into_iter().map(|(_, drawn)| drawn).collect()
    }

    /// As [`Batch::step`], with at most `passes` passes of whole texts: who joined and waits for one draws nothing
    /// yet. What goes wrong for one sequence ends that sequence alone. `glance` is called now and then in a long pass.
    pub(super) fn advance(&mut self, passes: usize, glance: &dyn Fn()) -> Vec<(SequenceId, Result<Drawn>)> {
        // Who has nothing in their room, or what is there was turned by the frequencies of shorter texts.
        let (mut whole, mut running): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        for (index, sequence) in self.sequences.iter().enumerate() {
            let held = sequence.held;
            let again = held == 0 || self.decoder.config().frequencies_change(held, held + 1);
            if again { whole.push(index) } else { running.push(index) }
        }
        let mut logits: Logits = Vec::new();
        each_row_alone(|| {
            for texts in self.passes(&whole, passes) {
                logits.extend(self.whole(texts, glance));
            }
            logits.extend(self.next(running));
        });
        self.draw(logits)
    }

    /// Draws from the logits, and lets those go that have ended.
    fn draw(&mut self, logits: Logits) -> Vec<(SequenceId, Result<Drawn>)> {
        let mut of_sequence: Vec<Option<&Result<Vec<f32>>>> = vec![None; self.sequences.len()];
        for (readers, logits) in &logits {
            readers.iter().for_each(|index| of_sequence[*index] = Some(logits));
        }
        let (ends, with) = (&self.ends, self.log_probabilities);
        let drawn: Vec<Option<Result<Drawn>>> = self
            .sequences
            .par_iter_mut()
            .zip(of_sequence)
            .map(|(sequence, logits)| match logits? {
                Ok(logits) => Some(sequence.draw(logits, ends, with)),
                Err(error) => Some(Err(error.repeated())),
            })
            .collect();
        let mut all = drawn.into_iter();
        let mut given = Vec::new();
        let rooms = &mut self.rooms;
        self.sequences.retain(|sequence| {
            let Some(drawn) = all.next().flatten() else { return true };
            let stays = drawn.as_ref().is_ok_and(|drawn| drawn.ended.is_none());
            if !stays {
                rooms.leave(&sequence.room);
            }
            given.push((sequence.id, drawn));
            stays
        });
        given
    }
}

impl Sequence<'_> {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn draw(&mut self, logits: &[f32], ends: &[u32], log_probability: bool) -> Result<Drawn> {
        let token = self.sampler.pick(logits)?;
        let log_probability = log_probability.then(|| self.sampler.log_probability(logits, token));
        self.tokens.push(token);
        let ended = if ends.contains(&token) {
            Some(StopReason::EndTurn)
        } else if self.tokens.len() >= self.max_tokens {
            Some(StopReason::MaxTokens)
        } else if self.prompt.len() + self.tokens.len() >= self.asked.context_length {
            Some(StopReason::ContextWindow)
        } else {
            None
        };
        Ok(Drawn { sequence: self.id, token, log_probability, ended })
    }
}

#[cfg(test)]
mod tests;
