//! What a caller's name for a model stands for. A foundation model is named by id or ARN, a custom model by a
//! deployment or provisioned throughput of it or, as an extension of ours, by its own ARN or name, an imported
//! model by its ARN or name.

use std::sync::Arc;

use tracing::warn;

use super::App;
use super::artifact::{self, Artifact, Files, For, fetch};
use super::door::Pass;
use crate::durable::Hold;
use crate::error::{Error, Kind, Result};
use crate::infer::Target;
use crate::models::FoundationModel;
use crate::store::custom_models::CustomModel;
use crate::store::imported_models::ImportedModel;
use crate::store::serving::Behind;
use crate::store::{DeploymentStatus, ModelStatus, custom_models, imported_models, serving};

/// A model that can be asked.
#[derive(Debug)]
pub enum Found<'a> {
    /// One of the registry.
    Foundation(&'a FoundationModel),
    /// One that a job or CreateCustomModel made.
    Custom(Box<CustomModel>),
    /// One that an import job brought.
    Imported(Box<ImportedModel>),
}

/// The foundation model that an id, or an ARN of this region, names.
pub fn foundation<'a>(app: &'a App, identifier: &str) -> Option<&'a FoundationModel> {
    foundation_model_id(&app.config.region, identifier).and_then(|id| app.registry.get(id))
}

/// The model that `identifier` names to `account`, to teach another.
///
/// # Errors
/// When the database fails, and `Validation` when what was named is a deployment that cannot be asked: to create a job
/// gives no `ModelNotReadyException`.
pub async fn teacher<'a>(app: &'a App, account: &str, identifier: &str) -> Result<Option<Found<'a>>> {
    let found = find_served(app, account, identifier).await.map_err(|error| match error.kind() {
        Kind::ModelNotReady => Error::validation(error.message()),
        _ => error,
    });
    Ok(found?.map(|(found, _)| found))
}

/// The model that `identifier` names to `account`, with the provisioned throughput that it was named by.
///
/// # Errors
/// When the database fails, and `ModelNotReady` when what was named is a deployment that cannot be asked.
pub async fn find_served<'a>(
    app: &'a App,
    account: &str,
    identifier: &str,
) -> Result<Option<(Found<'a>, Option<Pass>)>> {
    if let Some(model) = foundation(app, identifier) {
        return Ok(Some((Found::Foundation(model), None)));
    }
    let behind = serving::behind(&app.db, account, identifier).await?;
    let (model, pass) = match behind {
        Some(behind) => {
            answers(&behind)?;
            let units = usize::try_from(behind.units).unwrap_or_default();
            (Some(behind.model_arn), behind.throughput.map(|throughput| Pass::Provisioned { throughput, units }))
        }
        None => (None, None),
    };
    let model = model.as_deref().unwrap_or(identifier);
    if let Some(model) = foundation(app, model) {
        return Ok(Some((Found::Foundation(model), pass)));
    }
    if let Some(model) = custom_models::find(&app.db, account, model).await? {
        return Ok(Some((Found::Custom(Box::new(model)), pass)));
    }
    if let Some(model) = imported_models::find(&app.db, account, model).await? {
        return Ok(Some((Found::Imported(Box::new(model)), pass)));
    }
    Ok(None)
}

/// Refuses a deployment whose model is not ready, or never became so.
fn answers(behind: &Behind) -> Result<()> {
    match behind.deployment_status {
        None | Some(DeploymentStatus::Active) => Ok(()),
        Some(status) => {
            let why = behind.failure_message.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            let message = format!("The deployment {} is {status}{why}", behind.name);
            Err(Error::new(Kind::ModelNotReady, message))
        }
    }
}

/// A model as the engine takes it.
#[derive(Debug, Clone)]
pub struct Served {
    /// What the engine takes.
    pub target: Target,
    /// Keeps the files that were fetched for it where they are.
    pub in_use: Option<Hold>,
}

