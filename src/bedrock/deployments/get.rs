//! GetCustomModelDeployment.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::no_such_deployment;
use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::{self, CustomModelDeploymentIdentifier, Time};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::deployments::{self, Deployment};
use crate::store::{DeploymentStatus, UpdateStatus};

/// A deployment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GetCustomModelDeploymentResponse)]
pub struct Response {
    custom_model_deployment_arn: String,
    model_deployment_name: String,
    model_arn: String,
    created_at: Time,
    #[schema(value_type = shapes::DeploymentStatus)]
    status: DeploymentStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// Absent before the first update.
    #[serde(skip_serializing_if = "Option::is_none")]
    update_details: Option<UpdateDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_message: Option<String>,
    last_updated_at: Time,
}

/// The last update of a deployment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CustomModelDeploymentUpdateDetails)]
pub struct UpdateDetails {
    model_arn: String,
    #[schema(value_type = shapes::UpdateStatus)]
    update_status: UpdateStatus,
}

impl From<Deployment> for Response {
    fn from(deployment: Deployment) -> Self {
        let update = deployment.update_model_arn.zip(deployment.update_status);
        Self {
            custom_model_deployment_arn: deployment.arn,
            model_deployment_name: deployment.name,
            model_arn: deployment.model_arn,
            created_at: Time(deployment.creation_time),
            status: deployment.status,
            description: deployment.description,
            update_details: update.map(|(model_arn, update_status)| UpdateDetails { model_arn, update_status }),
            failure_message: deployment.failure_message,
            last_updated_at: Time(deployment.last_updated_time),
        }
    }
}

/// Get a custom model deployment
#[utoipa::path(
    get, path = "/model-customization/custom-model-deployments/{customModelDeploymentIdentifier}",
    operation_id = "GetCustomModelDeployment", tag = "bedrock",
    params(("customModelDeploymentIdentifier" = inline(CustomModelDeploymentIdentifier), Path, description = "ARN or name")),
    responses((status = 200, description = "The deployment", body = Response))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(identifier): Segment,
) -> Result<axum::Json<Response>> {
    check("customModelDeploymentIdentifier", &CustomModelDeploymentIdentifier(identifier.clone()))?;
    let deployment = deployments::find(&app.db, &caller.account, &identifier).await?;
    Ok(axum::Json(deployment.ok_or_else(|| no_such_deployment(&identifier))?.into()))
}
