//! Retries while a dependency is away. An outage of the database or of object storage costs time and nothing else: the
//! work is repeated with growing pauses until it succeeds, the attempt must end, or the outage has lasted longer than
//! its bound. A full disk has a bound of its own, because waiting frees no space.

use std::time::Duration;

use tracing::warn;

use super::halt::{Halt, Reason};
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::fault_points;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long one piece of work may keep failing.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Because a dependency is away. Longer than any outage that somebody is at work to end.
    outage: Duration,
    /// Because a disk is full, here or behind the object store.
    full: Duration,
}

const BOUNDS: Bounds = Bounds { outage: Duration::from_secs(2 * 60 * 60), full: Duration::from_secs(30) };

/// Repeats `work` while it fails because something is unavailable. `work` may run any number of times, so it has to
/// begin where it began before, whatever became of the try before.
///
/// # Errors
/// Whatever else `work` fails with; its last error when the attempt was told to end meanwhile; an error that names the
/// outage when that has lasted two hours, or a full disk half a minute.
pub(crate) async fn retry_unavailable<T>(halt: &Halt, what: &str, work: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    retry_within(BOUNDS, halt, what, work).await
}

async fn retry_within<T>(
    bounds: Bounds,
    halt: &Halt,
    what: &str,
    mut work: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let clock = Clock::system();
    let begun = clock.monotonic();
    // When the disk was found full for the first time without anything else in between.
    let mut full_since = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = tokio::select! {
            outcome = fault_points::around(what, work()) => match outcome {
                Ok(value) => return Ok(value),
                Err(error) => error,
            },
            // What is under way may take minutes; a lost job must not be worked on that long.
            () = halt.reached(Reason::Stop) => return Err(Error::unavailable(anyhow::anyhow!("{what}: told to end"))),
        };
        if error.kind() != Kind::Unavailable {
            return Err(error);
        }
        let now = clock.monotonic();
        full_since = error.is_storage_full().then(|| full_since.unwrap_or(now));
        if full_since.is_some_and(|since| now.duration_since(since) >= bounds.full) {
            return Err(error.at(format!("{what} was given up")));
        }
        if now.duration_since(begun) >= bounds.outage {
            let hours = bounds.outage.as_secs_f64() / 3600.0;
            let message = format!("{what} failed for {hours:.1} hours: {}", error.message());
            return Err(Error::new(Kind::Unavailable, message).because(anyhow::anyhow!("{}", error.log())));
        }
        warn!(pause_ms = pause.as_millis() as u64, "{what} failed and will be tried again: {}", error.log());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = halt.reached(Reason::Drain) => return Err(error),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of Linux.
    const ENOSPC: i32 = 28;
    const EDQUOT: i32 = 122;

    #[tokio::test]
    async fn an_outage_costs_time_and_nothing_else() {
        let mut tries = 0;
        let outcome = retry_unavailable(&Halt::default(), "test", async || {
            tries += 1;
            if tries < 3 { Err(Error::unavailable(anyhow::anyhow!("away"))) } else { Ok(tries) }
        })
        .await;
        assert_eq!(outcome.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_permanent_error_is_reported_at_once() {
        let mut tries = 0;
        let outcome: Result<()> = retry_unavailable(&Halt::default(), "test", async || {
            tries += 1;
            Err(Error::validation("wrong"))
        })
        .await;
        assert_eq!((outcome.unwrap_err().kind(), tries), (Kind::Validation, 1));
    }

    #[tokio::test]
    async fn retrying_ends_when_the_attempt_does() {
        let halt = Halt::default();
        halt.raise(Reason::Drain);
        let outcome: Result<()> =
            retry_unavailable(&halt, "test", async || Err(Error::unavailable(anyhow::anyhow!("away")))).await;
        assert_eq!(outcome.unwrap_err().kind(), Kind::Unavailable);
    }

    #[tokio::test]
    async fn a_full_disk_ends_the_work_by_its_name_long_before_an_outage_would() {
        let bounds = Bounds { outage: Duration::from_secs(3600), full: Duration::from_millis(300) };
        for code in [ENOSPC, EDQUOT] {
            let mut tries = 0;
            let outcome: Result<()> = retry_within(bounds, &Halt::default(), "test", async || {
                tries += 1;
                let cause = std::io::Error::from_raw_os_error(code);
                Err(Error::new(Kind::Unavailable, "The disk has no space left").because(cause))
            })
            .await;
            let error = outcome.unwrap_err();
            assert!(error.is_storage_full() && error.message().contains("no space left"), "{}", error.log());
            assert!(tries > 1, "space that somebody frees at once costs no job");
        }
    }

    #[tokio::test]
    async fn a_disk_that_was_full_for_a_moment_does_not_shorten_the_wait_for_an_outage() {
        let bounds = Bounds { outage: Duration::from_secs(3600), full: Duration::from_millis(1) };
        let mut tries = 0;
        let outcome = retry_within(bounds, &Halt::default(), "test", async || {
            tries += 1;
            let away = Error::unavailable(anyhow::anyhow!("away"));
            match tries {
                1 | 3 => Err(Error::unavailable(std::io::Error::from_raw_os_error(ENOSPC))),
                2 | 4 => Err(away),
                _ => Ok(tries),
            }
        })
        .await;
        assert_eq!(outcome.unwrap(), 5);
    }

    #[tokio::test]
    async fn an_outage_without_end_ends_the_work_by_its_name() {
        let bounds = Bounds { outage: Duration::from_millis(300), full: Duration::from_secs(3600) };
        let outcome: Result<()> = retry_within(bounds, &Halt::default(), "uploading a file", async || {
            Err(Error::new(Kind::Unavailable, "Object storage is not answering"))
        })
        .await;
        let error = outcome.unwrap_err();
        let named = error.message().contains("uploading a file") && error.message().contains("not answering");
        assert!(named && error.kind() == Kind::Unavailable, "{error}");
    }
}
