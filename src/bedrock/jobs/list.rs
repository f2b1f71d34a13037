//! ListModelCustomizationJobs.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::StatusDetails;
use crate::app::App;
use crate::bedrock::constraint::Violations;
use crate::bedrock::listing::Window;
use crate::bedrock::shapes::{self, JobName, JobStatus, Time};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Query;
use crate::store::jobs::{self, Job};
use crate::store::{CustomizationType, Status};

/// One page of jobs.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ListModelCustomizationJobsResponse)]
pub struct Response {
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    model_customization_job_summaries: Vec<Summary>,
}

/// What a listing says of a job.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ModelCustomizationJobSummary)]
pub struct Summary {
    job_arn: String,
    base_model_arn: String,
    job_name: String,
    #[schema(value_type = JobStatus)]
    status: Status,
    status_details: StatusDetails,
    last_modified_time: Time,
    creation_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom_model_arn: Option<String>,
    custom_model_name: String,
    #[schema(value_type = shapes::CustomizationType)]
    customization_type: CustomizationType,
}

impl From<Job> for Summary {
    fn from(job: Job) -> Self {
        Self {
            status_details: StatusDetails::of(&job),
            job_arn: job.spec.arn,
            base_model_arn: job.spec.base_model_arn,
            job_name: job.spec.name,
            status: job.status,
            last_modified_time: Time(job.last_modified_time),
            creation_time: Time(job.spec.creation_time),
            end_time: job.end_time.map(Time),
            custom_model_arn: job.output_model_arn,
            custom_model_name: job.spec.output_model_name,
            customization_type: job.spec.customization_type,
        }
    }
}

/// List model customization jobs
#[utoipa::path(
    get, path = "/model-customization-jobs", operation_id = "ListModelCustomizationJobs", tag = "bedrock",
    params(
        Window,
        ("nameContains" = inline(Option<JobName>), Query, description = "Only names with this in them; case does not matter"),
        ("statusEquals" = inline(Option<JobStatus>), Query, description = "Only jobs in this state")),
    responses((status = 200, description = "One page of jobs", body = Response))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller, query: Query) -> Result<axum::Json<Response>> {
    let mut violations = Violations::default();
    let window = Window::read(&query, JobName, &mut violations);
    let status = query.get("statusEquals").map(|text| JobStatus(text.to_string()));
    violations.optional("statusEquals", status.as_ref());
    violations.finish()?;

    let status = status.and_then(|status| Status::parse(&status.0));
    let (filter, scope) = window.filter(&[&caller.account, "jobs", status.map_or("", Status::as_str)])?;
    let page = jobs::list(&app.db, &caller.account, status, &filter).await?;
    Ok(axum::Json(Response {
        next_token: scope.token(page.next.as_ref()),
        model_customization_job_summaries: page.items.into_iter().map(Summary::from).collect(),
    }))
}
