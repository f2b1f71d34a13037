//! Keeps a claim alive behind a running attempt, and ends the attempt when it cannot. The lease in the
//! database ends by the wall clock; the worker measures by its own monotonic clock and stops at three
//! quarters, so it is silent before the database would give its job away.

use std::time::Duration;

use tracing::{info, warn};

use super::halt::{Halt, Reason};
use crate::clock::Clock;
use crate::jobs::Claim;
use crate::store::Status;

/// How soon a request to stop is seen.
const LOOK: Duration = Duration::from_secs(1);

/// Renews the lease each sixth of it, and looks for a request to stop each second, until the future is
/// dropped or the job is lost.
pub(crate) async fn keep(claim: &Claim, lease: Duration, clock: &Clock, halt: &Halt) {
    let mut renewed = clock.monotonic();
    loop {
        tokio::time::sleep(LOOK.min(lease / 6)).await;
        // Taken before the statement is sent: the lease runs from no later than this.
        let now = clock.monotonic();
        let due = now.duration_since(renewed) >= lease / 6;
        // A database that hangs must not hang the watch over the lease.
        let left = (lease * 3 / 4).saturating_sub(now.duration_since(renewed));
        let seen =
            tokio::time::timeout(left, async { if due { claim.renew().await } else { claim.status().await } }).await;
        match seen {
            Ok(Ok(Some(status))) => {
                if due {
                    renewed = now;
                }
                if status == Status::Stopping && halt.reason() < Some(Reason::Stop) {
                    info!(job.id = claim.job.spec.id, "asked to stop");
                    halt.raise(Reason::Stop);
                }
            }
            Ok(Ok(None)) => {
                warn!(job.id = claim.job.spec.id, job.attempt = claim.attempt(), "the job is no longer ours");
                return halt.raise(Reason::Lost);
            }
            Ok(Err(error)) => warn!(job.id = claim.job.spec.id, "the lease could not be renewed: {}", error.log()),
            Err(_) => {}
        }
        if clock.monotonic().duration_since(renewed) >= lease * 3 / 4 {
            warn!(job.id = claim.job.spec.id, job.attempt = claim.attempt(), "the lease is about to end: stopping");
            return halt.raise(Reason::Lost);
        }
    }
}
