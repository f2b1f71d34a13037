//! What a process of the API looks at again and again beside answering, because other processes change it: how many
//! places provisioned throughput keeps, and which jobs whose checkpoints were asked have ended. And once answers have
//! been given, their memory goes back to the system.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

use super::{App, artifact, heap, preview};

/// How often it is asked what is kept.
const UNITS: Duration = Duration::from_secs(1);
/// How often checkpoints are looked for that nobody can ask any more.
const SWEEP: Duration = Duration::from_secs(30);
/// How often it is asked whether answers were given since, and none is under way.
const HEAP: Duration = Duration::from_secs(10);

/// Goes round until the process is told to stop.
pub async fn run(app: Arc<App>, stopping: watch::Receiver<bool>) {
    let (mut units, mut sweeps) = (Turns::every(UNITS, &stopping), Turns::every(SWEEP, &stopping));
    let mut bounded = Turns::every(SWEEP, &stopping);
    let mut heaps = Turns::every(HEAP, &stopping);
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
    let heaps = async {
        let mut given_back = app.door.admitted();
        while heaps.next().await {
            let admitted = app.door.admitted();
            if admitted != given_back && app.door.under_way() == 0 {
                given_back = admitted;
                // A panic there would be the allocator's.
                let _ = tokio::task::spawn_blocking(heap::give_back).await;
            }
        }
    };
    // None waits for another.
    tokio::join!(units, sweeps, bounds, heaps);
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
