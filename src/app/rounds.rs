//! What a process of the API looks at again and again beside answering, because other processes change it: how many
//! places provisioned throughput keeps, and which jobs whose checkpoints were asked have ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

use super::{App, artifact, preview};

/// How often it is asked what is kept.
const UNITS: Duration = Duration::from_secs(1);
/// How often checkpoints are looked for that nobody can ask any more.
const SWEEP: Duration = Duration::from_secs(30);

/// Goes round until the process is told to stop.
pub async fn run(app: Arc<App>, stopping: watch::Receiver<bool>) {
    let (mut units, mut sweeps) = (Turns::every(UNITS, &stopping), Turns::every(SWEEP, &stopping));
    let mut bounded = Turns::every(SWEEP, &stopping);
    let units = async {
        while units.next().await {
            app.units_changed().await;
        }
    };
    let sweeps = async {
        while sweeps.next().await {
            preview::sweep(&app).await;
            if let Err(error) = artifact::sweep(&app).await {
                warn!("fetched models that were deleted were not looked for: {}", error.log());
            }
        }
    };
    let bounds = async {
        while bounded.next().await {
            if let Err(error) = app.model_cache.sweep().await {
                warn!("the cache could not be swept: {}", error.log());
            }
        }
    };
    // Neither waits for the other.
    tokio::join!(units, sweeps, bounds);
}

/// Turns of one kind, until the process is told to stop.
struct Turns {
    interval: Interval,
    stopping: watch::Receiver<bool>,
}

impl Turns {
    fn every(period: Duration, stopping: &watch::Receiver<bool>) -> Self {
        let mut interval = interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, stopping: stopping.clone() }
    }

    /// Waits for the next; `false` when there is none any more.
    async fn next(&mut self) -> bool {
        tokio::select! {
            biased;
            // Told, or nobody is left to tell.
            _ = self.stopping.wait_for(|stop| *stop) => false,
            _ = self.interval.tick() => true,
        }
    }
}
