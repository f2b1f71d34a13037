//! A model's files, fetched from object storage into the cache. The folder is named by the model and by what its files
//! must be, and appears only when every digest holds, so a changed or half-downloaded artifact is never served. What was
//! fetched is looked at again before it is used: its sizes for an answer, its digests for a job and after a failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};

use super::App;
use super::model_cache::{Cached, Patience, Wanted};
use crate::durable::{self, Hold};
use crate::error::{Error, Kind, Result};
use crate::infer::Adapter;
use crate::objects::{Entry, FOLDER_LISTING, Folder, Objects, Uri};
use crate::store::custom_models::{self, CustomModel};
use crate::store::imported_models::{self, ImportedModel};

/// Files whose sizes are asked for at a time.
const HEADS_AT_ONCE: usize = 8;

/// The files that a model consists of, and what names them.
#[derive(Debug, Clone)]
pub struct Files {
    id: String,
    arn: String,
    account: String,
    uri: String,
    digests: BTreeMap<String, String>,
}

impl From<&CustomModel> for Files {
    fn from(model: &CustomModel) -> Self {
        Self {
            id: model.id.clone(),
            arn: model.arn.clone(),
            account: model.account_id.clone(),
            uri: model.artifact_uri.clone(),
            digests: model.artifact_digests.0.clone(),
        }
    }
}

impl From<&ImportedModel> for Files {
    fn from(model: &ImportedModel) -> Self {
        Self {
            id: model.id.clone(),
            arn: model.arn.clone(),
            account: model.account_id.clone(),
            uri: model.artifact_uri.clone(),
            digests: model.artifact_digests.0.clone(),
        }
    }
}

/// What a model consists of.
pub enum Artifact {
    /// An adapter for its base model.
    Adapter(Adapter),
    /// A model directory of its own.
    Whole(PathBuf),
}

/// Kind of request that needs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// A request, which cannot wait for long and is answered many times: sizes are compared.
    Request,
    /// A job, or whatever else runs for hours by what it reads: digests are compared.
    Job,
}

/// The model's files, downloaded if they are not here yet, and what keeps them here.
///
/// # Errors
/// When a file is gone, cannot be read, or is not what the model was made of; `ModelNotReady` when a request would have
/// to wait for too long.
pub async fn fetch(app: &App, model: &Files, by: For) -> Result<(Artifact, Hold)> {
    let dir = app.model_cache.models().join(model.folder());
    let patience = match by {
        For::Request => Patience::Request,
        For::Job => Patience::Job,
    };
    let was_here = app.model_cache.hold(&dir)?;
    let cached = match was_here {
        Some(held) if is_intact(model, &dir, by == For::Job).await? => held,
        damaged => {
            if damaged.is_some() {
                // What holds it would keep it.
                drop(damaged);
                app.model_cache.discard(&dir)?;
                app.engine.forget_dir(&dir);
            }
            // Its digests were compared on the way.
            get(app, model, &dir, &patience).await?
        }
    };
    let artifact = match model.digests.contains_key("adapter_config.json") {
        true => Artifact::Adapter(Adapter { id: model.arn.clone(), dir: cached.dir }),
        false => Artifact::Whole(cached.dir),
    };
    Ok((artifact, cached.in_use))
}

/// Compares the digests of files that were fetched and cannot be used; when they are damaged, they are put away, so that
/// the next who wants them fetches them again. Whether they were.
///
/// # Errors
/// When they cannot be put away.
pub async fn recheck(app: &App, model: &Files) -> Result<bool> {
    let dir = app.model_cache.models().join(model.folder());
    if !tokio::fs::try_exists(&dir).await? || is_intact(model, &dir, true).await? {
        return Ok(false);
    }
    app.model_cache.discard(&dir)?;
    app.engine.forget_dir(&dir);
    Ok(true)
}

/// Removes what was fetched of a model that was deleted; what somebody uses at this moment is swept later.
pub async fn forget(app: &App, model: &Files) {
    let dir = app.model_cache.models().join(model.folder());
    app.engine.forget_dir(&dir);
    app.model_cache.remove(&dir);
}

/// Removes what was fetched of models that exist no more, whoever deleted them.
pub async fn sweep(app: &App) -> Result<()> {
    let Ok(mut entries) = tokio::fs::read_dir(app.model_cache.models()).await else { return Ok(()) };
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((id, _)) = name.split_once('-').filter(|_| !name.contains('.')) else { continue };
        if !custom_models::exists(&app.db, id).await? && !imported_models::exists(&app.db, id).await? {
            app.engine.forget_dir(&entry.path());
            app.model_cache.remove(&entry.path());
        }
    }
    Ok(())
}

impl Files {
    fn folder(&self) -> String {
        let mut all = Sha256::new();
        for (name, digest) in &self.digests {
            all.update(format!("{name}={digest}\n"));
        }
        format!("{}-{}", self.id, &hex::encode(all.finalize())[..16])
    }
}

async fn get(app: &App, model: &Files, dir: &Path, patience: &Patience) -> Result<Cached> {
    let (objects, files) = (app.objects_of(&model.account), model.clone());
    let wanted = {
        let (objects, files) = (objects.clone(), files.clone());
        async move { wanted(&objects, &files).await }
    };
    let fill = move |staging| {
        let (objects, files) = (objects.clone(), files.clone());
        async move { download(&objects, &files, staging).await.map(|()| true) }
    };
    let cached = app.model_cache.get(dir, patience, wanted, fill).await?;
    cached.ok_or_else(|| Error::internal(anyhow::anyhow!("{} was not fetched", dir.display())))
}

