//! A job's newest checkpoint as something that can be asked: brought from the object store with its digests checked,
//! and only the part of it that answers; the optimizer's state stays where it is. Each checkpoint has a folder and a
//! name in memory of its own, so an answer never comes from an older one. Requests for one job look one after the
//! other, and share what one of them found for a moment: many at once cost one look and bring a checkpoint once.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::App;
use super::layout::{CheckpointPlace, Layout};
use super::model_cache::{self, Patience};
use super::models::Served;
use crate::error::{Error, Kind, Result};
use crate::infer::{Adapter, Target};
use crate::models::{FoundationModel, copy_tokenizer};
use crate::objects::{FOLDER_LISTING, Folder, Objects, Uri};
use crate::store::jobs::Job;
use crate::store::{Status, scratch};

/// The trained weights among a checkpoint's files.
const WEIGHTS: &str = "weights.safetensors";
/// Their name beside an adapter's configuration, and among a checkpoint's files where an artifact has other ones than
/// those that train.
const ADAPTER: &str = "adapter_model.safetensors";
/// How many checkpoints of a job stay here beside those in use: the newest, and one for another process of this data
/// folder, of whose requests this one knows nothing.
const KEPT: usize = 2;
/// A worker removes a checkpoint once there are newer ones: so often is it looked again.
const LOOKS: usize = 3;
/// So long is what was found taken for the newest.
const FRESH: Duration = Duration::from_secs(1);

/// A checkpoint that can be asked.
#[derive(Debug, Clone)]
pub struct Preview {
    /// After how many steps it was made.
    pub step: u64,
    /// What the engine takes, to be held until it has answered.
    pub served: Served,
}

/// The checkpoints that this process brought, by the id of their job.
#[derive(Default)]
pub struct Previews(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Brought>>>>);

/// The checkpoints of one job. Whoever holds it is the only one to bring and remove them.
#[derive(Default)]
struct Brought {
    last: Option<Look>,
}

/// When it was looked for the newest checkpoint, and what was there.
struct Look {
    at: Instant,
    /// Where the job stood: one that has gone on since is looked at again.
    job: (Status, i64),
    found: Result<Option<Found>>,
}

/// A checkpoint that lies here.
#[derive(Debug, Clone)]
struct Found {
    /// Its folder, and the name of that.
    dir: PathBuf,
    name: String,
    step: u64,
    target: Target,
}

impl Previews {
    fn of(&self, job: &str) -> Arc<tokio::sync::Mutex<Brought>> {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(jobs.entry(job.to_string()).or_default())
    }

    /// Forgets a job of which nothing is here, unless somebody looks at it at this moment.
    fn let_go(&self, job: &str) {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.get(job).is_some_and(|brought| Arc::strong_count(brought) == 1) {
            jobs.remove(job);
        }
    }
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
    let brought = app.previews.of(&job.spec.id);
    let mut brought = brought.lock().await;
    let (now, stands) = (app.clock.monotonic(), (job.status, job.attempt));
    let fresh = |look: &&Look| look.job == stands && now.duration_since(look.at) < FRESH;
    let found = match brought.last.as_ref().filter(fresh) {
        Some(look) => known(&look.found)?,
        None => {
            let found = look(app, job, base).await;
            let last = Look { at: app.clock.monotonic(), job: stands, found: known(&found) };
            brought.last = Some(last);
            found?
        }
    };
    let Some(Found { dir, step, target, .. }) = found else { return Ok(None) };
    let held = app.model_cache.hold(&dir)?;
    if held.is_none() {
        // Evicted since it was found: the next look fetches it again.
        brought.last = None;
    }
    let missing = || Error::new(Kind::ModelNotReady, "The checkpoint is being fetched again. Try again in a moment");
    let in_use = Some(held.ok_or_else(missing)?.in_use);
    Ok(Some(Preview { step, served: Served { target, in_use } }))
}

/// What was found, or why nothing was, for another who asks.
fn known(found: &Result<Option<Found>>) -> Result<Option<Found>> {
    match found {
        Ok(found) => Ok(found.clone()),
        Err(error) => Err(error.repeated()),
    }
}

