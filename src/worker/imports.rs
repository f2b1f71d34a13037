//! Brings in models that were made elsewhere. The files stay in their owner's bucket: they are read
//! once, checked whole (every weight in its shape and finite, the tokenizer fitting), and remembered by
//! their digests, so that only what was checked is ever served.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, info, warn};

use super::Worker;
use super::halt::{Halt, Reason};
use super::lease::Outage;
use super::retry::retry_unavailable;
use super::run::{failure, persist};
use crate::artifacts::{QUANTIZATION, Received, WEIGHT_FILES, check_adapter, check_model};
use crate::error::{Error, Result};
use crate::objects::{Listed, Objects, Uri};
use crate::store::imported_models::ImportedModel;
use crate::store::imports::{self, Import};
use crate::store::{ImportKind, Json};

/// How often a free importer asks for work.
const POLL: Duration = Duration::from_millis(500);
/// More objects than any model consists of.
const MOST_OBJECTS: usize = 10_000;
/// The most bytes of a model (AWS, "Import a customized model").
const MOST_BYTES: u64 = 200 << 30;

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
        let (clock, lease_ms) = (&worker.app.clock, worker.queue.lease_ms());
        match imports::claim(&worker.app.db, &worker.presence.worker, lease_ms, clock.database()).await {
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
    let listed = retry_unavailable(&halt, "listing a model", async || list(objects, &source).await).await?;
    let names: Vec<&str> = listed.iter().map(|object| object.uri.name()).collect();
    let adapter = import.kind == ImportKind::CustomModel && names.contains(&"adapter_config.json");
    let wanted: Vec<&Listed> = listed.iter().filter(|object| wanted(object.uri.name(), adapter)).collect();
    refuse_what_is_no_model(&source, &names, adapter)?;
    let bytes: u64 = wanted.iter().map(|object| object.size).sum();
    if bytes > MOST_BYTES {
        return Err(Error::validation(format!("The model in {source} has {bytes} bytes; {MOST_BYTES} are the most")));
    }

    tokio::fs::create_dir_all(dir).await?;
    let mut digests = BTreeMap::new();
    for object in wanted {
        let path = dir.join(object.uri.name());
        let fetched =
            retry_unavailable(&halt, "downloading a model", async || objects.get_to_file(&object.uri, &path).await)
                .await?;
        digests.insert(object.uri.name().to_string(), fetched.sha256);
    }
    // From here on a death may be the model's doing.
    if !retry_unavailable(&halt, "beginning a check", async || imports::begin_check(&worker.app.db, import).await)
        .await?
    {
        return Err(Error::unavailable(anyhow::anyhow!("the import is no longer ours")));
    }
    let (folder, place) = (dir.to_path_buf(), source.to_string());
    let check = move || {
        let whole = match adapter {
            true => check_adapter(&folder, &base.ok_or_else(|| Error::validation("the adapter's base is unknown"))?)
                .map(|()| None),
            false => check_model(&folder).map(Some),
        };
        // Its owner knows the folder by its place in S3.
        whole.map_err(|error| Error::new(error.kind(), error.message().replace(&*folder.to_string_lossy(), &place)))
    };
    let whole = tokio::task::spawn_blocking(check).await.map_err(Error::internal)??;
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

/// The objects directly in the folder.
async fn list(objects: &Objects, source: &Uri) -> Result<Vec<Listed>> {
    let folder = source.folder();
    let mut pages = objects.list(&folder);
    let (mut seen, mut found) = (0, Vec::new());
    while let Some(page) = pages.next().await? {
        seen += page.len();
        if seen > MOST_OBJECTS {
            return Err(Error::validation(format!(
                "{source} holds more than {MOST_OBJECTS} objects: give the folder of one model"
            )));
        }
        let direct = |object: &Listed| {
            let below = object.uri.key().strip_prefix(folder.key());
            below.is_some_and(|name| !matches!(name, "" | "." | "..") && !name.contains('/'))
        };
        found.extend(page.into_iter().filter(direct));
    }
    Ok(found)
}

/// Whether a file of this name belongs to a model (or an adapter) as it is served.
fn wanted(name: &str, adapter: bool) -> bool {
    if adapter {
        return name == "adapter_config.json" || name == QUANTIZATION || WEIGHT_FILES.contains(&name);
    }
    let weights = name.starts_with("model") && name.ends_with(".safetensors");
    weights
        || matches!(
            name,
            "config.json"
                | "generation_config.json"
                | "model.safetensors.index.json"
                | "tokenizer.json"
                | "tokenizer_config.json"
                | "special_tokens_map.json"
                | "chat_template.jinja"
        )
}

/// Says what is missing before anything large is downloaded.
fn refuse_what_is_no_model(source: &Uri, names: &[&str], adapter: bool) -> Result<()> {
    if let Some(long) = names.iter().find(|name| name.len() > 255 && wanted(name, adapter)) {
        let short: String = long.chars().take(80).collect();
        return Err(Error::validation(format!(
            "{source} holds the file {short}…, whose name has more than 255 bytes: give it a shorter one"
        )));
    }
    let has = |name: &str| names.contains(&name);
    if !adapter && has("adapter_config.json") && !has("config.json") {
        return Err(Error::validation(format!(
            "{source} holds an adapter, not a whole model: make it a custom model with CreateCustomModel"
        )));
    }
    if adapter && !WEIGHT_FILES.iter().any(|name| has(name)) {
        return Err(Error::validation(format!("{source} lacks the adapter's weights: {}", WEIGHT_FILES.join(" or "))));
    }
    let needed: &[&str] = if adapter { &[] } else { &["config.json", "tokenizer.json"] };
    if let Some(missing) = needed.iter().find(|name| !has(name)) {
        return Err(Error::validation(format!("{source} lacks the file {missing}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_needs_is_fetched_and_nothing_else() {
        for name in ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"] {
            assert!(wanted(name, false) && !wanted(name, true), "{name}");
        }
        for name in ["consolidated.safetensors", "pytorch_model.bin", "optimizer.pt", "README.md", "evil.py"] {
            assert!(!wanted(name, false) && !wanted(name, true), "{name}");
        }
        assert!(wanted("adapter_model.safetensors", true));
    }

    #[test]
    fn what_is_missing_is_said_before_anything_is_downloaded() {
        let source = Uri::parse("s3://bucket/model").unwrap();
        let message = |names: &[&str], adapter| {
            refuse_what_is_no_model(&source, names, adapter).err().map(|error| error.message().to_string())
        };
        assert_eq!(message(&["config.json", "tokenizer.json", "model.safetensors"], false), None);
        assert_eq!(message(&["config.json"], false).unwrap(), "s3://bucket/model lacks the file tokenizer.json");
        assert!(message(&["adapter_config.json"], false).unwrap().contains("CreateCustomModel"));
        assert!(message(&["adapter_config.json"], true).unwrap().contains("adapter_model.safetensors"));
        assert_eq!(message(&["adapter_config.json", "adapter.safetensors"], true), None);
        let long = format!("model{}.safetensors", "n".repeat(255));
        let refused = message(&["config.json", "tokenizer.json", &long], false).unwrap();
        assert!(refused.contains("more than 255 bytes"), "{refused}");
    }
}
