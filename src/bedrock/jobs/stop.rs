//! StopModelCustomizationJob. When it returns, the job reads `Stopping` or `Stopped`: Terraform counts on it.

use std::sync::Arc;

use axum::extract::State;

use super::no_such_job;
use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::ModelCustomizationJobIdentifier;
use crate::error::{Error, Kind, Result};
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::jobs::{self, StopRequest};

/// Stop a model customization job
///
/// No model comes out of a stopped job, and it cannot be resumed. A job that is stopping already is no error.
#[utoipa::path(
    post, path = "/model-customization-jobs/{jobIdentifier}/stop", operation_id = "StopModelCustomizationJob",
    tag = "bedrock",
    params(("jobIdentifier" = inline(ModelCustomizationJobIdentifier), Path, description = "ARN or name")),
    responses((status = 200, description = "The job is stopping"))
)]
pub async fn stop(State(app): State<Arc<App>>, caller: Caller, Segment(identifier): Segment) -> Result<()> {
    check("jobIdentifier", &ModelCustomizationJobIdentifier(identifier.clone()))?;
    match jobs::request_stop(&app.db, &caller.account, &identifier, app.clock.now(), app.clock.database()).await? {
        StopRequest::Accepted | StopRequest::AlreadyStopping => Ok(()),
        StopRequest::NotFound => Err(no_such_job(&identifier)),
        StopRequest::Ended(status) => {
            Err(Error::new(Kind::Conflict, format!("The job is {status}: only a job in progress can be stopped")))
        }
    }
}
