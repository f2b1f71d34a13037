//! GetImportedModel.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{ImportedModelIdentifier, no_such_model};
use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::imports::ModelDataSource;
use crate::bedrock::shapes::Time;
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::imported_models::{self, ImportedModel};

/// An imported model.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GetImportedModelResponse)]
pub struct Response {
    model_arn: String,
    model_name: String,
    job_name: String,
    job_arn: String,
    #[schema(value_type = ModelDataSource)]
    model_data_source: Value,
    creation_time: Time,
    /// The `model_type` of its configuration.
    model_architecture: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_kms_key_arn: Option<String>,
    /// It has a chat template: Converse works.
    instruct_supported: bool,
}

impl From<ImportedModel> for Response {
    fn from(model: ImportedModel) -> Self {
        Self {
            model_arn: model.arn,
            model_name: model.name,
            job_name: model.job_name,
            job_arn: model.job_arn,
            model_data_source: model.source.0,
            creation_time: Time(model.creation_time),
            model_architecture: model.architecture,
            model_kms_key_arn: model.kms_key_arn,
            instruct_supported: model.instruct_supported,
        }
    }
}

/// Get an imported model
#[utoipa::path(
    get, path = "/imported-models/{modelIdentifier}", operation_id = "GetImportedModel", tag = "bedrock",
    params(("modelIdentifier" = inline(ImportedModelIdentifier), Path, description = "ARN or name")),
    responses((status = 200, description = "The model", body = Response))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(identifier): Segment,
) -> Result<axum::Json<Response>> {
    check("modelIdentifier", &ImportedModelIdentifier(identifier.clone()))?;
    let model = imported_models::find(&app.db, &caller.account, &identifier).await?;
    Ok(axum::Json(model.ok_or_else(|| no_such_model(&identifier))?.into()))
}
