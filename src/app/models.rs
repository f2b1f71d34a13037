//! What a caller's name for a model stands for. A foundation model is named by id or ARN, a custom model by a
//! deployment or provisioned throughput of it or, as an extension of ours, by its own ARN or name, an imported
//! model by its ARN or name.

use super::App;
use super::artifact::{Artifact, Files, bring};
use super::door::Pass;
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

/// The model as the engine takes it, its files brought here.
///
/// # Errors
/// `ModelNotReady` when the model cannot be asked yet or its base is not installed here, and whatever
/// [`bring`] fails with.
pub async fn target(app: &App, found: &Found<'_>) -> Result<Target> {
    match found {
        Found::Foundation(model) => {
            Ok(Target { base_dir: model.dir.clone(), context_length: Some(model.context_length), adapter: None })
        }
        Found::Custom(model) => custom(app, model).await,
        Found::Imported(model) => match bring(app, &Files::from(&**model)).await? {
            Artifact::Whole(base_dir) => Ok(Target { base_dir, context_length: None, adapter: None }),
            Artifact::Adapter(_) => Err(Error::internal(anyhow::anyhow!("{} consists of an adapter", model.arn))),
        },
    }
}

async fn custom(app: &App, model: &CustomModel) -> Result<Target> {
    if model.status != ModelStatus::Active {
        return Err(Error::new(Kind::ModelNotReady, format!("The custom model {} is {}", model.name, model.status)));
    }
    let base = app.registry.get(&model.base_model_id);
    let context_length = base.map(|base| base.context_length);
    Ok(match bring(app, &Files::from(model)).await? {
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
    })
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
