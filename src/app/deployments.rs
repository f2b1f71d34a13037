//! Makes deployments ready: the model's files are brought and checked against their digests, and the model is loaded,
//! before a deployment is Active or its update is done. What is not ready yet stands in the database, so that whatever
//! process comes up goes on with it. An attempt is counted before it begins: a model whose loading ends the process time
//! and again fails by name, and so does one that a dependency keeps waiting for a day.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::{self, JoinSet};
use tracing::{error, info, warn};

use super::App;
use super::artifact::For;
use super::models::{self, Found, Served};
use crate::error::{Error, Kind, Result};
use crate::store::custom_models;
use crate::store::deployments::{self, Attempt, Deployment, Outcome};

/// How often it is looked for deployments that another process accepted, and for those to be tried again.
const POLL: Duration = Duration::from_secs(1);
/// So many are made ready at once: each may bring files of gigabytes and load a base.
const AT_ONCE: usize = 4;
/// Attempts that may end with their process.
const STRIKES: i64 = 3;
/// Outage tolerance: time that a dependency may be away.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest time between two attempts while a dependency is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long attempts are given to be handed back when the process ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// A `failureMessage` holds at most this many characters.
const MESSAGE: usize = 2048;

/// Makes deployments ready until the process is told to stop; what is under way then is left to the next process.
pub async fn make_ready(app: Arc<App>, mut stopping: watch::Receiver<bool>) {
    let mut under_way = JoinSet::new();
    let mut taken: HashMap<task::Id, Wanted> = HashMap::new();
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    while !*stopping.borrow() {
        match deployments::unready(&app.db).await {
            Ok(waiting) => {
                for deployment in waiting {
                    let wanted = Wanted::of(&deployment);
                    if taken.values().any(|taken| *taken == wanted) {
                        continue;
                    }
                    let (app, at_once, stopping) = (Arc::clone(&app), Arc::clone(&at_once), stopping.clone());
                    let task = under_way.spawn(async move { settle(&app, &deployment, &at_once, stopping).await });
                    taken.insert(task.id(), wanted);
                }
            }
            Err(error) => warn!("deployments could not be looked for: {}", error.log()),
        }
        tokio::select! {
            Some(ended) = under_way.join_next_with_id() => match ended {
                Ok((id, ())) => drop(taken.remove(&id)),
                Err(panic) => {
                    error!("a deployment could not be made ready, which is tried again: {panic}");
                    taken.remove(&panic.id());
                }
            },
            () = app.deployment_accepted.notified() => {}
            () = tokio::time::sleep(POLL) => {}
            told = stopping.changed() => {
                if told.is_err() {
                    break;
                }
            }
        }
    }
    let handed_back = async { while under_way.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FAREWELL, handed_back).await;
}

/// A deployment and the model that is to answer there.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    deployment: String,
    model: String,
}

impl Wanted {
    fn of(deployment: &Deployment) -> Self {
        Self { deployment: deployment.id.clone(), model: deployment.wanted_model().to_string() }
    }
}

/// Makes one ready and writes down how that ended.
async fn settle(app: &App, deployment: &Deployment, at_once: &Semaphore, mut stopping: watch::Receiver<bool>) {
    let pause = match attempt(app, deployment, at_once, &mut stopping).await {
        Ok(pause) => pause,
        Err(error) => {
            warn!(deployment.id = deployment.id, "it is tried again in {POLL:?}: {}", error.log());
            POLL
        }
    };
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
}

/// Makes one attempt; gives the pause before it is looked at again.
async fn attempt(
    app: &App,
    deployment: &Deployment,
    at_once: &Semaphore,
    stopping: &mut watch::Receiver<bool>,
) -> Result<Duration> {
    let (db, id, model) = (&app.db, &deployment.id, deployment.wanted_model());
    // One that an attempt was broken off of is loaded alone: if the process ends again, it is known of whom.
    let turns = if deployments::strikes(db, deployment, app.clock.database()).await? > 0 { AT_ONCE as u32 } else { 1 };
    let _turn = tokio::select! {
        turn = at_once.acquire_many(turns) => turn,
        _ = stopping.wait_for(|stopping| *stopping) => return Ok(Duration::ZERO),
    };
    let begun = deployments::begin(db, deployment, lease_ms(app), app.clock.database()).await?;
    let Some(attempt) = begun else { return Ok(POLL) };
    let write = |last| persist(app, deployment, attempt, last, stopping.clone());
    let outcome = if attempt.strikes > STRIKES {
        error!(deployment.id = id, model.arn = model, "{STRIKES} attempts to load the model ended with the process");
        Outcome::Failed(format!(
            "The service ended unexpectedly each of the {STRIKES} times that the model was loaded. The usual reason is \
             memory; look for deployment id {id} in the log of the service. Then delete the deployment and create it again."
        ))
    } else {
        let made = {
            let mut told = stopping.clone();
            tokio::select! {
                made = ready(app, &deployment.account_id, model) => Some(made),
                () = keep(app, deployment, &attempt) => return Ok(POLL),
                _ = told.wait_for(|stopping| *stopping) => None,
            }
        };
        match made {
            // The process ends: how it would have ended is not known.
            None => {
                write(Last::GivenBack(None)).await;
                return Ok(Duration::ZERO);
            }
            Some(Ok(())) => Outcome::Ready,
            Some(Err(error)) if error.kind() == Kind::Unavailable => {
                let now = app.clock.now();
                let waited = now.saturating_sub(attempt.failing_since.unwrap_or(now));
                let waited = Duration::from_millis(u64::try_from(waited).unwrap_or_default());
                if let Some(pause) = pause(waited) {
                    warn!(deployment.id = id, "the model cannot be loaded, tried again in {pause:?}: {}", error.log());
                    write(Last::GivenBack(Some(now))).await;
                    return Ok(pause);
                }
                error!(deployment.id = id, model.arn = model, "given up: {}", error.log());
                Outcome::Failed(format!(
                    "The model could not be loaded for {} hours: its files could not be read, or there was no memory for \
                     it. Look for deployment id {id} in the log of the service. Then delete the deployment and create it \
                     again.",
                    PATIENCE.as_secs() / 3600
                ))
            }
            Some(Err(error)) => {
                error!(deployment.id = id, model.arn = model, "the model cannot be served: {}", error.log());
                Outcome::Failed(failure(&error, id))
            }
        }
    };
    let word = outcome.word();
    // Otherwise another model is wanted by now.
    if write(Last::Decided(outcome)).await {
        info!(deployment.id = id, model.arn = model, "deployment {word}");
    }
    Ok(Duration::ZERO)
}

