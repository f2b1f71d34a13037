//! Why a running attempt should end early. A request to stop, a draining process and a lost lease all
//! reach the trainer as the one [`StopFlag`]; what is done afterwards depends on the reason, and the
//! gravest one counts: a lost job is left alone even if the process is draining too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use crate::train::StopFlag;

/// Why, from the mildest to the gravest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// The process is going away: keep a checkpoint, give the job back.
    Drain = 1,
    /// The job's owner wants it stopped: no model comes out.
    Stop = 2,
    /// The job is not ours any more: touch nothing.
    Lost = 3,
}

/// The one flag of an attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Halt {
    flag: StopFlag,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    reason: AtomicU8,
    raised: Notify,
}

impl Halt {
    /// Asks the attempt to end.
    pub(crate) fn raise(&self, reason: Reason) {
        self.shared.reason.fetch_max(reason as u8, Ordering::SeqCst);
        self.flag.raise();
        self.shared.raised.notify_waiters();
    }

    /// The gravest reason so far.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self.shared.reason.load(Ordering::SeqCst) {
            1 => Some(Reason::Drain),
            2 => Some(Reason::Stop),
            3 => Some(Reason::Lost),
            _ => None,
        }
    }

    /// What the trainer looks at.
    pub(crate) fn flag(&self) -> &StopFlag {
        &self.flag
    }

    /// Ends once a reason of at least this gravity is there.
    pub(crate) async fn reached(&self, gravity: Reason) {
        loop {
            let raised = self.shared.raised.notified();
            tokio::pin!(raised);
            // Registered before looking, so that a raise in between is not missed.
            raised.as_mut().enable();
            if self.reason() >= Some(gravity) {
                return;
            }
            raised.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_gravest_reason_counts_and_wakes_who_waits_for_it() {
        let halt = Halt::default();
        assert_eq!(halt.reason(), None);
        let waiting = tokio::spawn({
            let halt = halt.clone();
            async move { halt.reached(Reason::Stop).await }
        });
        halt.raise(Reason::Drain);
        assert!(halt.flag().is_raised());
        halt.raise(Reason::Lost);
        halt.raise(Reason::Stop);
        waiting.await.unwrap();
        assert_eq!(halt.reason(), Some(Reason::Lost));
    }
}
