//! The requests to one base in memory, answered through one batch. There is no thread of its own: whoever waits
//! for a token and finds the batch free takes it, steps it once for all, and puts it back. So nothing runs where
//! nobody waits, nothing has to be stopped when a base leaves memory, a request that is alone pays for no hand-over,
//! and one whose reader is slow holds up nobody, because its thread only ever steps when it has nothing to say.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::answer::StopReason;
use super::batch::{Asked, Batch, Drawn, SequenceId, cancelled};
use super::sampling::Sampling;
use crate::error::{Error, Result};
use crate::models::{Decoder, DecoderConfig};

/// How often one who waits looks whether anybody waits for it.
const GLANCE: Duration = Duration::from_millis(20);

/// What the sequences of one base may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that are decoded together; more wait.
    pub sequences: usize,
    /// Bytes of keys and values; a sequence that does not fit in waits.
    pub cache: u64,
}

impl Limits {
    /// Rows of keys and values of this model.
    fn rows(&self, config: &DecoderConfig) -> usize {
        let row = 2 * config.layers * config.kv_heads * config.head_dim * size_of::<f32>();
        (self.cache / row.max(1) as u64) as usize
    }
}

/// Lets requests to one base share its steps.
pub struct Scheduler {
    decoder: Arc<Decoder>,
    ends: Vec<u32>,
    limits: Limits,
    state: Mutex<State>,
    /// Rung after every step, and when somebody leaves.
    turned: Condvar,
}

/// A request by the order in which it came.
type Ticket = u64;

struct State {
    /// Absent while somebody steps it.
    batch: Option<Batch<'static>>,
    /// Those who have not joined yet, in the order in which they do.
    line: VecDeque<Ticket>,
    requests: HashMap<Ticket, Request>,
    /// Whose sequence it is.
    seats: HashMap<SequenceId, Ticket>,
    /// Sequences to take out of the batch when it is back.
    leaving: Vec<SequenceId>,
    next: Ticket,
}

struct Request {
    /// How it joins, until it does.
    joining: Option<Joining>,
    sequence: Option<SequenceId>,
    /// Tokens that its thread has not taken yet.
    tokens: Vec<u32>,
    ended: Option<Result<StopReason>>,
    gone: Arc<AtomicBool>,
}

struct Joining {
    asked: Asked<'static>,
    prompt: Vec<u32>,
    sampling: Sampling,
}

impl Scheduler {
    /// Nobody asks yet. `ends` are the tokens after which a sequence has said all.
    pub fn new(decoder: Arc<Decoder>, ends: &[u32], limits: Limits) -> Self {
        let state = State {
            batch: None,
            line: VecDeque::new(),
            requests: HashMap::new(),
            seats: HashMap::new(),
            leaving: Vec::new(),
            next: 0,
        };
        let new = Self { decoder, ends: ends.to_vec(), limits, state: Mutex::new(state), turned: Condvar::new() };
        new.lock().batch = Some(new.fresh());
        new
    }

