//! CreateCustomModelDeployment.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Response, answer};
use crate::app::App;
use crate::bedrock::arn::Place;
use crate::bedrock::constraint::{Shape, Violations, check, given};
use crate::bedrock::idempotency::digest;
use crate::bedrock::shapes::{
    CustomModelArn, CustomModelDeploymentDescription, IdempotencyToken, ModelDeploymentName, Tag, check_tag_count,
    stored_tags,
};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Json;
use crate::store::DeploymentStatus;
use crate::store::deployments::{self, Deployment};

/// What to serve, and under which name.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CreateCustomModelDeploymentRequest)]
pub struct Request {
    /// A name for the deployment.
    #[schema(required)]
    pub model_deployment_name: Option<ModelDeploymentName>,
    /// The model that answers; it must be active.
    #[schema(required)]
    pub model_arn: Option<CustomModelArn>,
    /// Echoed.
    pub description: Option<CustomModelDeploymentDescription>,
    /// Tags on the deployment.
    #[schema(max_items = 200)]
    pub tags: Option<Vec<Tag>>,
    /// The same token again gives the same deployment.
    pub client_request_token: Option<IdempotencyToken>,
}

impl Shape for Request {
    fn check(&self, _: &str, violations: &mut Violations) {
        violations.required("modelDeploymentName", self.model_deployment_name.as_ref());
        violations.required("modelArn", self.model_arn.as_ref());
        violations.optional("description", self.description.as_ref());
        violations.list("tags", self.tags.as_deref(), 0, 200);
        violations.optional("clientRequestToken", self.client_request_token.as_ref());
    }
}

/// Create a custom model deployment
///
/// It is `Creating` until the model's files were brought, checked and loaded, then `Active`; or `Failed`, with the
/// reason.
#[utoipa::path(
    post, path = "/model-customization/custom-model-deployments", operation_id = "CreateCustomModelDeployment",
    tag = "bedrock",
    request_body = Request,
    responses((status = 202, description = "The deployment is being made", body = Response))
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<Request>,
) -> Result<(StatusCode, axum::Json<Response>)> {
    check("", &request)?;
    let request_digest = digest(&request)?;
    let name = given(request.model_deployment_name, "modelDeploymentName")?.0;
    check_tag_count(request.tags.as_deref(), "tags", Some(&name))?;
    let id = app.clock.id();
    let now = app.clock.now();
    let deployment = Deployment {
        arn: Place { region: &app.config.region, account: &caller.account }.deployment(&id),
        id,
        account_id: caller.account,
        name,
        request_token: request.client_request_token.map(|token| token.0),
        request_digest,
        description: request.description.map(|text| text.0),
        model_arn: given(request.model_arn, "modelArn")?.0,
        status: DeploymentStatus::Creating,
        update_model_arn: None,
        update_status: None,
        failure_message: None,
        creation_time: now,
        last_updated_time: now,
    };
    let placed = deployments::insert(&app.db, &deployment, &stored_tags(request.tags)).await?;
    let placed = answer(placed, &deployment.name, &deployment.model_arn)?;
    app.deployment_accepted.notify_one();
    Ok((StatusCode::ACCEPTED, axum::Json(Response { custom_model_deployment_arn: placed.arn })))
}
