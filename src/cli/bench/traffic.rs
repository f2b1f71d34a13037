//! Requests as callers send them: so many callers, each with one request under way, who send the next as soon as
//! one is answered, until all are. Their lengths are drawn by each request's number, so that whoever is measured
//! beside this gets the same work, and what was seen is told in the terms in which serving is measured: tokens per
//! second of all together, time to first token, and time per output token.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::rng::Rng;

/// How many tokens: always the same number, or any of a range, each as likely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Length(RangeInclusive<usize>);

impl Length {
    /// The one that the request of this number has.
    fn of(&self, stream: &str, request: usize) -> usize {
        let (least, most) = (*self.0.start(), *self.0.end());
        let drawn = Rng::new(7, stream, request as u64).uniform() * (most - least + 1) as f32;
        (least + drawn as usize).min(most)
    }

    pub(super) fn least(&self) -> usize {
        *self.0.start()
    }

    pub(super) fn most(&self) -> usize {
        *self.0.end()
    }
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| format!("{text:?} is not a whole number"));
        let (least, most) = match text.split_once('-') {
            Some((least, most)) => (number(least)?, number(most)?),
            None => (number(text)?, number(text)?),
        };
        if least == 0 || most < least {
            return Err("expected a number above 0, or two as in 8-512, the lower one first".into());
        }
        Ok(Self(least..=most))
    }
}

impl std::fmt::Display for Length {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (least, most) = (self.0.start(), self.0.end());
        if least == most { write!(out, "{least}") } else { write!(out, "{least}-{most}") }
    }
}

/// One request's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) prompt_tokens: usize,
    pub(super) new_tokens: usize,
}

impl Work {
    /// That of the request of this number.
    pub(super) fn of(request: usize, prompt: &Length, new: &Length) -> Self {
        Self {
            prompt_tokens: prompt.of("bench serve prompt", request),
            new_tokens: new.of("bench serve answer", request),
        }
    }
}

/// When one request was sent and each of its tokens came, in seconds from one moment for all.
pub(super) struct Seen {
    sent: f64,
    tokens: Vec<f64>,
}

impl Seen {
    fn first(&self) -> f64 {
        self.tokens.first().copied().unwrap_or(self.sent)
    }

    fn last(&self) -> f64 {
        self.tokens.last().copied().unwrap_or(self.sent)
    }

    /// Time per output token: seconds from one to the next.
    fn pace(&self) -> Option<f64> {
        let after = self.tokens.len().checked_sub(1).filter(|after| *after > 0)?;
        Some((self.last() - self.first()) / after as f64)
    }
}

/// Answers the request of a number, and tells of each of its tokens.
type Ask<'a> = dyn Fn(usize, &mut dyn FnMut()) -> Result<()> + Sync + 'a;

/// `callers` callers share `requests` requests.
pub(super) fn send(callers: usize, requests: usize, clock: &Clock, ask: &Ask<'_>) -> Result<Vec<Seen>> {
    let (together, next) = (Barrier::new(callers), AtomicUsize::new(0));
    let begun: Instant = clock.monotonic();
    let call = || -> Result<Vec<Seen>> {
        together.wait();
        let mut seen = Vec::new();
        loop {
            let request = next.fetch_add(1, Ordering::Relaxed);
            if request >= requests {
                return Ok(seen);
            }
            let sent = begun.elapsed().as_secs_f64();
            let mut tokens = Vec::new();
            // Where one is not answered, the figures are lost, and nobody has to send the rest.
            ask(request, &mut || tokens.push(begun.elapsed().as_secs_f64()))
                .inspect_err(|_| next.store(requests, Ordering::Relaxed))?;
            seen.push(Seen { sent, tokens });
        }
    };
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(call)).collect();
        let mut all = Vec::with_capacity(requests);
        for caller in callers {
            all.extend(caller.join().map_err(|_| Error::internal(anyhow::anyhow!("a caller panicked")))??);
        }
        Ok(all)
    })
}

/// The figures of one number of requests at once.
pub(super) struct Figures {
    pub(super) concurrency: usize,
    pub(super) requests: usize,
    /// Of all requests together, from the first sent to the last token.
    pub(super) tokens_per_second: f64,
    /// The same once everybody has a first token; known where all are sent at once.
    pub(super) decoded_per_second: Option<f64>,
    /// From sending a request to its first token, of the median request and of the slowest.
    pub(super) first_seconds: f64,
    pub(super) slowest_first_seconds: f64,
    /// Time per output token, from the first one on, of the median request.
    pub(super) token_seconds: f64,
}