    /// Goes on from `prompt`: every token but one that ends the answer goes to `on_token`, on this thread, until it
    /// says that there are enough; then the result is `None`. `cancel` ends it within a token. Blocks.
    ///
    /// # Errors
    /// When the prompt is empty or fills the context, it was cancelled, `on_token` fails, or the model produces
    /// values that are not numbers.
    pub fn ask(
        &self,
        asked: Asked<'static>,
        prompt: &[u32],
        sampling: &Sampling,
        cancel: &AtomicBool,
        on_token: &mut dyn FnMut(u32) -> Result<bool>,
    ) -> Result<Option<StopReason>> {
        asked.check(prompt.len())?;
        let joining = Joining { asked, prompt: prompt.to_vec(), sampling: *sampling };
        let (ticket, gone) = self.line_up(joining);
        let _leave = Leave { scheduler: self, ticket };
        loop {
            let (tokens, ended) = self.wait(ticket, cancel, &gone)?;
            for token in tokens {
                if cancel.load(Ordering::Relaxed) {
                    return Err(cancelled());
                }
                if !on_token(token)? {
                    return Ok(None);
                }
            }
            if let Some(ended) = ended {
                return ended.map(Some);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) -> Batch<'static> {
        Batch::shared(Arc::clone(&self.decoder), &self.ends, self.limits.rows(self.decoder.config()))
    }

    fn line_up(&self, joining: Joining) -> (Ticket, Arc<AtomicBool>) {
        let gone = Arc::<AtomicBool>::default();
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        let place = if joining.asked.reserved { state.reserved_in_line() } else { state.line.len() };
        let joining = Some(joining);
        let request = Request { joining, sequence: None, tokens: Vec::new(), ended: None, gone: Arc::clone(&gone) };
        state.requests.insert(ticket, request);
        state.line.insert(place, ticket);
        (ticket, gone)
    }

    /// Waits for tokens of one's own, or the end; steps the batch where nobody else does.
    fn wait(
        &self,
        ticket: Ticket,
        cancel: &AtomicBool,
        gone: &AtomicBool,
    ) -> Result<(Vec<u32>, Option<Result<StopReason>>)> {
        let mut state = self.lock();
        loop {
            if cancel.load(Ordering::Relaxed) {
                gone.store(true, Ordering::Relaxed);
                return Err(cancelled());
            }
            let Some(own) = state.requests.get_mut(&ticket) else {
                return Err(Error::internal(anyhow::anyhow!("a request left before it was answered")));
            };
            if !own.tokens.is_empty() || own.ended.is_some() {
                return Ok((std::mem::take(&mut own.tokens), own.ended.take()));
            }
            state = match state.batch.take() {
                Some(batch) => {
                    let glance = || gone.store(cancel.load(Ordering::Relaxed), Ordering::Relaxed);
                    self.turn(state, batch, &glance)
                }
                None => self.turned.wait_timeout(state, GLANCE).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// Steps the batch once for all who are in it, and hands out what it gave. `glance` sees whether who steps is
    /// still waited for.
    fn turn<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        mut batch: Batch<'static>,
        glance: &(dyn Fn() + Sync),
    ) -> MutexGuard<'a, State> {
        let enter = || {
            state.let_go(&mut batch);
            state.let_in(&mut batch, self.limits.sequences);
        };
        let entered = catch_unwind(AssertUnwindSafe(enter)).is_ok();
        drop(state);
        let mut given = Vec::new();
        // On a thread of the pool the many small pieces of a step are handed out without waking anybody for each.
        let step = || rayon::scope(|_| given = batch.advance(1, &glance));
        let whole = entered && catch_unwind(AssertUnwindSafe(step)).is_ok();
        let mut state = self.lock();
        if !entered && let Some(ticket) = state.line.pop_front() {
            // Whoever it was that could not join does not try again.
            if let Some(request) = state.requests.get_mut(&ticket) {
                request.joining = None;
                request.ended = Some(Err(Error::internal(anyhow::anyhow!("joining the batch panicked"))));
            }
        }
        if whole {
            given.into_iter().for_each(|(sequence, drawn)| state.hand_out(sequence, drawn));
        } else {
            let seats: Vec<SequenceId> = state.seats.keys().copied().collect();
            let broken = || Err(Error::internal(anyhow::anyhow!("a step of the batch panicked")));
            seats.into_iter().for_each(|sequence| state.hand_out(sequence, broken()));
            batch = self.fresh();
        }
        state.let_go(&mut batch);
        state.batch = Some(batch);
        self.turned.notify_all();
        state
    }
}

impl State {
    /// Takes out those whose requests are over.
    fn let_go(&mut self, batch: &mut Batch<'static>) {
        self.leaving.drain(..).for_each(|sequence| batch.leave(sequence));
    }

    /// How many at the head of the line have a place kept for them.
    fn reserved_in_line(&self) -> usize {
        let reserved = |ticket: &Ticket| {
            let joining = self.requests.get(ticket).and_then(|request| request.joining.as_ref());
            joining.is_some_and(|joining| joining.asked.reserved)
        };
        self.line.iter().take_while(|ticket| reserved(ticket)).count()
    }

    /// Lets those in who have a place and a room, first come first served: a long one is not passed by. A place that
    /// is kept is not one of the `most`.
    fn let_in(&mut self, batch: &mut Batch<'static>, most: usize) {
        while let Some(ticket) = self.line.front().copied() {
            let Some(request) = self.requests.get_mut(&ticket) else {
                self.line.pop_front();
                continue;
            };
            if let Some(Joining { asked, prompt, sampling }) = &request.joining {
                let place = asked.reserved || batch.on_demand() < most.max(1);
                let fits = place && batch.has_room(asked, prompt.len(), sampling);
                if !fits && !batch.is_empty() {
                    return;
                }
                match batch.join_as(asked, prompt, &[*sampling], &request.gone) {
                    Ok(joined) => {
                        request.sequence = joined.first().copied();
                        self.seats.extend(request.sequence.map(|sequence| (sequence, ticket)));
                    }
                    Err(error) => request.ended = Some(Err(error)),
                }
            }
            request.joining = None;
            self.line.pop_front();
        }
    }

    /// Gives a request what was drawn for its sequence.
    fn hand_out(&mut self, sequence: SequenceId, drawn: Result<Drawn>) {
        let Some(ticket) = self.seats.get(&sequence).copied() else { return };
        let over = drawn.as_ref().map_or(true, |drawn| drawn.ended.is_some());
        if over {
            self.seats.remove(&sequence);
        }
        let Some(request) = self.requests.get_mut(&ticket) else { return };
        if over {
            request.sequence = None;
        }
        match drawn {
            Ok(Drawn { token, ended, .. }) => {
                if ended != Some(StopReason::EndTurn) {
                    request.tokens.push(token);
                }
                request.ended = ended.map(Ok);
            }
            Err(error) => request.ended = Some(Err(error)),
        }
    }
}

/// Takes a request out however its thread leaves, so that its room is free for others.
struct Leave<'a> {
    scheduler: &'a Scheduler,
    ticket: Ticket,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut state = self.scheduler.lock();
        let Some(request) = state.requests.remove(&self.ticket) else { return };
        request.gone.store(true, Ordering::Relaxed);
        state.line.retain(|waiting| *waiting != self.ticket);
        if let Some(sequence) = request.sequence {
            state.seats.remove(&sequence);
            match &mut state.batch {
                Some(batch) => batch.leave(sequence),
                None => state.leaving.push(sequence),
            }
        }
        drop(state);
        // A place is free, and who waits for it may be the one to step.
        self.scheduler.turned.notify_all();
    }
}

#[cfg(test)]
mod tests;
