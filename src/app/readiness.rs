//! Readiness: whether the database answers, the object store answers, and every supervised part runs. It is asked by
//! strangers through `/readyz`, so it names parts and says nothing else, and looks at most once a second.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::Mutex;
use tracing::warn;

use super::App;
use crate::error::{Error, Kind, Result};

/// A report of this age is given again.
const FRESH: Duration = Duration::from_secs(1);
/// A dependency that has not answered by then is away.
const PATIENCE: Duration = Duration::from_secs(2);

/// The last report.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<Option<(Instant, Report)>>);

/// What `/readyz` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether every part is ready.
    pub ready: bool,
    /// The parts, dependencies first.
    pub parts: Vec<PartReport>,
}

/// One part of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartReport {
    /// `database`, `object store`, or a supervised part.
    pub name: String,
    /// Whether it is there.
    pub ready: bool,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// How often it was restarted.
    #[serde(skip_serializing_if = "is_zero")]
    pub restarts: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Readiness {
    /// The state of every part, not older than a second.
    pub async fn report(&self, app: &App) -> Report {
        // Whoever comes while somebody looks waits for the same look.
        let mut last = self.0.lock().await;
        if let Some((at, report)) = &*last
            && app.clock.monotonic().duration_since(*at) < FRESH
        {
            return report.clone();
        }
        let report = look(app).await;
        *last = Some((app.clock.monotonic(), report.clone()));
        report
    }
}

async fn look(app: &App) -> Report {
    let (database, objects) = tokio::join!(within(app.db.ping()), within(app.objects.reach()));
    let mut parts = vec![dependency("database", database), dependency("object store", objects)];
    parts.extend(app.parts.list().into_iter().map(|part| PartReport {
        ready: part.running,
        reason: (!part.running).then_some("ended unexpectedly and is started again: see the log"),
        name: part.name,
        restarts: part.restarts,
    }));
    Report { ready: parts.iter().all(|part| part.ready), parts }
}

async fn within(look: impl Future<Output = Result<()>>) -> Result<()> {
    answered_within(PATIENCE, look).await
}

/// What a dependency answers, or `Unavailable` when it takes longer than `limit`.
pub async fn answered_within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::unavailable(anyhow::anyhow!("no answer within {limit:?}"));
    tokio::time::timeout(limit, work).await.map_err(late)?
}

fn dependency(name: &str, found: Result<()>) -> PartReport {
    let reason = found.as_ref().err().map(|error| match error.kind() {
        Kind::AccessDenied => "refuses this service's credentials",
        _ => "does not answer",
    });
    if let Err(error) = &found {
        warn!(part = name, "not ready: {}", error.log());
    }
    PartReport { name: name.to_string(), ready: found.is_ok(), reason, restarts: 0 }
}