impl Figures {
    /// The median of every figure over the rounds.
    pub(super) fn median(concurrency: usize, requests: usize, rounds: &[Vec<Seen>]) -> Self {
        let of = |value: &dyn Fn(&[Seen]) -> f64| median(rounds.iter().map(|seen| value(seen)).collect());
        let sent = |seen: &[Seen]| seen.iter().map(|one| one.sent).fold(f64::INFINITY, f64::min);
        let last = |seen: &[Seen]| seen.iter().map(Seen::last).fold(0.0, f64::max);
        let waits = |seen: &[Seen]| seen.iter().map(|one| one.first() - one.sent).collect::<Vec<_>>();
        let tokens = |seen: &[Seen]| seen.iter().map(|one| one.tokens.len()).sum::<usize>() as f64;
        let decoded = |seen: &[Seen]| {
            let from = seen.iter().map(Seen::first).fold(0.0, f64::max);
            let after = seen.iter().flat_map(|one| &one.tokens).filter(|at| **at > from).count();
            after as f64 / (last(seen) - from).max(1e-9)
        };
        Self {
            concurrency,
            requests,
            tokens_per_second: of(&|seen| tokens(seen) / (last(seen) - sent(seen)).max(1e-9)),
            decoded_per_second: (requests == concurrency).then(|| of(&decoded)),
            first_seconds: of(&|seen| median(waits(seen))),
            slowest_first_seconds: of(&|seen| waits(seen).into_iter().fold(0.0, f64::max)),
            token_seconds: of(&|seen| median(seen.iter().filter_map(Seen::pace).collect())),
        }
    }
}

/// The one in the middle, or the mean of the two that are; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values[..] {
        [] => 0.0,
        _ if values.len().is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_one_number_or_any_of_a_range_drawn_by_the_requests_number() {
        let one: Length = "128".parse().unwrap();
        assert!((0..50).all(|request| one.of("x", request) == 128));
        let range: Length = "8-512".parse().unwrap();
        let drawn: Vec<usize> = (0..4000).map(|request| range.of("x", request)).collect();
        assert_eq!(drawn, (0..4000).map(|request| range.of("x", request)).collect::<Vec<_>>());
        assert!(drawn.iter().all(|length| (8..=512).contains(length)));
        assert!(drawn.contains(&8) && drawn.contains(&512), "both ends are of the range");
        let mean = drawn.iter().sum::<usize>() as f64 / drawn.len() as f64;
        assert!((mean - 260.0).abs() < 10.0, "{mean}");
        assert_eq!((range.to_string(), one.to_string()), ("8-512".into(), "128".into()));
        for bad in ["0", "9-8", "many", "8-", "-8"] {
            assert!(bad.parse::<Length>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_request_is_sent_once_and_never_more_at_once_than_there_are_callers() {
        let (sent, now, most) = (std::sync::Mutex::new(Vec::new()), AtomicUsize::new(0), AtomicUsize::new(0));
        let ask = |request: usize, token: &mut dyn FnMut()| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            (0..=request % 3).for_each(|_| token());
            sent.lock().unwrap().push(request);
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        let seen = send(3, 20, &Clock::system(), &ask).unwrap();
        let mut sent = sent.into_inner().unwrap();
        sent.sort_unstable();
        assert_eq!(sent, (0..20).collect::<Vec<_>>());
        assert!(most.into_inner() <= 3);
        assert_eq!(
            seen.iter().map(|one| one.tokens.len()).sum::<usize>(),
            (0..20).map(|request| request % 3 + 1).sum::<usize>()
        );
        assert!(send(3, 20, &Clock::system(), &|_, _| Err(Error::validation("no"))).is_err());
    }

    #[test]
    fn figures_are_taken_from_when_each_request_was_sent() {
        let one = |sent: f64, tokens: &[f64]| Seen { sent, tokens: tokens.to_vec() };
        let seen = vec![one(0.5, &[1.5, 2.5, 3.5]), one(3.5, &[4.0, 4.25, 4.5]), one(0.5, &[1.5])];
        let figures = Figures::median(2, 3, &[seen]);
        assert_eq!(figures.tokens_per_second, 7.0 / 4.0);
        assert_eq!(figures.first_seconds, 1.0);
        assert_eq!(figures.slowest_first_seconds, 1.0);
        assert_eq!(figures.token_seconds, (1.0 + 0.25) / 2.0);
        assert_eq!(figures.decoded_per_second, None, "they were not sent at once");
        let figures = Figures::median(2, 2, &[vec![one(0.0, &[1.0, 2.0, 3.0]), one(0.0, &[2.0, 3.0, 4.0])]]);
        assert_eq!(figures.decoded_per_second, Some(3.0 / 2.0));
    }
}
