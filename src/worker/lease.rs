//! Keeps a claim alive behind a running attempt, and ends the attempt when another one has taken its job.
//!
//! An outage of the database ends nothing. Renewal is by attempt: a lease that ran out meanwhile is renewed if
//! nobody else claimed the job, and then nothing was lost. If somebody did, the renewal finds no row, and until it
//! could be asked the attempt did no harm: its statements name its attempt, its objects lie under its attempt, and
//! both are nobody else's.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::halt::{Halt, Reason};
use crate::clock::Clock;
use crate::error::Error;
use crate::jobs::Claim;
use crate::store::Status;

/// How soon a request to stop is seen.
const LOOK: Duration = Duration::from_secs(1);

/// Renews the lease each sixth of it, and looks for a request to stop each second, until the future is
/// dropped or the job is lost.
pub(crate) async fn keep(claim: &Claim, lease: Duration, clock: &Clock, halt: &Halt) {
    let mut outage = Outage::new(clock, format!("job {}", claim.job.spec.id));
    let mut renewed = clock.monotonic();
    loop {
        tokio::time::sleep(LOOK.min(lease / 6)).await;
        // Taken before the statement is sent: the lease runs from no later than this.
        let now = clock.monotonic();
        // After an outage the first word is a renewal, so that the lease is there again.
        let due = outage.is_on() || now.duration_since(renewed) >= lease / 6;
        let asked = async { if due { claim.renew().await } else { claim.status().await } };
        match asked.await {
            Ok(Some(status)) => {
                outage.over();
                if due {
                    renewed = now;
                }
                if status == Status::Stopping && halt.reason() < Some(Reason::Stop) {
                    info!(job.id = claim.job.spec.id, "asked to stop");
                    halt.raise(Reason::Stop);
                }
            }
            Ok(None) => {
                warn!(job.id = claim.job.spec.id, job.attempt = claim.attempt(), "the job is no longer ours");
                return halt.raise(Reason::Lost);
            }
            Err(error) => outage.goes_on(&error),
        }
    }
}

/// An outage of the database behind a running attempt, told once when it begins and once when it is over.
pub(crate) struct Outage<'a> {
    clock: &'a Clock,
    what: String,
    since: Option<Instant>,
}

impl<'a> Outage<'a> {
    /// None so far, for the work named `what`.
    pub(crate) fn new(clock: &'a Clock, what: String) -> Self {
        Self { clock, what, since: None }
    }

    /// Whether the last statement failed.
    pub(crate) fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// A statement failed.
    pub(crate) fn goes_on(&mut self, error: &Error) {
        if self.since.is_none() {
            self.since = Some(self.clock.monotonic());
            let cause = error.log();
            warn!(
                "{}: the lease could not be renewed; the work goes on and it will be tried again: {cause}",
                self.what
            );
        }
    }

    /// A statement was answered.
    pub(crate) fn over(&mut self) {
        if let Some(since) = self.since.take() {
            let seconds = self.clock.monotonic().duration_since(since).as_secs();
            info!("{}: the lease is renewed after {seconds} s without the database", self.what);
        }
    }
}
