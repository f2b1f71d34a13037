//! ListFoundationModels: not paged.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Details;
use crate::app::App;
use crate::bedrock::constraint::Violations;
use crate::bedrock::shapes::{InferenceType, Modality, ModelCustomization, Provider};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Query;

/// All foundation models that fit.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ListFoundationModelsResponse)]
pub struct Response {
    model_summaries: Vec<Details>,
}

/// List foundation models
#[utoipa::path(
    get, path = "/foundation-models", operation_id = "ListFoundationModels", tag = "bedrock",
    params(
        ("byProvider" = inline(Option<Provider>), Query, description = "Only this provider's; case does not matter"),
        ("byCustomizationType" = inline(Option<ModelCustomization>), Query, description = "Only what can be customized so"),
        ("byOutputModality" = inline(Option<Modality>), Query, description = "Only what writes this"),
        ("byInferenceType" = inline(Option<InferenceType>), Query, description = "Only what can be asked so"),
    ),
    responses((status = 200, description = "The models", body = Response))
)]
pub async fn list(State(app): State<Arc<App>>, _caller: Caller, query: Query) -> Result<axum::Json<Response>> {
    let text = |name: &str| query.get(name).map(str::to_string);
    // A client that encodes its query as a form writes a space as "+"; no provider has a plus in its name.
    let provider = text("byProvider").map(|name| Provider(name.replace('+', " ")));
    let customization = text("byCustomizationType").map(ModelCustomization);
    let modality = text("byOutputModality").map(Modality);
    let inference = text("byInferenceType").map(InferenceType);
    let mut violations = Violations::default();
    violations.optional("byProvider", provider.as_ref());
    violations.optional("byCustomizationType", customization.as_ref());
    violations.optional("byOutputModality", modality.as_ref());
    violations.optional("byInferenceType", inference.as_ref());
    violations.finish()?;

    let has = |asked: Option<&String>, there: &[&str]| asked.is_none_or(|asked| there.contains(&asked.as_str()));
    let model_summaries = app
        .registry
        .all()
        .map(|model| Details::of(model, &app.config.region))
        .filter(|model| provider.as_ref().is_none_or(|asked| asked.0.eq_ignore_ascii_case(&model.provider_name)))
        .filter(|model| has(customization.as_ref().map(|asked| &asked.0), &model.customizations_supported))
        .filter(|model| has(modality.as_ref().map(|asked| &asked.0), &model.output_modalities))
        .filter(|model| has(inference.as_ref().map(|asked| &asked.0), &model.inference_types_supported))
        .collect();
    Ok(axum::Json(Response { model_summaries }))
}
