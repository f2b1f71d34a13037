//! UpdateProvisionedModelThroughput: another name, another model, or both.

use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{answer, no_such_throughput, served};
use crate::app::App;
use crate::bedrock::constraint::{Shape, Violations};
use crate::bedrock::shapes::{ModelIdentifier, ProvisionedModelId, ProvisionedModelName};
use crate::error::{Error, Result};
use crate::http::Caller;
use crate::http::extract::{Json, Segment};
use crate::store::throughputs;

/// What is to change.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = UpdateProvisionedModelThroughputRequest)]
pub struct Request {
    /// The new name.
    pub desired_provisioned_model_name: Option<ProvisionedModelName>,
    /// The model that answers from now on: of a custom model its base, or another model of the same base.
    pub desired_model_id: Option<ModelIdentifier>,
}

/// Update provisioned throughput
#[utoipa::path(
    patch, path = "/provisioned-model-throughput/{provisionedModelId}",
    operation_id = "UpdateProvisionedModelThroughput", tag = "bedrock",
    params(("provisionedModelId" = inline(ProvisionedModelId), Path, description = "ARN or name")),
    request_body = Request,
    responses((status = 200, description = "The throughput is changed"))
)]
pub async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(identifier): Segment,
    Json(request): Json<Request>,
) -> Result<()> {
    let mut violations = Violations::default();
    ProvisionedModelId(identifier.clone()).check("provisionedModelId", &mut violations);
    violations.optional("desiredProvisionedModelName", request.desired_provisioned_model_name.as_ref());
    violations.optional("desiredModelId", request.desired_model_id.as_ref());
    violations.finish()?;

    let there = throughputs::find(&app.db, &caller.account, &identifier).await?;
    let mut wanted = there.ok_or_else(|| no_such_throughput(&identifier))?;
    if let Some(name) = request.desired_provisioned_model_name {
        wanted.name = name.0;
    }
    if let Some(model) = request.desired_model_id {
        let model = served(&app, &caller.account, &model.0).await?;
        if model.model_arn != wanted.model_arn {
            if !wanted.is_custom() {
                return Err(Error::validation(
                    "The throughput serves a foundation model, which cannot be changed: create another throughput",
                ));
            }
            if model.foundation_model_arn != wanted.foundation_model_arn {
                return Err(Error::validation(format!(
                    "The throughput can only move to a model of the same base, {}",
                    wanted.foundation_model_arn
                )));
            }
        }
        wanted.model_arn = model.model_arn;
    }
    wanted.last_modified_time = app.clock.now();
    let placed = throughputs::update(&app.db, &wanted).await?;
    answer(placed, &wanted).map(drop)
}
