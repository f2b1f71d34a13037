//! GetModelCustomizationJob. What does not apply is left out, never null: Terraform compares.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{StatusDetails, no_such_job};
use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::{
    self, ModelCustomizationJobIdentifier, Time, TrainingMetrics, ValidatorMetric, validator_metrics,
};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::jobs::{self, Job};
use crate::store::{CustomizationType, Status};

/// A job, as asked for and as it stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GetModelCustomizationJobResponse)]
pub struct Response {
    job_arn: String,
    job_name: String,
    output_model_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_model_arn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_request_token: Option<String>,
    role_arn: String,
    #[schema(value_type = shapes::JobStatus)]
    status: Status,
    status_details: StatusDetails,
    /// Why the job failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_message: Option<String>,
    creation_time: Time,
    last_modified_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Time>,
    base_model_arn: String,
    hyper_parameters: BTreeMap<String, String>,
    #[schema(value_type = shapes::TrainingDataConfig)]
    training_data_config: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<shapes::ValidationDataConfig>)]
    validation_data_config: Option<Value>,
    #[schema(value_type = shapes::OutputDataConfig)]
    output_data_config: Value,
    #[schema(value_type = shapes::CustomizationType)]
    customization_type: CustomizationType,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_model_kms_key_arn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    training_metrics: Option<TrainingMetrics>,
    /// One for each validator, once the job is completed.
    validation_metrics: Vec<ValidatorMetric>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<shapes::VpcConfig>)]
    vpc_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    customization_config: Option<Value>,
}

impl From<Job> for Response {
    fn from(job: Job) -> Self {
        let status_details = StatusDetails::of(&job);
        let spec = job.spec;
        Self {
            job_arn: spec.arn,
            job_name: spec.name,
            output_model_name: spec.output_model_name,
            output_model_arn: job.output_model_arn,
            client_request_token: spec.request_token,
            role_arn: spec.role_arn,
            status: job.status,
            status_details,
            failure_message: job.failure_message,
            creation_time: Time(spec.creation_time),
            last_modified_time: Time(job.last_modified_time),
            end_time: job.end_time.map(Time),
            base_model_arn: spec.foundation_model_arn,
            hyper_parameters: spec.hyper_parameters.0,
            training_data_config: spec.training_data.0,
            validation_data_config: spec.validation_data.map(|data| data.0),
            output_data_config: spec.output_data.0,
            customization_type: spec.customization_type,
            output_model_kms_key_arn: spec.kms_key_arn,
            training_metrics: job.training_loss.map(|training_loss| TrainingMetrics { training_loss }),
            validation_metrics: validator_metrics(job.validation_losses.as_ref().map(|losses| losses.as_slice())),
            vpc_config: spec.vpc_config.map(|config| config.0),
            customization_config: spec.customization_config.map(|config| config.0),
        }
    }
}

/// Get a model customization job
#[utoipa::path(
    get, path = "/model-customization-jobs/{jobIdentifier}", operation_id = "GetModelCustomizationJob", tag = "bedrock",
    params(("jobIdentifier" = inline(ModelCustomizationJobIdentifier), Path, description = "ARN or name")),
    responses((status = 200, description = "The job", body = Response))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(identifier): Segment,
) -> Result<axum::Json<Response>> {
    check("jobIdentifier", &ModelCustomizationJobIdentifier(identifier.clone()))?;
    let job = jobs::find(&app.db, &caller.account, &identifier).await?;
    Ok(axum::Json(job.ok_or_else(|| no_such_job(&identifier))?.into()))
}
