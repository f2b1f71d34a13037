//! Makes deployments ready: the model's files are brought and checked against their digests, and the model is loaded,
//! before a deployment is Active or its update is done. What is not ready yet stands in the database, so that whatever
//! process comes up goes on with it; several may do the same work at once, and the first to end writes it down.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::{self, JoinSet};
use tracing::{error, info, warn};

use super::App;
use super::models::{self, Found};
use crate::error::{Error, Kind, Result};
use crate::store::custom_models;
use crate::store::deployments::{self, Deployment, Outcome};

/// How often it is looked for deployments that another process accepted, and for those to be tried again.
const POLL: Duration = Duration::from_secs(1);
/// So many are made ready at once: each may bring files of gigabytes and load a base.
const AT_ONCE: usize = 4;
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
                    return;
                }
            }
        }
    }
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
async fn settle(app: &App, deployment: &Deployment, at_once: &Semaphore, stopping: watch::Receiver<bool>) {
    let (id, model) = (&deployment.id, deployment.wanted_model());
    let made = {
        let _turn = at_once.acquire().await;
        ready(app, &deployment.account_id, model).await
    };
    let outcome = match made {
        Ok(()) => Outcome::Ready,
        // The process ends: how it would have ended is not known.
        Err(_) if *stopping.borrow() => return,
        Err(error) if error.kind() == Kind::Unavailable => {
            warn!(deployment.id = id, "the model cannot be loaded and is tried again in {POLL:?}: {}", error.log());
            return tokio::time::sleep(POLL).await;
        }
        Err(error) => {
            error!(deployment.id = id, model.arn = model, "the model cannot be served: {}", error.log());
            Outcome::Failed(failure(&error, id))
        }
    };
    match deployments::settle(&app.db, deployment, &outcome, app.clock.now()).await {
        Ok(true) => info!(deployment.id = id, model.arn = model, "deployment {}", outcome.word()),
        // Another process was faster, or another model is wanted by now.
        Ok(false) => {}
        Err(error) => warn!(deployment.id = id, "how it ended was not written down: {}", error.log()),
    }
}

async fn ready(app: &App, account: &str, model: &str) -> Result<()> {
    let found = custom_models::find(&app.db, account, model).await?;
    let found = found.ok_or_else(|| Error::not_found(format!("The custom model {model} was deleted")))?;
    let target = models::target(app, &Found::Custom(Box::new(found))).await?;
    let engine = Arc::clone(&app.engine);
    // Without waiting for room, which would hold up deployments that need none: it is tried again.
    let full = || Err(Error::unavailable(anyhow::anyhow!("answers under way hold all memory for models")));
    tokio::task::spawn_blocking(move || engine.load(&target, &full)).await.map_err(Error::internal)?
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
    fn the_owner_learns_what_can_be_mended_and_nothing_else() {
        assert_eq!(failure(&Error::validation("put it back"), "d"), "put it back");
        let secret = failure(&Error::internal(anyhow::anyhow!("password")), "abc");
        assert!(secret.contains("abc") && !secret.contains("password"));
        assert_eq!(failure(&Error::validation("ä".repeat(3000)), "d").chars().count(), 2048);
    }
}
