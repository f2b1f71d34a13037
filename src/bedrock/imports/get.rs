//! GetModelImportJob.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{ModelDataSource, ModelImportJobIdentifier, ModelImportJobStatus, no_such_job};
use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::{Time, VpcConfig};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::ImportStatus;
use crate::store::imports::{self, Import};

/// An import job.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GetModelImportJobResponse)]
pub struct Response {
    #[serde(skip_serializing_if = "Option::is_none")]
    job_arn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_name: Option<String>,
    imported_model_name: String,
    /// Only once the job is completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    imported_model_arn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role_arn: Option<String>,
    #[schema(value_type = ModelDataSource)]
    model_data_source: Value,
    #[schema(value_type = ModelImportJobStatus)]
    status: ImportStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_message: Option<String>,
    creation_time: Time,
    last_modified_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<VpcConfig>)]
    vpc_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    imported_model_kms_key_arn: Option<String>,
}

impl From<Import> for Response {
    fn from(job: Import) -> Self {
        Self {
            job_arn: job.arn,
            job_name: job.name,
            imported_model_name: job.model_name,
            imported_model_arn: Some(job.model_arn).filter(|_| job.status == ImportStatus::Completed),
            role_arn: job.role_arn,
            model_data_source: job.source.0,
            status: job.status,
            failure_message: job.failure_message,
            creation_time: Time(job.creation_time),
            last_modified_time: Time(job.last_modified_time),
            end_time: job.end_time.map(Time),
            vpc_config: job.vpc_config.map(|config| config.0),
            imported_model_kms_key_arn: job.kms_key_arn,
        }
    }
}

/// Get a model import job
#[utoipa::path(
    get, path = "/model-import-jobs/{jobIdentifier}", operation_id = "GetModelImportJob", tag = "bedrock",
    params(("jobIdentifier" = inline(ModelImportJobIdentifier), Path, description = "ARN or name")),
    responses((status = 200, description = "The job", body = Response))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(identifier): Segment,
) -> Result<axum::Json<Response>> {
    check("jobIdentifier", &ModelImportJobIdentifier(identifier.clone()))?;
    let job = imports::find_job(&app.db, &caller.account, &identifier).await?;
    Ok(axum::Json(job.ok_or_else(|| no_such_job(&identifier))?.into()))
}
