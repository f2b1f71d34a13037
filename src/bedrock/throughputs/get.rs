//! GetProvisionedModelThroughput.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::no_such_throughput;
use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::{self, CommitmentDuration, ProvisionedModelId, Time};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::throughputs::{self, Throughput};
use crate::store::{Commitment, ThroughputStatus};

/// Provisioned throughput as a listing shows it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ProvisionedModelSummary)]
pub struct Summary {
    provisioned_model_name: String,
    provisioned_model_arn: String,
    model_arn: String,
    /// Equal to `modelArn`: an update is done when it is answered.
    desired_model_arn: String,
    foundation_model_arn: String,
    model_units: i64,
    desired_model_units: i64,
    #[schema(value_type = shapes::ThroughputStatus)]
    status: ThroughputStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CommitmentDuration>)]
    commitment_duration: Option<Commitment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commitment_expiration_time: Option<Time>,
    creation_time: Time,
    last_modified_time: Time,
}

impl From<Throughput> for Summary {
    fn from(throughput: Throughput) -> Self {
        Self {
            provisioned_model_name: throughput.name,
            provisioned_model_arn: throughput.arn,
            desired_model_arn: throughput.model_arn.clone(),
            model_arn: throughput.model_arn,
            foundation_model_arn: throughput.foundation_model_arn,
            model_units: throughput.model_units,
            desired_model_units: throughput.model_units,
            status: throughput.status,
            commitment_duration: throughput.commitment,
            commitment_expiration_time: throughput.commitment_expiration_time.map(Time),
            creation_time: Time(throughput.creation_time),
            last_modified_time: Time(throughput.last_modified_time),
        }
    }
}

/// Provisioned throughput.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GetProvisionedModelThroughputResponse)]
pub struct Response {
    #[serde(flatten)]
    summary: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_message: Option<String>,
}

/// Get provisioned throughput
#[utoipa::path(
    get, path = "/provisioned-model-throughput/{provisionedModelId}", operation_id = "GetProvisionedModelThroughput",
    tag = "bedrock",
    params(("provisionedModelId" = inline(ProvisionedModelId), Path, description = "ARN or name")),
    responses((status = 200, description = "The throughput", body = Response))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(identifier): Segment,
) -> Result<axum::Json<Response>> {
    check("provisionedModelId", &ProvisionedModelId(identifier.clone()))?;
    let throughput = throughputs::find(&app.db, &caller.account, &identifier).await?;
    let throughput = throughput.ok_or_else(|| no_such_throughput(&identifier))?;
    let failure_message = throughput.failure_message.clone();
    Ok(axum::Json(Response { summary: throughput.into(), failure_message }))
}
