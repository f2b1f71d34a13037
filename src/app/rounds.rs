//! What a process of the API looks at again and again beside answering, because other processes change it: how many
//! places provisioned throughput keeps, and which jobs whose checkpoints were asked have ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::{App, preview};

/// How often it is asked what is kept.
const UNITS: Duration = Duration::from_secs(1);
/// How often checkpoints are looked for that nobody can ask any more.
const SWEEP: Duration = Duration::from_secs(30);

/// Goes round until the process is told to stop.
pub async fn run(app: Arc<App>, mut stopping: watch::Receiver<bool>) {
    let (mut units, mut sweep) = (interval(UNITS), interval(SWEEP));
    units.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stopping.borrow() {
        tokio::select! {
            _ = units.tick() => app.units_changed().await,
            _ = sweep.tick() => preview::sweep(&app).await,
            _ = stopping.changed() => {}
        }
    }
}
