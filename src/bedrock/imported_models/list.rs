//! ListImportedModels.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::bedrock::constraint::Violations;
use crate::bedrock::imports::ImportedModelName;
use crate::bedrock::listing::Window;
use crate::bedrock::shapes::Time;
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Query;
use crate::store::imported_models::{self, ImportedModel};

/// One page of models.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ListImportedModelsResponse)]
pub struct Response {
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    model_summaries: Vec<Summary>,
}

/// What a listing says of a model.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ImportedModelSummary)]
pub struct Summary {
    model_arn: String,
    model_name: String,
    creation_time: Time,
    /// It has a chat template: Converse works.
    instruct_supported: bool,
    /// The `model_type` of its configuration.
    model_architecture: String,
}

impl From<ImportedModel> for Summary {
    fn from(model: ImportedModel) -> Self {
        Self {
            model_arn: model.arn,
            model_name: model.name,
            creation_time: Time(model.creation_time),
            instruct_supported: model.instruct_supported,
            model_architecture: model.architecture,
        }
    }
}

/// List imported models
#[utoipa::path(
    get, path = "/imported-models", operation_id = "ListImportedModels", tag = "bedrock",
    params(Window, ("nameContains" = inline(Option<ImportedModelName>), Query, description = "Only names with this in them; case does not matter")),
    responses((status = 200, description = "One page of models", body = Response))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller, query: Query) -> Result<axum::Json<Response>> {
    let mut violations = Violations::default();
    let window = Window::read(&query, ImportedModelName, &mut violations);
    violations.finish()?;
    let (filter, scope) = window.filter(&[&caller.account, "imported-models"])?;
    let page = imported_models::list(&app.db, &caller.account, &filter).await?;
    Ok(axum::Json(Response {
        next_token: scope.token(page.next.as_ref()),
        model_summaries: page.items.into_iter().map(Summary::from).collect(),
    }))
}
