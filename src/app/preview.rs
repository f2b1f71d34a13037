//! A job's newest checkpoint as something that can be asked: brought from the object store with its digests checked,
//! and only the part of it that answers; the optimizer's state stays where it is. Each checkpoint has a folder and a
//! name in memory of its own, so an answer never comes from an older one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::App;
use super::layout::{Layout, checkpoint_of};
use crate::error::{Error, Kind, Result};
use crate::infer::{Adapter, Target};
use crate::models::{FoundationModel, copy_tokenizer};
use crate::objects::{FOLDER_LISTING, Folder, Uri};
use crate::store::jobs::Job;

/// The trained weights among a checkpoint's files.
const WEIGHTS: &str = "weights.safetensors";
/// Their name beside an adapter's configuration, and among a checkpoint's files where an artifact has other ones than
/// those that train.
const ADAPTER: &str = "adapter_model.safetensors";
/// How many checkpoints of a job stay here: the newest, and the one that a request may have begun with.
const KEPT: usize = 2;
/// A worker removes a checkpoint once there are newer ones: so often is it looked again.
const LOOKS: usize = 3;

/// A checkpoint that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// After how many steps it was made.
    pub step: u64,
    /// What the engine takes.
    pub target: Target,
}

/// The job's newest checkpoint; `None` when it has none (any more).
///
/// # Errors
/// `ModelNotReady` when the base is not installed here; else when the object store fails.
pub async fn newest(app: &App, job: &Job) -> Result<Option<Preview>> {
    let id = &job.spec.base_model_id;
    let base = app.registry.get(id).ok_or_else(|| {
        Error::new(Kind::ModelNotReady, format!("The foundation model {id} of this job is not installed here"))
    })?;
    let layout = Layout::of(&job.spec)?;
    for _ in 0..LOOKS {
        let found = checkpoints(app, &layout, job.attempt).await?;
        if found.is_empty() {
            return Ok(None);
        }
        for (attempt, step) in found {
            if let Some(target) = bring(app, job, base, &layout, (attempt, step)).await? {
                return Ok(Some(Preview { step, target }));
            }
        }
    }
    Ok(None)
}

/// Removes what was brought of a job's checkpoints: there is something better to ask.
pub async fn forget(app: &App, job: &Job) {
    let folder = folder(app, job);
    if tokio::fs::try_exists(&folder).await.is_ok_and(|there| there) {
        keep_newest(app, job, 0).await;
        // What could not be removed is in nobody's way.
        let _ = tokio::fs::remove_dir_all(&folder).await;
    }
}

/// The whole checkpoints of the last attempt that has any, newest first: each attempt goes on from those before it.
async fn checkpoints(app: &App, layout: &Layout, attempts: i64) -> Result<Vec<(i64, u64)>> {
    for attempt in (1..=attempts).rev() {
        let objects = app.objects.list(&layout.checkpoints(attempt)).all().await?;
        let whole = objects.iter().filter(|object| object.uri.name() == FOLDER_LISTING);
        let found: BTreeSet<_> = whole.filter_map(|object| checkpoint_of(object.uri.key())).collect();
        if !found.is_empty() {
            return Ok(found.into_iter().rev().collect());
        }
    }
    Ok(Vec::new())
}

/// One checkpoint as a target; `None` when it was removed meanwhile, is damaged, or was made by a release that could
/// not be asked.
async fn bring(
    app: &App,
    job: &Job,
    base: &FoundationModel,
    layout: &Layout,
    (attempt, step): (i64, u64),
) -> Result<Option<Target>> {
    let from = layout.checkpoint(attempt, step);
    let Some(listing) = app.objects.folder(&from).await? else { return Ok(None) };
    let has = |name: &str| listing.files.contains_key(name);
    let whole = !has("adapter_config.json") && has("config.json");
    let weights = if has(ADAPTER) { ADAPTER } else { WEIGHTS };
    let Some(entry) = listing.files.get(weights) else { return Ok(None) };
    let mut wanted = vec![(weights, if whole { "model.safetensors" } else { ADAPTER })];
    // How the base was quantised stands beside an adapter that was trained over 4 bits.
    for name in ["config.json", "adapter_config.json", "base_quantization_config.json"] {
        wanted.extend(has(name).then_some((name, name)));
    }
    if wanted.len() == 1 {
        return Ok(None);
    }

    // Sorts by step.
    let name = format!("{step:08}-{attempt}-{}", entry.sha256.get(..16).unwrap_or_default());
    let place = folder(app, job).join(&name);
    if !tokio::fs::try_exists(&place).await? {
        let staging = place.with_extension(app.clock.id());
        let brought = async {
            let there = download(app, &from, &listing, &wanted, &staging).await?;
            if there && whole {
                copy_tokenizer(&base.dir, &staging)?;
            }
            if there && tokio::fs::rename(&staging, &place).await.is_err() && !place.exists() {
                return Err(Error::internal(anyhow::anyhow!("cannot move {} into place", staging.display())));
            }
            Ok(there)
        };
        let brought = brought.await;
        // Left over after a failure, or because another request was faster.
        let _ = tokio::fs::remove_dir_all(&staging).await;
        if !brought? {
            return Ok(None);
        }
        keep_newest(app, job, KEPT).await;
    }
    let context_length = Some(base.context_length);
    Ok(Some(match whole {
        true => Target { base_dir: place, context_length, adapter: None },
        false => {
            let adapter = Adapter { id: adapter_id(job, &name), dir: place };
            Target { base_dir: base.dir.clone(), context_length, adapter: Some(adapter) }
        }
    }))
}

/// `false` when a file is gone or is not what the listing says.
async fn download(app: &App, from: &Uri, listing: &Folder, wanted: &[(&str, &str)], into: &Path) -> Result<bool> {
    tokio::fs::create_dir_all(into).await?;
    for (name, local) in wanted {
        match app.objects.get_to_file(&from.join(name), &into.join(local)).await {
            Ok(fetched) if listing.files.get(*name).is_some_and(|entry| entry.sha256 == fetched.sha256) => {}
            Ok(_) => return Ok(false),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Where checkpoints of the job lie here.
fn folder(app: &App, job: &Job) -> PathBuf {
    app.config.previews().join(&job.spec.id)
}

fn adapter_id(job: &Job, name: &str) -> String {
    format!("{}@{name}", job.spec.arn)
}

/// Drops all but the newest from the disk and from memory.
async fn keep_newest(app: &App, job: &Job, count: usize) {
    let Ok(mut entries) = tokio::fs::read_dir(folder(app, job)).await else { return };
    let mut names = BTreeSet::new();
    while let Ok(Some(entry)) = entries.next_entry().await {
        // What is being brought has an extension.
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.contains('.') {
            names.insert(name);
        }
    }
    for old in names.iter().rev().skip(count) {
        app.engine.forget(&adapter_id(job, old));
        let _ = tokio::fs::remove_dir_all(folder(app, job).join(old)).await;
    }
}
