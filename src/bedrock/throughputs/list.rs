//! ListProvisionedModelThroughputs: the one path of the family that ends in `s`.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::get::Summary;
use crate::app::App;
use crate::bedrock::constraint::Violations;
use crate::bedrock::listing::Window;
use crate::bedrock::shapes::{self, ModelArn, ProvisionedModelName};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Query;
use crate::store::ThroughputStatus;
use crate::store::throughputs::{self, ThroughputFilter};

/// One page of provisioned throughput.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ListProvisionedModelThroughputsResponse)]
pub struct Response {
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    provisioned_model_summaries: Vec<Summary>,
}

/// List provisioned throughput
#[utoipa::path(
    get, path = "/provisioned-model-throughputs", operation_id = "ListProvisionedModelThroughputs", tag = "bedrock",
    params(
        Window,
        ("nameContains" = inline(Option<ProvisionedModelName>), Query, description = "Only names with this in them; case does not matter"),
        ("statusEquals" = inline(Option<shapes::ThroughputStatus>), Query, description = "Only throughput in this state"),
        ("modelArnEquals" = inline(Option<ModelArn>), Query, description = "Only throughput of this model"),
    ),
    responses((status = 200, description = "One page of provisioned throughput", body = Response))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller, query: Query) -> Result<axum::Json<Response>> {
    let mut violations = Violations::default();
    let window = Window::read(&query, ProvisionedModelName, &mut violations);
    let status = query.get("statusEquals").map(|text| shapes::ThroughputStatus(text.to_string()));
    let model = query.get("modelArnEquals").map(|text| ModelArn(text.to_string()));
    violations.optional("statusEquals", status.as_ref());
    violations.optional("modelArnEquals", model.as_ref());
    violations.finish()?;

    let only = ThroughputFilter {
        status: status.and_then(|status| ThroughputStatus::parse(&status.0)),
        model_arn: model.map(|arn| arn.0),
    };
    let (status, model) = (only.status.map_or("", ThroughputStatus::as_str), only.model_arn.as_deref());
    let own = [&caller.account, "throughputs", status, model.unwrap_or_default()];
    let (filter, scope) = window.filter(&own)?;
    let page = throughputs::list(&app.db, &caller.account, &only, &filter).await?;
    Ok(axum::Json(Response {
        next_token: scope.token(page.next.as_ref()),
        provisioned_model_summaries: page.items.into_iter().map(Summary::from).collect(),
    }))
}
