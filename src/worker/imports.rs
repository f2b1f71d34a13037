//! Brings in models that were made elsewhere. The files stay in their owner's bucket: they are read
//! once, checked whole (every weight in its shape and finite, the tokenizer fitting) by a process of its own, and
//! remembered by their digests, so that only what was checked is ever served.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, info, warn};

use super::Worker;
use super::halt::{Halt, Reason};
use super::import_files::Files;
use super::inspection::inspect;
use super::lease::Outage;
use super::retry::retry_unavailable;
use super::run::{failure, persist};
use crate::artifacts::{Received, Verdict};
use crate::error::{Error, Result};
use crate::objects::Uri;
use crate::store::imported_models::ImportedModel;
use crate::store::imports::{self, Import};
use crate::store::{ImportKind, Json};

/// How often a free importer asks for work.
const POLL: Duration = Duration::from_millis(500);

const WORN_OUT: &str = "The worker that had the model disappeared each time it was tried: its process was killed, its \
    machine stopped or it froze. If it was killed while it checked the model, the reason may be memory: use a machine \
    with more. The service's log says more. Then try again.";

/// What was found in a folder.
struct Found {
    digests: BTreeMap<String, String>,
    /// `None`: it is an adapter.
    whole: Option<Received>,
}

/// Works on requests, one at a time, until the process drains.
pub(super) async fn bring_in(worker: &Worker, mut draining: watch::Receiver<bool>) {
    while !*draining.borrow() {
        let queue = &worker.queue;
        let claimed = imports::claim(&worker.app.db, &worker.presence.worker, queue.lease_ms(), queue.time()).await;
        match queue.heard(claimed) {
            Ok(Some(import)) => {
                attempt(worker, &import, &mut draining).await;
                continue;
            }
            Ok(None) => {}
            Err(error) => warn!("no import could be claimed: {}", error.log()),
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = worker.app.job_accepted.notified() => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
    }
}

async fn attempt(worker: &Worker, import: &Import, draining: &mut watch::Receiver<bool>) {
    // What ends the patience of a last write.
    let halt = Halt::default();
    info!(model.arn = import.model_arn, import.attempt, "import begun");
    let dir = worker.presence.work_dir.join(format!("import-{}-{}", import.id, import.attempt));
    let outcome = tokio::select! {
        outcome = work(worker, import, &dir) => Some(outcome),
        () = keep(worker, import) => {
            info!(model.arn = import.model_arn, "the import is no longer ours");
            None
        }
        _ = draining.wait_for(|draining| *draining) => {
            halt.raise(Reason::Drain);
            let release = async || imports::release(&worker.app.db, import).await;
            persist(worker, &halt, "giving an import back", release).await;
            None
        }
    };
    if let Some(outcome) = outcome {
        tokio::select! {
            () = settle(worker, import, &halt, outcome) => {}
            // Renewed until the end is written; an import that is another's is found out by that write.
            () = async { keep(worker, import).await; std::future::pending().await } => {}
            () = async {
                // An error means that the pool was dropped: the same as a drain.
                let _ = draining.wait_for(|draining| *draining).await;
                halt.raise(Reason::Drain);
                std::future::pending::<()>().await;
            } => {}
        }
    }
    if let Err(cause) = std::fs::remove_dir_all(&dir)
        && dir.exists()
    {
        warn!(model.arn = import.model_arn, "the work folder stays until the next start: {cause}");
    }
}

/// Ends when the request is no longer this worker's. An outage of the database ends nothing: see [`super::lease`].
async fn keep(worker: &Worker, import: &Import) {
    let mut outage = Outage::new(&worker.app.clock, format!("import of {}", import.model_arn));
    let lease = worker.queue.lease();
    loop {
        tokio::time::sleep(if outage.is_on() { lease / 30 } else { lease / 6 }).await;
        let at = worker.app.clock.database();
        match imports::renew(&worker.app.db, import, worker.queue.lease_ms(), at).await {
            Ok(true) => outage.over(),
            Ok(false) => return,
            Err(error) => outage.goes_on(&error),
        }
    }
}

async fn settle(worker: &Worker, import: &Import, halt: &Halt, outcome: Result<(Uri, Found)>) {
    let db = &worker.app.db;
    let now = worker.app.clock.now();
    let ended = match outcome {
        Ok((source, Found { digests, whole })) => {
            let model = whole.map(|whole| imported_model(import, &source, digests.clone(), whole, now));
            persist(worker, halt, "completing an import", async || match (import.kind, &model) {
                (ImportKind::ImportedModel, Some(model)) => imports::complete_job(db, import, model).await,
                _ => imports::complete_model(db, import, &digests, now).await,
            })
            .await
        }
        Err(error) => {
            error!(model.arn = import.model_arn, "import failed: {}", error.log());
            let message = failure(&error, &import.id);
            persist(worker, halt, "failing an import", async || imports::fail(db, import, &message, now).await).await
        }
    };
    match ended {
        Some(true) => info!(model.arn = import.model_arn, "import ended"),
        Some(false) => info!(model.arn = import.model_arn, "the import was no longer ours"),
        None => warn!(model.arn = import.model_arn, "the end was not written; another attempt will follow"),
    }
}

fn imported_model(
    import: &Import,
    source: &Uri,
    digests: BTreeMap<String, String>,
    whole: Received,
    now: i64,
) -> ImportedModel {
    ImportedModel {
        id: import.model_id.clone(),
        account_id: import.account_id.clone(),
        arn: import.model_arn.clone(),
        name: import.model_name.clone(),
        job_arn: import.arn.clone().unwrap_or_default(),
        job_name: import.name.clone().unwrap_or_default(),
        source: import.source.clone(),
        kms_key_arn: import.kms_key_arn.clone(),
        architecture: whole.architecture,
        instruct_supported: whole.chat,
        artifact_uri: source.to_string(),
        artifact_digests: Json(digests),
        creation_time: now,
    }
}

/// Downloads and checks a model; gives its folder in S3 and what is in it.
async fn work(worker: &Worker, import: &Import, dir: &Path) -> Result<(Uri, Found)> {
    if import.strikes >= imports::STRIKE_LIMIT {
        return Err(Error::validation(WORN_OUT));
    }
    let uri = import.source_uri().ok_or_else(|| Error::validation("the source's s3DataSource.s3Uri is missing"))?;
    let source = Uri::parse(uri.trim_end_matches('/'))?;
    let base = base(worker, import)?;
    let objects = &worker.app.objects_of(&import.account_id);
    let halt = Halt::default();
    let files = Files::find(objects, &halt, &source, import.kind == ImportKind::CustomModel).await?;
    tokio::fs::create_dir_all(dir).await?;
    let digests = files.fetch(objects, &halt, dir).await?;
    let base = match (files.adapter, base) {
        (true, None) => return Err(Error::validation("the adapter's base is unknown")),
        (adapter, base) => base.filter(|_| adapter),
    };
    // From here on a death may be the model's doing.
    if !retry_unavailable(&halt, "beginning a check", async || imports::begin_check(&worker.app.db, import).await)
        .await?
    {
        return Err(Error::unavailable(anyhow::anyhow!("the import is no longer ours")));
    }
    let settings = &worker.app.config.inspection;
    let inspecting = async || inspect(settings, dir, base.as_deref(), files.bytes).await;
    let verdict = retry_unavailable(&halt, "inspecting a model", inspecting).await;
    let verdict = verdict.map_err(|error| files.placed(error))?;
    let whole = if let Verdict::Model(received) = verdict { Some(received) } else { None };
    Ok((source, Found { digests, whole }))
}

/// The directory of the foundation model that a custom model stands on, if it is one that is here.
fn base(worker: &Worker, import: &Import) -> Result<Option<PathBuf>> {
    let Some(id) = import.source.get("baseModelId").and_then(serde_json::Value::as_str) else { return Ok(None) };
    match worker.app.registry.get(id) {
        Some(base) => Ok(Some(base.dir.clone())),
        None => Err(Error::validation(format!(
            "The worker that took this model does not have the base model {id}. Put its directory into the folder that \
             TUNESMITH_MODELS names on every worker, then try again."
        ))),
    }
}
