//! Requests that come and go as they like, each answered as if it were alone.

use std::path::Path;
use std::sync::Barrier;

use candle_core::Device;

use super::*;
use crate::models::{Form, Frozen};

const GIB: u64 = 1 << 30;

fn decoder() -> Arc<Decoder> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama");
    Arc::new(Decoder::load(&dir, &Device::Cpu, Form::Served).unwrap())
}

fn scheduler(sequences: usize, cache: u64) -> Scheduler {
    Scheduler::new(decoder(), &[], Limits { sequences, cache })
}

fn base() -> Asked<'static> {
    Asked::borrowed(&Frozen, 64)
}

fn way(request: usize) -> Sampling {
    let temperature = if request.is_multiple_of(2) { 0.0 } else { 1.5 };
    Sampling { max_tokens: 10 + request % 9, temperature, top_p: 1.0, top_k: None, seed: request as u64 }
}

fn prompt(request: usize) -> Vec<u32> {
    (0..1 + request % 6).map(|at| (3 + 17 * request + 5 * at) as u32 % 260).collect()
}

/// The whole answer to a request.
fn said(scheduler: &Scheduler, request: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut on_token = |token| {
        tokens.push(token);
        Ok(true)
    };
    let never = AtomicBool::new(false);
    let ended = scheduler.ask(base(), &prompt(request), &way(request), &never, &mut on_token).unwrap();
    assert_eq!(ended, Some(StopReason::MaxTokens));
    tokens
}

/// Nobody is left in it, and everything was given back.
#[track_caller]
fn assert_empty(scheduler: &Scheduler) {
    let state = scheduler.lock();
    assert!(state.batch.as_ref().is_some_and(Batch::is_empty));
    assert!(state.line.is_empty() && state.requests.is_empty() && state.seats.is_empty() && state.leaving.is_empty());
}

/// Answers of requests that come at once, each from a thread of its own.
fn at_once(scheduler: &Scheduler, requests: usize) -> Vec<Vec<u32>> {
    let together = Barrier::new(requests);
    std::thread::scope(|scope| {
        let ask = |request| {
            let together = &together;
            scope.spawn(move || {
                together.wait();
                said(scheduler, request)
            })
        };
        let threads: Vec<_> = (0..requests).map(ask).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn requests_at_once_get_the_answers_that_each_gets_alone_also_when_they_wait_for_places_and_rooms() {
    let alone: Vec<Vec<u32>> = (0..20).map(|request| said(&scheduler(1, GIB), request)).collect();
    // A row of keys and values takes 2 · 2 layers · 16 values; an answer needs up to 23 rows.
    let row = 2 * 2 * 16 * 4;
    for (sequences, cache) in [(32, GIB), (3, GIB), (32, 50 * row), (32, 1)] {
        let scheduler = scheduler(sequences, cache);
        assert_eq!(at_once(&scheduler, 20), alone, "{sequences} places, {cache} bytes");
        assert_empty(&scheduler);
    }
}

#[test]
fn a_cancelled_request_leaves_within_a_token_and_the_others_go_on() {
    let scheduler = scheduler(8, GIB);
    let expected = said(&scheduler, 1);
    let (cancel, both_run) = (AtomicBool::new(false), Barrier::new(2));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let (mut tokens, never) = (Vec::new(), AtomicBool::new(false));
            let mut on_token = |token| {
                if tokens.is_empty() {
                    both_run.wait();
                }
                tokens.push(token);
                Ok(true)
            };
            scheduler.ask(base(), &prompt(1), &way(1), &never, &mut on_token).unwrap();
            tokens
        });
        let mut seen = 0;
        let mut on_token = |_| {
            seen += 1;
            if seen == 1 {
                both_run.wait();
            }
            if seen == 3 {
                cancel.store(true, Ordering::Relaxed);
            }
            Ok(true)
        };
        let forever = Sampling { max_tokens: 60, ..way(0) };
        let cancelled = scheduler.ask(base(), &prompt(0), &forever, &cancel, &mut on_token).unwrap_err();
        assert!(cancelled.message().contains("cancelled"));
        assert_eq!(seen, 3, "not a token more");
        assert_eq!(other.join().unwrap(), expected);
    });
    assert_empty(&scheduler);
}

#[test]
fn one_with_a_place_of_its_own_goes_before_those_who_wait_and_takes_none_of_theirs() {
    let scheduler = scheduler(1, GIB);
    let line_up = |request, reserved| {
        let asked = base().with_place(reserved);
        scheduler.line_up(Joining { asked, prompt: prompt(request), sampling: way(request) }).0
    };
    let tickets = [(0, false), (1, false), (2, true), (3, true)].map(|(request, reserved)| line_up(request, reserved));
    let [first, second, reserved, also_reserved] = tickets;
    let mut state = scheduler.lock();
    assert_eq!(state.line, [reserved, also_reserved, first, second]);
    let mut batch = state.batch.take().unwrap();
    state.let_in(&mut batch, 1);
    assert_eq!((batch.len(), batch.on_demand(), &state.line), (3, 1, &VecDeque::from([second])));
}

#[test]
fn one_who_has_enough_or_fails_or_panics_is_out_and_the_others_go_on() {
    let scheduler = scheduler(8, GIB);
    let expected = said(&scheduler, 3);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| said(&scheduler, 3));
        let never = AtomicBool::new(false);
        let ask = |on_token: &mut dyn FnMut(u32) -> Result<bool>| {
            scheduler.ask(base(), &prompt(2), &way(2), &never, on_token)
        };
        assert_eq!(ask(&mut |_| Ok(false)).unwrap(), None);
        assert_eq!(ask(&mut |_| Err(Error::validation("no more"))).unwrap_err().message(), "no more");
        let panicked = catch_unwind(AssertUnwindSafe(|| ask(&mut |_| panic!("a reader of its own kind"))));
        assert!(panicked.is_err());
        assert_eq!(other.join().unwrap(), expected);
    });
    assert_eq!(said(&scheduler, 3), expected);
    assert_empty(&scheduler);
}

#[test]
fn a_prompt_that_cannot_be_answered_is_refused_before_it_lines_up() {
    let scheduler = scheduler(8, GIB);
    for prompt in [vec![], vec![1; 64]] {
        let never = AtomicBool::new(false);
        let refused = scheduler.ask(base(), &prompt, &way(0), &never, &mut |_| Ok(true)).unwrap_err();
        assert_eq!(refused.kind(), crate::error::Kind::Validation);
    }
    assert_empty(&scheduler);
}
