//! ListCustomModels.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::bedrock::constraint::Violations;
use crate::bedrock::listing::Window;
use crate::bedrock::shapes::{self, CustomModelName, FoundationModelArn, ModelArn, Time};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Query;
use crate::store::custom_models::{self, CustomModel, ModelFilter};
use crate::store::{CustomizationType, ModelStatus};

/// One page of models.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ListCustomModelsResponse)]
pub struct Response {
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    model_summaries: Vec<Summary>,
}

/// What a listing says of a model.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CustomModelSummary)]
pub struct Summary {
    model_arn: String,
    model_name: String,
    creation_time: Time,
    base_model_arn: String,
    base_model_name: String,
    #[schema(value_type = shapes::CustomizationType)]
    customization_type: CustomizationType,
    owner_account_id: String,
    #[schema(value_type = shapes::ModelStatus)]
    model_status: ModelStatus,
}

impl From<CustomModel> for Summary {
    fn from(model: CustomModel) -> Self {
        // The contract allows no colon in a model's name, so the version parts of the id are left out.
        let base_model_name = model.base_model_id.split(':').next().unwrap_or_default().to_string();
        Self {
            model_arn: model.arn,
            model_name: model.name,
            creation_time: Time(model.creation_time),
            base_model_arn: model.base_model_arn,
            base_model_name,
            customization_type: model.customization_type,
            owner_account_id: model.account_id,
            model_status: model.status,
        }
    }
}

/// List custom models
#[utoipa::path(
    get, path = "/custom-models", operation_id = "ListCustomModels", tag = "bedrock",
    params(
        Window,
        ("nameContains" = inline(Option<CustomModelName>), Query, description = "Only names with this in them; case does not matter"),
        ("baseModelArnEquals" = inline(Option<ModelArn>), Query, description = "Only models made from this model"),
        ("foundationModelArnEquals" = inline(Option<FoundationModelArn>), Query, description = "Only models that go back to this one"),
        ("isOwned" = Option<bool>, Query, description = "false lists what other accounts share: nothing"),
        ("modelStatus" = inline(Option<shapes::ModelStatus>), Query, description = "Only models in this state"),
    ),
    responses((status = 200, description = "One page of models", body = Response))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller, query: Query) -> Result<axum::Json<Response>> {
    let mut violations = Violations::default();
    let window = Window::read(&query, CustomModelName, &mut violations);
    let base = query.get("baseModelArnEquals").map(|text| ModelArn(text.to_string()));
    let foundation = query.get("foundationModelArnEquals").map(|text| FoundationModelArn(text.to_string()));
    let status = query.get("modelStatus").map(|text| shapes::ModelStatus(text.to_string()));
    violations.optional("baseModelArnEquals", base.as_ref());
    violations.optional("foundationModelArnEquals", foundation.as_ref());
    violations.optional("modelStatus", status.as_ref());
    let owned = match query.get("isOwned") {
        None | Some("true") => true,
        Some("false") => false,
        Some(other) => {
            violations.add(other, "isOwned", "Member must be true or false");
            true
        }
    };
    violations.finish()?;

    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let own = [
        caller.account.clone(),
        "models".to_string(),
        text(base.as_ref().map(|arn| &arn.0)),
        text(foundation.as_ref().map(|arn| &arn.0)),
        text(status.as_ref().map(|status| &status.0)),
    ];
    let (filter, scope) = window.filter(&own.each_ref().map(String::as_str))?;
    if !owned {
        return Ok(axum::Json(Response { next_token: None, model_summaries: Vec::new() }));
    }
    let only = ModelFilter {
        base_model_arn: base.map(|arn| arn.0),
        foundation_model_arn: foundation.map(|arn| arn.0),
        status: status.and_then(|status| ModelStatus::parse(&status.0)),
    };
    let page = custom_models::list(&app.db, &caller.account, &only, &filter).await?;
    Ok(axum::Json(Response {
        next_token: scope.token(page.next.as_ref()),
        model_summaries: page.items.into_iter().map(Summary::from).collect(),
    }))
}
