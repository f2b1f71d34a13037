//! DeleteCustomModel. The job that made the model stays, and so do its objects: they are the caller's.

use std::sync::Arc;

use axum::extract::State;

use super::no_such_model;
use crate::app::App;
use crate::app::artifact::{self, Files};
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::ModelIdentifier;
use crate::error::{Error, Kind, Result};
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::custom_models::{self, Deleted};

/// Delete a custom model
#[utoipa::path(
    delete, path = "/custom-models/{modelIdentifier}", operation_id = "DeleteCustomModel", tag = "bedrock",
    params(("modelIdentifier" = inline(ModelIdentifier), Path, description = "ARN or name")),
    responses((status = 200, description = "The model is gone"))
)]
pub async fn delete(State(app): State<Arc<App>>, caller: Caller, Segment(identifier): Segment) -> Result<()> {
    check("modelIdentifier", &ModelIdentifier(identifier.clone()))?;
    match custom_models::delete(&app.db, &caller.account, &identifier).await? {
        Deleted::Done(model) => {
            artifact::forget(&app, &Files::from(&*model)).await;
            Ok(())
        }
        Deleted::NotFound => Err(no_such_model(&identifier)),
        Deleted::InUse => Err(Error::new(
            Kind::Conflict,
            "The model is served by a custom model deployment or provisioned throughput: delete those first",
        )),
    }
}
