//! GetFoundationModel.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Details;
use crate::app::{App, models};
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::GetFoundationModelIdentifier;
use crate::error::{Error, Result};
use crate::http::Caller;
use crate::http::extract::Segment;

/// The model, one level down as in the contract.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GetFoundationModelResponse)]
pub struct Response {
    model_details: Details,
}

/// Get a foundation model
#[utoipa::path(
    get, path = "/foundation-models/{modelIdentifier}", operation_id = "GetFoundationModel", tag = "bedrock",
    params(("modelIdentifier" = inline(GetFoundationModelIdentifier), Path, description = "Id or ARN")),
    responses((status = 200, description = "The model", body = Response))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    _caller: Caller,
    Segment(identifier): Segment,
) -> Result<axum::Json<Response>> {
    check("modelIdentifier", &GetFoundationModelIdentifier(identifier.clone()))?;
    let model = models::foundation(&app, &identifier);
    let model = model.ok_or_else(|| {
        Error::not_found("Could not resolve the foundation model from the provided model identifier.")
    })?;
    Ok(axum::Json(Response { model_details: Details::of(model, &app.config.region) }))
}
