//! The way of a streamed answer from the thread that makes it to its reader. A slow reader holds up nothing: pieces
//! wait for it, and when many wait the text of the newest goes on growing. A reader that takes nothing for a while, and
//! one that went away, end the answer at its next token, so that permit and sequence are free for others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::infer::{Answer, Piece};

/// Pieces that wait for the reader one by one; above that they grow together.
const WAITING: usize = 64;

/// Some text of an answer, with the tokens so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) input_tokens: usize,
    pub(super) output_tokens: usize,
}

/// What the engine says.
pub(super) enum Said {
    /// More text.
    More(Text),
    /// All of it was said, or something went wrong.
    End(Result<Answer>),
}

/// The engine's side.
pub(super) struct Writer {
    shared: Arc<Shared>,
    cancel: Arc<AtomicBool>,
    clock: Clock,
    stall: Duration,
}

/// The reader's side. Dropping it ends the answer at its next token.
pub(super) struct Reader {
    shared: Arc<Shared>,
    cancel: Arc<AtomicBool>,
    clock: Clock,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Rung when something waits for the reader.
    said: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Text>,
    end: Option<Result<Answer>>,
    /// Since when the reader has taken nothing although something waits for it.
    unread_since: Option<Instant>,
    /// The reader took nothing for too long.
    stalled: bool,
    writer_gone: bool,
}

/// Both ends. A reader that takes nothing for `stall` although something waits is taken for gone. `cancel` is the
/// engine's flag.
pub(super) fn outlet(clock: &Clock, stall: Duration) -> (Writer, Reader, Arc<AtomicBool>) {
    let shared = Arc::new(Shared { state: Mutex::default(), said: Notify::new() });
    let cancel = Arc::<AtomicBool>::default();
    let writer = Writer { shared: Arc::clone(&shared), cancel: Arc::clone(&cancel), clock: clock.clone(), stall };
    let reader = Reader { shared, cancel: Arc::clone(&cancel), clock: clock.clone(), ended: false };
    (writer, reader, cancel)
}

impl Writer {
    /// Leaves a piece for the reader; never blocks.
    pub(super) fn more(&self, piece: Piece<'_>) {
        let Piece { text, input_tokens, output_tokens } = piece;
        let mut state = self.shared.lock();
        let now = self.clock.monotonic();
        if now.duration_since(*state.unread_since.get_or_insert(now)) >= self.stall {
            state.stalled = true;
            self.cancel.store(true, Ordering::Relaxed);
        }
        if state.waiting.len() < WAITING {
            state.waiting.push_back(Text { text: text.to_string(), input_tokens, output_tokens });
        } else if let Some(last) = state.waiting.back_mut() {
            last.text.push_str(text);
            last.output_tokens = output_tokens;
        }
        drop(state);
        self.shared.said.notify_one();
    }

    /// Says how the answer ended.
    pub(super) fn end(self, answer: Result<Answer>) {
        let mut state = self.shared.lock();
        let stalled = state.stalled && answer.is_err();
        state.end = Some(if stalled { Err(unread(self.stall)) } else { answer });
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().writer_gone = true;
        self.shared.said.notify_one();
    }
}

impl Reader {
    /// What comes next; `None` after the end.
    pub(super) async fn next(&mut self) -> Option<Said> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(said) = self.take() {
                self.ended = matches!(said, Said::End(_));
                return Some(said);
            }
            self.shared.said.notified().await;
        }
    }

    fn take(&self) -> Option<Said> {
        let mut state = self.shared.lock();
        if let Some(text) = state.waiting.pop_front() {
            state.unread_since = (!state.waiting.is_empty()).then(|| self.clock.monotonic());
            return Some(Said::More(text));
        }
        let wordless = || Err(Error::internal(anyhow::anyhow!("the engine ended without a word")));
        let end = state.end.take();
        (end.is_some() || state.writer_gone).then(|| Said::End(end.unwrap_or_else(wordless)))
    }

    /// Ends the answer for a reason of the service's own.
    pub(super) fn break_off(&mut self, reason: Error) -> Said {
        self.ended = true;
        self.cancel.store(true, Ordering::Relaxed);
        Said::End(Err(reason))
    }

    /// Whether the end was given.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unread(stall: Duration) -> Error {
    Error::new(
        Kind::Model,
        format!(
            "Nothing of the answer was read for {} seconds, so it was ended. Read the stream as it comes, or ask for \
             the answer in one piece",
            stall.as_secs()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    fn piece(output_tokens: usize) -> Piece<'static> {
        Piece { text: "ab", input_tokens: 3, output_tokens }
    }

    fn cancelled() -> Result<Answer> {
        Err(Error::validation("cancelled"))
    }

    async fn rest(reader: &mut Reader) -> (Vec<Text>, Option<Result<Answer>>) {
        let mut texts = Vec::new();
        while let Some(said) = reader.next().await {
            match said {
                Said::More(text) => texts.push(text),
                Said::End(end) => return (texts, Some(end)),
            }
        }
        (texts, None)
    }

    #[tokio::test]
    async fn a_slow_reader_holds_up_nothing_and_misses_nothing() {
        let (writer, mut reader, cancel) = outlet(&Clock::system(), Duration::from_secs(60));
        for token in 1..=1000 {
            writer.more(piece(token));
        }
        writer.end(Err(Error::validation("broke")));
        let (texts, end) = rest(&mut reader).await;
        assert_eq!(texts.len(), WAITING, "what waits is bounded in number");
        assert_eq!(texts.iter().map(|text| text.text.len()).sum::<usize>(), 2000);
        assert_eq!(texts.last().unwrap().output_tokens, 1000);
        assert_eq!(end.unwrap().unwrap_err().message(), "broke");
        assert!(reader.next().await.is_none() && !cancel.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_ends_the_answer_and_is_told_so() {
        let clock = Clock::system();
        let (writer, mut reader, cancel) = outlet(&clock, STALL);
        let mut tokens = 0;
        // As the engine does: the flag ends the work at the next token.
        while !cancel.load(Ordering::Relaxed) {
            tokens += 1;
            writer.more(piece(tokens));
            clock.pass(STALL / 10);
        }
        assert_eq!(tokens, 11, "it may be late by the deadline");
        writer.end(cancelled());
        let (texts, end) = rest(&mut reader).await;
        assert_eq!(texts.iter().map(|text| text.text.len()).sum::<usize>(), 2 * tokens);
        let error = end.unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::Model);
        assert!(error.message().contains("Nothing of the answer was read"), "{error}");
    }

    #[tokio::test]
    async fn a_reader_that_takes_now_and_then_is_not_stalled() {
        let clock = Clock::system();
        let (writer, mut reader, cancel) = outlet(&clock, STALL);
        for token in 1..=20 {
            writer.more(piece(token));
            writer.more(piece(token));
            clock.pass(STALL * 9 / 10);
            assert!(matches!(reader.next().await, Some(Said::More(_))));
        }
        assert!(!cancel.load(Ordering::Relaxed));
        drop(reader);
        assert!(cancel.load(Ordering::Relaxed), "who goes away ends the answer");
    }

    #[tokio::test]
    async fn an_engine_that_dies_without_a_word_ends_the_stream() {
        let (writer, mut reader, _) = outlet(&Clock::system(), STALL);
        drop(writer);
        assert_eq!(rest(&mut reader).await.1.unwrap().unwrap_err().kind(), Kind::Internal);
    }
}
