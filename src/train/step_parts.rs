//! Where the time of a step goes.

use std::time::Instant;

use crate::clock::Clock;

/// Seconds that the parts of a step took; of micro-batches side by side, all of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepParts {
    /// The layers forward.
    pub forward: f64,
    /// The final norm and the output head, forward and backward.
    pub head: f64,
    /// The layers backward, run again where their graphs were not kept.
    pub backward: f64,
    /// Adding up, clipping and the optimizer.
    pub optimizer: f64,
}

impl std::ops::AddAssign for StepParts {
    fn add_assign(&mut self, other: Self) {
        self.forward += other.forward;
        self.head += other.head;
        self.backward += other.backward;
        self.optimizer += other.optimizer;
    }
}

/// Measures one part after another.
pub(super) struct Laps {
    clock: Clock,
    began: Instant,
}

impl Laps {
    /// From now on.
    pub(super) fn begin() -> Self {
        let clock = Clock::system();
        Self { began: clock.monotonic(), clock }
    }

    /// Seconds since the beginning or the last lap.
    pub(super) fn lap(&mut self) -> f64 {
        let now = self.clock.monotonic();
        now.duration_since(std::mem::replace(&mut self.began, now)).as_secs_f64()
    }
}
