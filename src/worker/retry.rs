//! Patience with dependencies that are away. An outage of the database or of S3 costs time and nothing
//! else: the work is repeated, with growing pauses, until it succeeds or the attempt must end.

use std::time::Duration;

use tracing::warn;

use super::halt::{Halt, Reason};
use crate::error::{Error, Kind, Result};
use crate::fault_points;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Repeats `work` while it fails because something is unavailable.
///
/// # Errors
/// Whatever else `work` fails with; or its last error when the attempt was told to end meanwhile.
pub(crate) async fn patiently<T>(halt: &Halt, what: &str, mut work: impl AsyncFnMut() -> Result<T>) -> Result<T> {
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
        if !matches!(error.kind(), Kind::Unavailable | Kind::Throttling) {
            return Err(error);
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

    #[tokio::test]
    async fn an_outage_costs_time_and_nothing_else() {
        let mut tries = 0;
        let outcome = patiently(&Halt::default(), "test", async || {
            tries += 1;
            if tries < 3 { Err(Error::unavailable(anyhow::anyhow!("away"))) } else { Ok(tries) }
        })
        .await;
        assert_eq!(outcome.unwrap(), 3);
    }

    #[tokio::test]
    async fn what_patience_cannot_mend_is_reported_at_once() {
        let mut tries = 0;
        let outcome: Result<()> = patiently(&Halt::default(), "test", async || {
            tries += 1;
            Err(Error::validation("wrong"))
        })
        .await;
        assert_eq!((outcome.unwrap_err().kind(), tries), (Kind::Validation, 1));
    }

    #[tokio::test]
    async fn patience_ends_when_the_attempt_does() {
        let halt = Halt::default();
        halt.raise(Reason::Drain);
        let outcome: Result<()> =
            patiently(&halt, "test", async || Err(Error::unavailable(anyhow::anyhow!("away")))).await;
        assert_eq!(outcome.unwrap_err().kind(), Kind::Unavailable);
    }
}