/// The pause before the next attempt when a dependency has been away for so long; `None`: long enough.
fn pause(away: Duration) -> Option<Duration> {
    (away < PATIENCE).then(|| (away / 4).clamp(POLL, LONGEST_PAUSE))
}

fn lease_ms(app: &App) -> i64 {
    i64::try_from(app.config.lease().as_millis()).unwrap_or(i64::MAX / 2)
}

/// Ends when the attempt is no longer this process's.
async fn keep(app: &App, deployment: &Deployment, attempt: &Attempt) {
    loop {
        tokio::time::sleep(app.config.lease() / 6).await;
        match deployments::renew(&app.db, deployment, attempt, lease_ms(app), app.clock.database()).await {
            Ok(true) => {}
            Ok(false) => return,
            // Others see the attempt as broken off when its time is over, and this one sees that they do.
            Err(error) => warn!(deployment.id = deployment.id, "the attempt was not renewed: {}", error.log()),
        }
    }
}

/// The last write of an attempt.
enum Last {
    /// It decided nothing; the time is that at which a dependency was found to be away.
    GivenBack(Option<i64>),
    Decided(Outcome),
}

/// Repeats the last write until the database takes it; once when the process ends.
async fn persist(
    app: &App,
    deployment: &Deployment,
    attempt: Attempt,
    last: Last,
    stopping: watch::Receiver<bool>,
) -> bool {
    loop {
        let written = match &last {
            Last::GivenBack(away) => deployments::give_back(&app.db, deployment, &attempt, *away).await,
            Last::Decided(outcome) => deployments::settle(&app.db, deployment, outcome, app.clock.now()).await,
        };
        match written {
            Ok(held) => return held,
            Err(error) => {
                warn!(deployment.id = deployment.id, "how it ended is written again in {POLL:?}: {}", error.log());
            }
        }
        if *stopping.borrow() {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ready(app: &App, account: &str, model: &str) -> Result<()> {
    let found = custom_models::find(&app.db, account, model).await?;
    let found = found.ok_or_else(|| Error::not_found(format!("The custom model {model} was deleted")))?;
    let found = Found::Custom(Box::new(found));
    let Served { target, in_use } = models::target(app, &found, For::Job).await?;
    let (engine, wanted) = (Arc::clone(&app.engine), target.clone());
    // Without waiting for room, which would hold up deployments that need none: it is tried again.
    let full = || Err(Error::unavailable(anyhow::anyhow!("answers under way hold all memory for models")));
    let loaded = tokio::task::spawn_blocking(move || engine.load(&wanted, &full)).await.map_err(Error::internal)?;
    drop(in_use);
    loaded
}

/// What the owner of a deployment is told.
fn failure(error: &Error, id: &str) -> String {
    let message = match error.kind() {
        Kind::Internal => format!(
            "Encountered an unexpected error when the model was loaded, please try again. Look for deployment id {id} in \
             the log of the service for the cause."
        ),
        _ => error.message().to_string(),
    };
    message.chars().take(MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_that_is_away_is_asked_less_and_less_often_and_not_for_ever() {
        let seconds = |seconds| pause(Duration::from_secs(seconds)).map(|pause| pause.as_secs());
        assert_eq!([0, 1, 40, 3600, 86_399].map(seconds), [1, 1, 10, 60, 60].map(Some));
        assert_eq!(seconds(86_400), None);
    }

    #[test]
    fn the_owner_learns_what_can_be_mended_and_nothing_else() {
        assert_eq!(failure(&Error::validation("put it back"), "d"), "put it back");
        let secret = failure(&Error::internal(anyhow::anyhow!("password")), "abc");
        assert!(secret.contains("abc") && !secret.contains("password"));
        assert_eq!(failure(&Error::validation("ä".repeat(3000)), "d").chars().count(), 2048);
    }
}
