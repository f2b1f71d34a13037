//! GetFoundationModelAvailability. What is installed is available to every account: there is no agreement
//! to sign and no region but ours.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::BedrockModelId;
use crate::error::{Error, Result};
use crate::http::Caller;
use crate::http::extract::Segment;

/// Whether a model may be used.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GetFoundationModelAvailabilityResponse)]
pub struct Response {
    model_id: String,
    agreement_availability: Agreement,
    /// `AUTHORIZED`.
    authorization_status: &'static str,
    /// `AVAILABLE`.
    entitlement_availability: &'static str,
    /// `AVAILABLE`.
    region_availability: &'static str,
}

/// Whether there is an agreement about a model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AgreementAvailability)]
pub struct Agreement {
    /// `AVAILABLE`.
    status: &'static str,
}

/// Get the availability of a foundation model
#[utoipa::path(
    get, path = "/foundation-model-availability/{modelId}", operation_id = "GetFoundationModelAvailability",
    tag = "bedrock",
    params(("modelId" = inline(BedrockModelId), Path, description = "Id")),
    responses((status = 200, description = "Whether the model may be used", body = Response))
)]
pub async fn get(State(app): State<Arc<App>>, _caller: Caller, Segment(id): Segment) -> Result<axum::Json<Response>> {
    check("modelId", &BedrockModelId(id.clone()))?;
    let model = app.registry.get(&id).ok_or_else(|| {
        Error::not_found("Could not resolve the foundation model from the provided model identifier.")
    })?;
    Ok(axum::Json(Response {
        model_id: model.id.clone(),
        agreement_availability: Agreement { status: "AVAILABLE" },
        authorization_status: "AUTHORIZED",
        entitlement_availability: "AVAILABLE",
        region_availability: "AVAILABLE",
    }))
}
