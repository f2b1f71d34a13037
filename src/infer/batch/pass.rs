//! The passes of a batch through the decoder. A whole text goes alone, in the shape in which it would go if nobody
//! else were there; the newest tokens of all sequences go together, through products whose rows do not depend on
//! each other.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use candle_core::Tensor;

use super::{Batch, Logits, Readers, Sequence};
use crate::error::{Error, Kind, Result, panic_message};
use crate::infer::mixed::{Mixed, identity};
use crate::infer::rooms::{Next, Whole};
use crate::kernels::MOST_ROWS;

/// Tokens of whole texts that go through a GPU in one pass; a longer text goes alone. On the CPU each does.
const PROMPT_TOKENS: usize = 4096;

/// A text with those that go on from it.
type Text = (Vec<u32>, Readers);

impl Batch<'_> {
    /// The texts of `sequences`, each with those that share it, in at most `limit` passes that are not too large.
    pub(super) fn passes(&self, sequences: &[usize], limit: usize) -> Vec<Vec<Text>> {
        let tuning = |index: usize| identity(self.sequences[index].asked.tuning());
        // On the CPU a pass is one text, and those that wait for a later step need not be put together yet.
        let on_cpu = self.decoder.device().is_cpu();
        let mut texts: Vec<Text> = Vec::new();
        for index in sequences {
            let Sequence { prompt, tokens, .. } = &self.sequences[*index];
            let full = on_cpu && texts.len() >= limit;
            let shared = texts.last_mut().filter(|(_, readers)| {
                let first = &self.sequences[readers[0]];
                Arc::ptr_eq(&first.prompt, prompt)
                    && first.tokens.is_empty()
                    && tokens.is_empty()
                    && tuning(readers[0]) == tuning(*index)
            });
            match shared {
                Some((_, readers)) => readers.push(*index),
                None if full => break,
                None => texts.push(([&prompt[..], tokens].concat(), vec![*index])),
            }
        }
        let mut passes: Vec<Vec<Text>> = Vec::new();
        let mut tokens = 0;
        let most = if on_cpu { 0 } else { PROMPT_TOKENS };
        for text in texts {
            let last = passes.last_mut().filter(|pass| {
                tokens + text.0.len() <= most && pass.iter().all(|(_, one)| tuning(one[0]) == tuning(text.1[0]))
            });
            tokens = text.0.len() + if last.is_some() { tokens } else { 0 };
            match last {
                Some(pass) => pass.push(text),
                None => passes.push(vec![text]),
            }
        }
        passes.truncate(limit);
        passes
    }

    /// Sends whole texts of one tuning through the decoder; the logits of each one's last token.
    pub(super) fn whole(&mut self, texts: Vec<Text>, glance: &dyn Fn()) -> Logits {
        match guarded(|| self.whole_pass(&texts, glance)) {
            Ok(logits) => texts.into_iter().map(|(_, readers)| readers).zip(logits.into_iter().map(Ok)).collect(),
            Err(error) => vec![(texts.into_iter().flat_map(|(_, readers)| readers).collect(), Err(error))],
        }
    }

    fn whole_pass(&mut self, texts: &[Text], glance: &dyn Fn()) -> Result<Vec<Vec<f32>>> {
        let Some((_, first)) = texts.first() else { return Ok(Vec::new()) };
        let asked = self.sequences[first[0]].asked.clone();
        let tuning = asked.tuning();
        for (text, readers) in texts {
            for index in readers {
                self.make_room(*index, tuning.virtual_tokens() + text.len())?;
            }
        }
        let takers: Vec<Vec<usize>> = texts
            .iter()
            .map(|(_, readers)| readers.iter().map(|index| self.sequences[*index].room.start).collect())
            .collect();
        let lengths: Vec<usize> = texts.iter().map(|(text, _)| text.len()).collect();
        let tokens: Vec<u32> = texts.iter().flat_map(|(text, _)| text.iter().copied()).collect();
        let packing = self.decoder.packing(&lengths, tuning)?;
        let rows = packing.lengths().to_vec();
        let mut memory = Whole::new(&mut self.rooms, &rows, &takers, tuning.prefix_tokens() > 0);
        let mut x = self.decoder.embed(&tokens, &packing, tuning)?.detach();
        for layer in 0..self.decoder.config().layers {
            glance();
            if texts.iter().flat_map(|(_, readers)| readers).all(|index| self.sequences[*index].is_gone()) {
                return Err(cancelled());
            }
            x = self.decoder.layer_with_memory(layer, &x, &packing, tuning, &mut memory)?.detach();
        }
        let ends: Vec<u32> = rows
            .iter()
            .scan(0, |end, rows| {
                *end += *rows as u32;
                Some(*end - 1)
            })
            .collect();
        let ends = Tensor::from_vec(ends, rows.len(), x.device())?;
        let states = self.decoder.finish(&x.index_select(&ends, 0)?)?.detach();
        let logits = Mixed::new(rows.iter().map(|_| tuning)).logits(&self.decoder, &states)?;
        for (text, readers) in texts {
            for index in readers {
                self.sequences[*index].held = tuning.virtual_tokens() + text.len();
            }
        }
        Ok(logits)
    }

    /// Sends the newest token of each of `sequences` through the decoder; the logits of each.
    pub(super) fn next(&mut self, mut sequences: Vec<usize>) -> Logits {
        // Rows of one tuning lie together.
        sequences.sort_by_key(|index| (identity(self.sequences[*index].asked.tuning()), *index));
        let most = if self.decoder.device().is_cpu() { MOST_ROWS } else { usize::MAX };
        let mut logits: Logits = Vec::with_capacity(sequences.len());
        let mut waiting: Vec<&[usize]> = sequences.chunks(most).rev().collect();
        while let Some(some) = waiting.pop() {
            match guarded(|| self.next_pass(some)) {
                Ok(rows) => logits.extend(some.iter().map(|index| vec![*index]).zip(rows.into_iter().map(Ok))),
                Err(error) if some.len() == 1 => logits.push((some.to_vec(), Err(error))),
                // Nobody's fault: there may be memory for fewer.
                Err(error) if error.is_out_of_memory() => {
                    let (some, others) = some.split_at(some.len() / 2);
                    waiting.extend([others, some]);
                }
                // Whose fault it was shows when each goes alone, which gives the others the same bits.
                Err(_) => logits.extend(some.iter().map(|index| {
                    let alone = guarded(|| self.next_pass(&[*index]));
                    (vec![*index], alone.map(|mut rows| rows.pop().unwrap_or_default()))
                })),
            }
        }
        logits
    }

    fn next_pass(&mut self, sequences: &[usize]) -> Result<Vec<Vec<f32>>> {
        for index in sequences {
            self.make_room(*index, self.sequences[*index].held + 1)?;
        }
        let own = || sequences.iter().map(|index| &self.sequences[*index]);
        let tokens: Vec<u32> = own().filter_map(|sequence| sequence.tokens.last().copied()).collect();
        let places: Vec<Range<usize>> =
            own().map(|sequence| sequence.room.start..sequence.room.start + sequence.held + 1).collect();
        let packing = self.decoder.next_tokens(&places, self.rooms.rows())?;
        let mixed = Mixed::new(own().map(|sequence| sequence.asked.tuning()));
        let mut memory = Next { rooms: &mut self.rooms, places: &places };
        let mut x = self.decoder.embed(&tokens, &packing, &mixed)?.detach();
        for layer in 0..self.decoder.config().layers {
            x = self.decoder.layer_with_memory(layer, &x, &packing, &mixed, &mut memory)?.detach();
        }
        let states = self.decoder.finish(&x)?.detach();
        let logits = mixed.logits(&self.decoder, &states)?;
        for index in sequences {
            self.sequences[*index].held += 1;
        }
        Ok(logits)
    }

    /// Moves a sequence to a larger room where its own has fewer than `rows` rows.
    fn make_room(&mut self, index: usize, rows: usize) -> Result<()> {
        let sequence = &mut self.sequences[index];
        if sequence.room.len() < rows {
            let larger = self.rooms.take(2 * rows);
            if let Err(error) = self.rooms.copy(&sequence.room, sequence.held, &larger) {
                self.rooms.leave(&larger);
                return Err(error.into());
            }
            let old = std::mem::replace(&mut sequence.room, larger);
            self.rooms.leave(&old);
        }
        Ok(())
    }
}

/// What a sequence ends with that nobody waits for.
pub(in crate::infer) fn cancelled() -> Error {
    Error::new(Kind::Unavailable, "The answer was cancelled")
}

/// Makes an error of a panic: it must not take the whole batch with it.
fn guarded<T>(pass: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(pass))
        .unwrap_or_else(|cause| Err(Error::internal(anyhow::anyhow!("a pass panicked: {}", panic_message(&*cause)))))
}
