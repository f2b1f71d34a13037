//! How often a key may call: a token bucket for each key, filled at the rate of the settings up to its
//! burst. Only a key that has proved itself has a bucket, so that strangers can neither empty one nor
//! fill the memory; each process counts for itself.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use super::reply::{Failure, refuse};

/// Buckets kept at once. A full bucket says nothing that a new one would not, so it is let go.
const MAX_BUCKETS: usize = 10_000;

/// The buckets of all keys.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rate {
    /// `per_second` calls in the long run, and up to `burst` at once.
    pub fn new(per_second: f64, burst: u32) -> Self {
        Self { per_second, burst: f64::from(burst), buckets: Mutex::default() }
    }

    /// Takes one call of `key` at `now`.
    ///
    /// # Errors
    /// How long to wait until the next call, when there is none left.
    pub fn take(&self, key: &str, now: Instant) -> Result<(), Duration> {
        // Nothing under the lock can panic; a poisoned lock would still hold whole buckets.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(key) && buckets.len() >= MAX_BUCKETS {
            self.make_room(&mut buckets, now);
        }
        let bucket = buckets.entry(key.to_string()).or_insert(Bucket { tokens: self.burst, at: now });
        bucket.tokens = self.level(*bucket, now);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::try_from_secs_f64((1.0 - bucket.tokens) / self.per_second).unwrap_or(Duration::MAX))
    }

    fn level(&self, bucket: Bucket, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_second;
        (bucket.tokens + gained).min(self.burst)
    }

    fn make_room(&self, buckets: &mut HashMap<String, Bucket>, now: Instant) {
        buckets.retain(|_, bucket| self.level(*bucket, now) < self.burst);
        if buckets.len() >= MAX_BUCKETS {
            let fullest = buckets.iter().max_by(|a, b| self.level(*a.1, now).total_cmp(&self.level(*b.1, now)));
            if let Some(key) = fullest.map(|(key, _)| key.clone()) {
                buckets.remove(&key);
            }
        }
    }
}

/// The reply to a call that comes too early; `Retry-After` is in whole seconds, rounded up.
pub fn too_many(wait: Duration) -> Response {
    let name = "ThrottlingException";
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1);
    let message = "Too many requests, please wait before trying again.";
    let mut reply = refuse(StatusCode::TOO_MANY_REQUESTS, name, message);
    reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    reply.extensions_mut().insert(Failure(format!("{name}: the key's rate is used up for {seconds} s")));
    reply
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do to count from")]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_answered_and_then_only_as_often_as_the_rate_allows() {
        let (rate, begun) = (Rate::new(2.0, 3), Instant::now());
        let at = |ms: u64| begun + Duration::from_millis(ms);
        for _ in 0..3 {
            rate.take("a", at(0)).unwrap();
        }
        assert_eq!(rate.take("a", at(0)), Err(Duration::from_millis(500)));
        assert_eq!(rate.take("a", at(250)), Err(Duration::from_millis(250)));
        rate.take("b", at(250)).unwrap();
        rate.take("a", at(500)).unwrap();
        assert!(rate.take("a", at(500)).is_err());
        for _ in 0..3 {
            rate.take("a", at(60_000)).unwrap();
        }
        assert!(rate.take("a", at(60_000)).is_err(), "an idle bucket holds a burst and no more");
    }

    #[test]
    fn memory_is_bounded_and_full_buckets_go_first() {
        let (rate, begun) = (Rate::new(1.0, 2), Instant::now());
        rate.take("tired", begun).unwrap();
        rate.take("tired", begun).unwrap();
        for n in 0..MAX_BUCKETS + 50 {
            rate.take(&n.to_string(), begun).unwrap();
        }
        assert!(rate.buckets.lock().unwrap().len() <= MAX_BUCKETS);
        assert!(rate.take("tired", begun).is_err(), "an empty bucket is remembered");
        rate.take("late", begun + Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn the_wait_is_told_in_whole_seconds_rounded_up() {
        for (wait, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (59_999, "60")] {
            let reply = too_many(Duration::from_millis(wait));
            assert_eq!(reply.headers()[header::RETRY_AFTER], seconds, "{wait} ms");
            assert_eq!(reply.status(), StatusCode::TOO_MANY_REQUESTS);
        }
    }
}