/// Looks for the newest checkpoint and brings it here.
async fn look(app: &App, job: &Job, base: &FoundationModel) -> Result<Option<Found>> {
    let (layout, objects) = (Layout::of(&job.spec)?, app.objects_for_request(&job.spec.account_id));
    for _ in 0..LOOKS {
        let there = checkpoints(&objects, &layout, job.attempt).await?;
        if there.is_empty() {
            return Ok(None);
        }
        for checkpoint in there {
            if let Some(found) = bring(app, job, base, &checkpoint).await? {
                remove_old(app, &job.spec.id, KEPT, Some(&found.name)).await;
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// Removes what was brought of a job's checkpoints, because they are not to be asked any more. What somebody uses
/// stays until the next time.
pub async fn forget(app: &App, job: &str) {
    let folder = folder(app, job);
    if !tokio::fs::try_exists(&folder).await.is_ok_and(|there| there) {
        return app.previews.let_go(job);
    }
    {
        let brought = app.previews.of(job);
        // Somebody looks at this moment, and will use what it finds.
        let Ok(mut brought) = brought.try_lock() else { return };
        brought.last = None;
        remove_old(app, job, 0, None).await;
        // It is not empty while somebody uses a checkpoint.
        if tokio::fs::remove_dir(&folder).await.is_err() {
            return;
        }
    }
    app.previews.let_go(job);
}

/// Removes what was brought for jobs whose checkpoints are gone by now. Several processes may do so in one data folder.
pub async fn sweep(app: &App) {
    let Ok(mut entries) = tokio::fs::read_dir(app.config.previews()).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let job = entry.file_name().to_string_lossy().into_owned();
        match scratch::has_checkpoints(&app.db, &job).await {
            Ok(true) => {}
            Ok(false) => {
                forget(app, &job).await;
                debug!(job.id = job, "checkpoints that were asked are removed: the job has ended");
            }
            Err(error) => return warn!("checkpoints of ended jobs were not looked for: {}", error.log()),
        }
    }
}

/// The whole checkpoints of the last attempt that has any, newest first: each attempt goes on from those before it.
async fn checkpoints(objects: &Objects, layout: &Layout, attempts: i64) -> Result<Vec<CheckpointPlace>> {
    for attempt in (1..=attempts).rev() {
        let mut found = BTreeSet::new();
        for prefix in layout.checkpoints(attempt) {
            let listed = objects.list(&prefix).all().await?;
            let whole = listed.iter().filter(|object| object.uri.name() == FOLDER_LISTING);
            found.extend(whole.filter_map(|object| CheckpointPlace::of(&object.uri)));
        }
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
    CheckpointPlace { attempt, step, folder: from }: &CheckpointPlace,
) -> Result<Option<Found>> {
    let (step, account) = (*step, &job.spec.account_id);
    let Some(listing) = app.objects_for_request(account).folder(from).await? else { return Ok(None) };
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

    // Sorts as the checkpoints were made: each attempt goes on from those before it.
    let name = format!("{attempt:06}-{step:08}-{}", entry.sha256.get(..16).unwrap_or_default());
    let place = folder(app, &job.spec.id).join(&name);
    let tokenizer = whole.then(|| base.dir.clone());
    let wanted: Vec<_> = wanted.into_iter().map(|(name, local)| (name.to_string(), local.to_string())).collect();
    let wanted = Arc::new(Wanted { from: from.clone(), listing, files: wanted, tokenizer });
    let sized = model_cache::Wanted {
        what: format!("the checkpoint of step {step} of {}", job.spec.arn),
        bytes: wanted.files.iter().filter_map(|(name, _)| Some(wanted.listing.files.get(name)?.size)).sum(),
    };
    let objects = app.objects_of(account);
    let fill = move |staging| {
        let (objects, wanted) = (objects.clone(), Arc::clone(&wanted));
        async move { wanted.download(&objects, staging).await }
    };
    if app.model_cache.get(&place, &Patience::Request, async { Ok(sized) }, fill).await?.is_none() {
        return Ok(None);
    }
    let context_length = Some(base.context_length);
    let target = match whole {
        true => Target { base_dir: place.clone(), context_length, adapter: None },
        false => {
            let adapter = Adapter { id: format!("{}@{name}", job.spec.arn), dir: place.clone() };
            Target { base_dir: base.dir.clone(), context_length, adapter: Some(adapter) }
        }
    };
    Ok(Some(Found { dir: place, name, step, target }))
}

/// What is fetched of a checkpoint.
struct Wanted {
    from: Uri,
    listing: Folder,
    /// Names there and here.
    files: Vec<(String, String)>,
    /// Where the tokenizer of a whole model is.
    tokenizer: Option<PathBuf>,
}

impl Wanted {
    /// `false` when a file is gone or is not what the listing says.
    async fn download(&self, objects: &Objects, into: PathBuf) -> Result<bool> {
        for (name, local) in &self.files {
            match objects.get_to_file(&self.from.join(name), &into.join(local)).await {
                Ok(fetched) if self.listing.files.get(name).is_some_and(|entry| entry.sha256 == fetched.sha256) => {}
                Ok(_) => return Ok(false),
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if let Some(base) = &self.tokenizer {
            copy_tokenizer(base, &into)?;
        }
        Ok(true)
    }
}

/// Where checkpoints of the job lie here.
fn folder(app: &App, job: &str) -> PathBuf {
    app.config.previews().join(job)
}

/// Drops all but the newest `kept` from the disk and from memory; never `current` or one in use.
async fn remove_old(app: &App, job: &str, kept: usize, current: Option<&str>) {
    let Ok(mut entries) = tokio::fs::read_dir(folder(app, job)).await else { return };
    let mut names = BTreeSet::new();
    while let Ok(Some(entry)) = entries.next_entry().await {
        // What is being fetched has a dot in its name.
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.contains('.') {
            names.insert(name);
        }
    }
    for old in names.iter().rev().skip(kept).filter(|old| current != Some(old.as_str())) {
        let old = folder(app, job).join(old);
        // What somebody uses is looked at again with the next checkpoint.
        if app.model_cache.remove(&old) {
            app.engine.forget_dir(&old);
        }
    }
}
