//! DeleteCustomModelDeployment. The model stays.

use std::sync::Arc;

use axum::extract::State;

use super::no_such_deployment;
use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::CustomModelDeploymentIdentifier;
use crate::error::{Error, Kind, Result};
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::deployments::{self, Deleted};

/// Delete a custom model deployment
///
/// Refused while it is being created or updated. Answers under way are given to their end.
#[utoipa::path(
    delete, path = "/model-customization/custom-model-deployments/{customModelDeploymentIdentifier}",
    operation_id = "DeleteCustomModelDeployment", tag = "bedrock",
    params(("customModelDeploymentIdentifier" = inline(CustomModelDeploymentIdentifier), Path, description = "ARN or name")),
    responses((status = 200, description = "The deployment is gone"))
)]
pub async fn delete(State(app): State<Arc<App>>, caller: Caller, Segment(identifier): Segment) -> Result<()> {
    check("customModelDeploymentIdentifier", &CustomModelDeploymentIdentifier(identifier.clone()))?;
    match deployments::delete(&app.db, &caller.account, &identifier).await? {
        Deleted::Done => Ok(()),
        Deleted::NotFound => Err(no_such_deployment(&identifier)),
        Deleted::UnderWay => Err(Error::new(
            Kind::Conflict,
            "The deployment is being created or updated: it can be deleted once that has ended",
        )),
    }
}
