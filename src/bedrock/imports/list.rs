//! ListModelImportJobs.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::ModelImportJobStatus;
use crate::app::App;
use crate::bedrock::constraint::Violations;
use crate::bedrock::listing::Window;
use crate::bedrock::shapes::{JobName, Time};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Query;
use crate::store::ImportStatus;
use crate::store::imports::{self, Import};

/// One page of import jobs.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ListModelImportJobsResponse)]
pub struct Response {
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    model_import_job_summaries: Vec<Summary>,
}

/// What a listing says of an import job.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ModelImportJobSummary)]
pub struct Summary {
    job_arn: String,
    job_name: String,
    #[schema(value_type = ModelImportJobStatus)]
    status: ImportStatus,
    last_modified_time: Time,
    creation_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Time>,
    /// Only once the job is completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    imported_model_arn: Option<String>,
    imported_model_name: String,
}

impl From<Import> for Summary {
    fn from(job: Import) -> Self {
        Self {
            job_arn: job.arn.unwrap_or_default(),
            job_name: job.name.unwrap_or_default(),
            status: job.status,
            last_modified_time: Time(job.last_modified_time),
            creation_time: Time(job.creation_time),
            end_time: job.end_time.map(Time),
            imported_model_arn: Some(job.model_arn).filter(|_| job.status == ImportStatus::Completed),
            imported_model_name: job.model_name,
        }
    }
}

/// List model import jobs
#[utoipa::path(
    get, path = "/model-import-jobs", operation_id = "ListModelImportJobs", tag = "bedrock",
    params(
        Window,
        ("nameContains" = inline(Option<JobName>), Query, description = "Only names with this in them; case does not matter"),
        ("statusEquals" = inline(Option<ModelImportJobStatus>), Query, description = "Only jobs in this state"),
    ),
    responses((status = 200, description = "One page of jobs", body = Response))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller, query: Query) -> Result<axum::Json<Response>> {
    let mut violations = Violations::default();
    let window = Window::read(&query, JobName, &mut violations);
    let status = query.get("statusEquals").map(|text| ModelImportJobStatus(text.to_string()));
    violations.optional("statusEquals", status.as_ref());
    violations.finish()?;

    let status = status.and_then(|status| ImportStatus::parse(&status.0));
    let (filter, scope) = window.filter(&[&caller.account, "imports", status.map_or("", ImportStatus::as_str)])?;
    let page = imports::list_jobs(&app.db, &caller.account, status, &filter).await?;
    Ok(axum::Json(Response {
        next_token: scope.token(page.next.as_ref()),
        model_import_job_summaries: page.items.into_iter().map(Summary::from).collect(),
    }))
}
