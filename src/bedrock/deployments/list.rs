//! ListCustomModelDeployments. Its time window has parameters of its own names.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::bedrock::constraint::Violations;
use crate::bedrock::listing::Window;
use crate::bedrock::shapes::{self, CustomModelArn, ModelDeploymentName, PaginationToken, SortBy, SortOrder, Time};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Query;
use crate::store::DeploymentStatus;
use crate::store::deployments::{self, Deployment, DeploymentFilter};

/// One page of deployments.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ListCustomModelDeploymentsResponse)]
pub struct Response {
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    model_deployment_summaries: Vec<Summary>,
}

/// What a listing says of a deployment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CustomModelDeploymentSummary)]
pub struct Summary {
    custom_model_deployment_arn: String,
    custom_model_deployment_name: String,
    model_arn: String,
    created_at: Time,
    #[schema(value_type = shapes::DeploymentStatus)]
    status: DeploymentStatus,
    last_updated_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_message: Option<String>,
}

impl From<Deployment> for Summary {
    fn from(deployment: Deployment) -> Self {
        Self {
            custom_model_deployment_arn: deployment.arn,
            custom_model_deployment_name: deployment.name,
            model_arn: deployment.model_arn,
            created_at: Time(deployment.creation_time),
            status: deployment.status,
            last_updated_at: Time(deployment.last_updated_time),
            failure_message: deployment.failure_message,
        }
    }
}

/// List custom model deployments
#[utoipa::path(
    get, path = "/model-customization/custom-model-deployments", operation_id = "ListCustomModelDeployments",
    tag = "bedrock",
    params(
        ("createdAfter" = inline(Option<Time>), Query, description = "Only what was made later than this"),
        ("createdBefore" = inline(Option<Time>), Query, description = "Only what was made earlier than this"),
        ("nameContains" = inline(Option<ModelDeploymentName>), Query, description = "Only names with this in them; case does not matter"),
        ("maxResults" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "How many to return at most"),
        ("nextToken" = inline(Option<PaginationToken>), Query, description = "Where the page before ended"),
        ("sortBy" = inline(Option<SortBy>), Query, description = "What to sort by"),
        ("sortOrder" = inline(Option<SortOrder>), Query, description = "Newest first unless said otherwise"),
        ("statusEquals" = inline(Option<shapes::DeploymentStatus>), Query, description = "Only deployments in this state"),
        ("modelArnEquals" = inline(Option<CustomModelArn>), Query, description = "Only deployments of this model"),
    ),
    responses((status = 200, description = "One page of deployments", body = Response))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller, query: Query) -> Result<axum::Json<Response>> {
    let mut violations = Violations::default();
    let between = ("createdAfter", "createdBefore");
    let window = Window::read_between(&query, between, ModelDeploymentName, &mut violations);
    let status = query.get("statusEquals").map(|text| shapes::DeploymentStatus(text.to_string()));
    let model = query.get("modelArnEquals").map(|text| CustomModelArn(text.to_string()));
    violations.optional("statusEquals", status.as_ref());
    violations.optional("modelArnEquals", model.as_ref());
    violations.finish()?;

    let only = DeploymentFilter {
        status: status.and_then(|status| DeploymentStatus::parse(&status.0)),
        model_arn: model.map(|arn| arn.0),
    };
    let (status, model) = (only.status.map_or("", DeploymentStatus::as_str), only.model_arn.as_deref());
    let own = [&caller.account, "deployments", status, model.unwrap_or_default()];
    let (filter, scope) = window.filter(&own)?;
    let page = deployments::list(&app.db, &caller.account, &only, &filter).await?;
    Ok(axum::Json(Response {
        next_token: scope.token(page.next.as_ref()),
        model_deployment_summaries: page.items.into_iter().map(Summary::from).collect(),
    }))
}
