//! DeleteImportedModel. The job that made the model stays, and so do its files: they are the caller's.

use std::sync::Arc;

use axum::extract::State;

use super::{ImportedModelIdentifier, no_such_model};
use crate::app::App;
use crate::app::artifact::{self, Files};
use crate::bedrock::constraint::check;
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::imported_models;

/// Delete an imported model
#[utoipa::path(
    delete, path = "/imported-models/{modelIdentifier}", operation_id = "DeleteImportedModel", tag = "bedrock",
    params(("modelIdentifier" = inline(ImportedModelIdentifier), Path, description = "ARN or name")),
    responses((status = 200, description = "The model is gone"))
)]
pub async fn delete(State(app): State<Arc<App>>, caller: Caller, Segment(identifier): Segment) -> Result<()> {
    check("modelIdentifier", &ImportedModelIdentifier(identifier.clone()))?;
    let gone = imported_models::delete(&app.db, &caller.account, &identifier).await?;
    let gone = gone.ok_or_else(|| no_such_model(&identifier))?;
    artifact::forget(&app, &Files::from(&gone)).await;
    Ok(())
}
