//! Brings a model's files from the object store to a local folder, once. The folder is named by
//! the model and by what its files must be, and appears only when every digest holds, so a changed or
//! half-downloaded artifact is never served.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::App;
use crate::error::{Error, Kind, Result};
use crate::infer::Adapter;
use crate::objects::Uri;
use crate::store::custom_models::CustomModel;
use crate::store::imported_models::ImportedModel;

/// The files that a model consists of, and what names them.
pub struct Files<'a> {
    id: &'a str,
    arn: &'a str,
    account: &'a str,
    uri: &'a str,
    digests: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a CustomModel> for Files<'a> {
    fn from(model: &'a CustomModel) -> Self {
        Self {
            id: &model.id,
            arn: &model.arn,
            account: &model.account_id,
            uri: &model.artifact_uri,
            digests: &model.artifact_digests,
        }
    }
}

impl<'a> From<&'a ImportedModel> for Files<'a> {
    fn from(model: &'a ImportedModel) -> Self {
        Self {
            id: &model.id,
            arn: &model.arn,
            account: &model.account_id,
            uri: &model.artifact_uri,
            digests: &model.artifact_digests,
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

/// The model's files, downloaded if they are not here yet.
///
/// # Errors
/// When a file is gone, cannot be read, or is not what the model was made of.
pub async fn bring(app: &App, model: &Files<'_>) -> Result<Artifact> {
    let mut all = Sha256::new();
    for (name, digest) in model.digests.iter() {
        all.update(format!("{name}={digest}\n"));
    }
    let name = format!("{}-{}", model.id, &hex::encode(all.finalize())[..16]);
    let folder = app.config.data_dir.join("cache").join("models").join(name);
    if !tokio::fs::try_exists(&folder).await? {
        let staging = folder.with_extension(app.clock.id());
        let brought = download(app, model, &staging).await;
        if brought.is_ok() && tokio::fs::rename(&staging, &folder).await.is_err() && !folder.exists() {
            return Err(Error::internal(anyhow::anyhow!("cannot move {} into place", staging.display())));
        }
        // Left over after a failure, or because another request was faster.
        let _ = tokio::fs::remove_dir_all(&staging).await;
        brought?;
    }
    if model.digests.contains_key("adapter_config.json") {
        return Ok(Artifact::Adapter(Adapter { id: model.arn.to_string(), dir: folder }));
    }
    Ok(Artifact::Whole(folder))
}

async fn download(app: &App, model: &Files<'_>, staging: &Path) -> Result<()> {
    let (root, objects) = (Uri::parse(model.uri)?, app.objects_of(model.account));
    for (name, digest) in model.digests.iter() {
        let uri = root.join(name);
        let file = staging.join(name);
        if let Some(parent) = file.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        let fetched = objects.get_to_file(&uri, &file).await.map_err(|error| match error.kind() {
            Kind::NotFound | Kind::AccessDenied => {
                Error::new(Kind::Model, format!("The model's file {uri} is gone or cannot be read: put it back"))
                    .because(anyhow::anyhow!("{}", error.log()))
            }
            _ => error,
        })?;
        if fetched.sha256 != *digest {
            return Err(Error::new(
                Kind::Model,
                format!(
                    "The model's file {uri} was changed after the model was made: its SHA-256 is {}, not {digest}",
                    fetched.sha256
                ),
            ));
        }
    }
    Ok(())
}
