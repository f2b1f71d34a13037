//! UpdateCustomModelDeployment: puts another model behind the same ARN and name.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Response, answer};
use crate::app::App;
use crate::bedrock::constraint::{Shape, Violations, given};
use crate::bedrock::shapes::{CustomModelArn, CustomModelDeploymentIdentifier};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::{Json, Segment};
use crate::store::deployments;

/// Which model is to answer.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = UpdateCustomModelDeploymentRequest)]
pub struct Request {
    /// The model that is to answer; it must be active.
    #[schema(required)]
    pub model_arn: Option<CustomModelArn>,
}

/// Update a custom model deployment
///
/// The model before answers until the new one is loaded (`updateDetails`), and what is under way then ends on it.
#[utoipa::path(
    patch, path = "/model-customization/custom-model-deployments/{customModelDeploymentIdentifier}",
    operation_id = "UpdateCustomModelDeployment", tag = "bedrock",
    params(("customModelDeploymentIdentifier" = inline(CustomModelDeploymentIdentifier), Path, description = "ARN or name")),
    request_body = Request,
    responses((status = 202, description = "The new model is being made ready", body = Response))
)]
pub async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(identifier): Segment,
    Json(request): Json<Request>,
) -> Result<(StatusCode, axum::Json<Response>)> {
    let mut violations = Violations::default();
    CustomModelDeploymentIdentifier(identifier.clone()).check("customModelDeploymentIdentifier", &mut violations);
    violations.required("modelArn", request.model_arn.as_ref());
    violations.finish()?;
    let model_arn = given(request.model_arn, "modelArn")?.0;
    let placed = deployments::update(&app.db, &caller.account, &identifier, &model_arn, app.clock.now()).await?;
    let deployment = answer(placed, &identifier, &model_arn)?;
    app.deployment_accepted.notify_one();
    Ok((StatusCode::ACCEPTED, axum::Json(Response { custom_model_deployment_arn: deployment.arn })))
}