/// The model as the engine takes it, its files fetched.
///
/// # Errors
/// `ModelNotReady` when the model cannot be asked yet or its base is not installed here, and whatever
/// [`fetch`] fails with.
pub async fn target(app: &App, found: &Found<'_>, by: For) -> Result<Served> {
    match found {
        Found::Foundation(model) => {
            let target =
                Target { base_dir: model.dir.clone(), context_length: Some(model.context_length), adapter: None };
            Ok(Served { target, in_use: None })
        }
        Found::Custom(model) => custom(app, model, by).await,
        Found::Imported(model) => match fetch(app, &Files::from(&**model), by).await? {
            (Artifact::Whole(base_dir), hold) => {
                let target = Target { base_dir, context_length: None, adapter: None };
                Ok(Served { target, in_use: Some(hold) })
            }
            (Artifact::Adapter(_), _) => Err(Error::internal(anyhow::anyhow!("{} consists of an adapter", model.arn))),
        },
    }
}

async fn custom(app: &App, model: &CustomModel, by: For) -> Result<Served> {
    if model.status != ModelStatus::Active {
        return Err(Error::new(Kind::ModelNotReady, format!("The custom model {} is {}", model.name, model.status)));
    }
    let base = app.registry.get(&model.base_model_id);
    let context_length = base.map(|base| base.context_length);
    let (artifact, hold) = fetch(app, &Files::from(model), by).await?;
    let target = match artifact {
        // A whole model needs its base for nothing.
        Artifact::Whole(base_dir) => Target { base_dir, context_length, adapter: None },
        Artifact::Adapter(adapter) => {
            let base = base.ok_or_else(|| {
                let message =
                    format!("The foundation model {} of this custom model is not installed here", model.base_model_id);
                Error::new(Kind::ModelNotReady, message)
            })?;
            Target { base_dir: base.dir.clone(), context_length, adapter: Some(adapter) }
        }
    };
    Ok(Served { target, in_use: Some(hold) })
}

/// What an error of the engine comes to. When the model cannot be loaded because its files were damaged after they were
/// fetched, they are put away, and whoever asks again fetches them again.
pub async fn after_failure(app: &App, found: &Found<'_>, target: &Target, error: Error) -> Error {
    let files = match found {
        Found::Foundation(_) => return error,
        Found::Custom(model) => Files::from(&**model),
        Found::Imported(model) => Files::from(&**model),
    };
    if !matches!(error.kind(), Kind::Internal | Kind::Validation | Kind::Model) {
        return error;
    }
    // A model that can be loaded is whole: then the question was at fault.
    let (engine, target) = (Arc::clone(&app.engine), target.clone());
    let full = || Err(Error::unavailable(anyhow::anyhow!("answers under way hold all memory for models")));
    let loaded = tokio::task::spawn_blocking(move || engine.load(&target, &full)).await;
    let Ok(Err(cause)) = loaded else { return error };
    if matches!(cause.kind(), Kind::Unavailable | Kind::ModelNotReady) {
        return error;
    }
    match artifact::recheck(app, &files).await {
        Ok(true) => {
            Error::new(Kind::ModelNotReady, "The model's files were damaged here and are fetched again. Try again")
                .because(anyhow::anyhow!("{}", error.log()))
        }
        Ok(false) => error,
        Err(failed) => {
            warn!("fetched files could not be looked at again: {}", failed.log());
            error
        }
    }
}

/// The id that a foundation model's id or ARN names; `None` when the ARN names something else or
/// another region.
fn foundation_model_id<'a>(region: &str, identifier: &'a str) -> Option<&'a str> {
    if !identifier.starts_with("arn:") {
        return Some(identifier);
    }
    let (head, id) = identifier.split_once("::foundation-model/")?;
    (head.rsplit(':').next() == Some(region)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foundation_model_is_found_by_id_and_by_arn_of_its_region() {
        let arn = "arn:aws:bedrock:us-east-1::foundation-model/meta.llama3-v1:0";
        assert_eq!(foundation_model_id("us-east-1", arn), Some("meta.llama3-v1:0"));
        assert_eq!(foundation_model_id("eu-west-1", arn), None);
        assert_eq!(foundation_model_id("eu-west-1", "meta.llama3-v1:0"), Some("meta.llama3-v1:0"));
        assert_eq!(foundation_model_id("us-east-1", "arn:aws:bedrock:us-east-1:0:custom-model/a.b/c"), None);
    }
}