/// Size of the model's files together, as the object store tells it.
async fn wanted(objects: &Objects, model: &Files) -> Result<Wanted> {
    let root = Uri::parse(&model.uri)?;
    let files: Vec<Uri> = model.digests.keys().map(|name| root.join(name)).collect();
    let size = |uri: Uri| async move {
        match objects.head(&uri).await {
            Ok(head) => Ok(head.size),
            Err(error) => Err(gone(&uri, error)),
        }
    };
    let sizes: Vec<u64> = stream::iter(files).map(size).buffered(HEADS_AT_ONCE).try_collect().await?;
    Ok(Wanted { what: format!("the files of {}", model.arn), bytes: sizes.iter().sum() })
}

/// A file that should be there and is not is the model's fault.
fn gone(uri: &Uri, error: Error) -> Error {
    match error.kind() {
        Kind::NotFound | Kind::AccessDenied => {
            Error::new(Kind::Model, format!("The model's file {uri} is gone or cannot be read: put it back"))
                .because(anyhow::anyhow!("{}", error.log()))
        }
        _ => error,
    }
}

async fn download(objects: &Objects, model: &Files, staging: PathBuf) -> Result<()> {
    let root = Uri::parse(&model.uri)?;
    let mut listing = Folder::default();
    for (name, digest) in &model.digests {
        let (uri, file) = (root.join(name), Folder::place(&staging, name)?);
        if let Some(parent) = file.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        let fetched = objects.get_to_file(&uri, &file).await.map_err(|error| gone(&uri, error))?;
        if fetched.sha256 != *digest {
            return Err(Error::new(
                Kind::Model,
                format!(
                    "The model's file {uri} was changed after the model was made: its SHA-256 is {}, not {digest}",
                    fetched.sha256
                ),
            ));
        }
        listing.files.insert(name.clone(), Entry { size: fetched.size, sha256: fetched.sha256 });
    }
    Ok(durable::write(&staging.join(FOLDER_LISTING), serde_json::to_vec_pretty(&listing)?)?)
}

/// Integrity check of fetched files: by their sizes, or by their digests, too. Damage is what the disk says: a file that
/// is gone or another one. Files that cannot be looked at, for want of file descriptors for instance, are not damaged.
async fn is_intact(model: &Files, dir: &Path, digests: bool) -> Result<bool> {
    let (model, dir) = (model.clone(), dir.to_path_buf());
    tokio::task::spawn_blocking(move || {
        let place = dir.join(FOLDER_LISTING);
        let listed = there(std::fs::read(&place))?;
        let listing = listed.and_then(|bytes| serde_json::from_slice::<Folder>(&bytes).ok());
        if let Some(listing) = &listing {
            for name in model.digests.keys() {
                let size = there(std::fs::metadata(dir.join(name)))?.map(|facts| facts.len());
                if size.is_none() || size != listing.files.get(name).map(|entry| entry.size) {
                    return Ok(false);
                }
            }
            if !digests {
                return Ok(true);
            }
        }
        let mut found = Folder::default();
        for (name, digest) in &model.digests {
            match there(durable::digest(&dir.join(name)))? {
                Some(file) if file.sha256 == *digest => {
                    found.files.insert(name.clone(), Entry { size: file.size, sha256: file.sha256 });
                }
                _ => return Ok(false),
            }
        }
        if listing.is_none() {
            // Earlier versions left none, and all of the files would be read for each request.
            durable::replace(&place, serde_json::to_vec_pretty(&found)?)?;
        }
        Ok(true)
    })
    .await
    .map_err(Error::internal)?
}

/// Result of a read; `None` for a file that is not there.
fn there<T>(read: std::io::Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::unavailable(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of one file, and the folder that it was fetched to by a version that left no listing.
    fn fetched() -> (Files, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("weights"), b"abc").unwrap();
        let sha256 = durable::digest(&dir.path().join("weights")).unwrap().sha256;
        let digests = BTreeMap::from([("weights".to_string(), sha256)]);
        let name = || "m".to_string();
        (Files { id: name(), arn: name(), account: name(), uri: name(), digests }, dir)
    }

    #[tokio::test]
    async fn files_without_a_listing_are_read_once_and_have_one_from_then_on() {
        let (model, dir) = fetched();
        assert!(is_intact(&model, dir.path(), false).await.unwrap());
        // Of the same size: only its digest would tell, which a request does not compare any more.
        std::fs::write(dir.path().join("weights"), b"abd").unwrap();
        assert!(is_intact(&model, dir.path(), false).await.unwrap());
        assert!(!is_intact(&model, dir.path(), true).await.unwrap());
        std::fs::write(dir.path().join("weights"), b"ab").unwrap();
        assert!(!is_intact(&model, dir.path(), false).await.unwrap());
    }

    #[tokio::test]
    async fn files_that_cannot_be_looked_at_are_not_damaged() {
        let (model, dir) = fetched();
        std::fs::remove_file(dir.path().join("weights")).unwrap();
        assert!(!is_intact(&model, dir.path(), false).await.unwrap(), "a file that is gone");
        // Reading a folder fails as reading without a file descriptor does: with an error of its own.
        std::fs::create_dir(dir.path().join("weights")).unwrap();
        assert_eq!(is_intact(&model, dir.path(), false).await.unwrap_err().kind(), Kind::Unavailable);
    }
}
