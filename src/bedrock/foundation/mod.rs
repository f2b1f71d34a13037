//! Foundation models: the bases that can be customized and asked.

pub mod availability;
pub mod get;
pub mod list;

use serde::Serialize;
use utoipa::ToSchema;

use super::arn;
use super::shapes::{InferenceType, Modality, ModelCustomization};
use crate::models::{Customization, FoundationModel};

/// A foundation model.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = FoundationModelSummary)]
pub struct Details {
    model_arn: String,
    model_id: String,
    model_name: String,
    provider_name: String,
    #[schema(value_type = Vec<Modality>)]
    input_modalities: Vec<&'static str>,
    #[schema(value_type = Vec<Modality>)]
    output_modalities: Vec<&'static str>,
    response_streaming_supported: bool,
    #[schema(value_type = Vec<ModelCustomization>)]
    customizations_supported: Vec<&'static str>,
    #[schema(value_type = Vec<InferenceType>)]
    inference_types_supported: Vec<&'static str>,
    model_lifecycle: Lifecycle,
}

/// Whether a model is current.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FoundationModelLifecycle)]
pub struct Lifecycle {
    /// `ACTIVE`.
    status: &'static str,
}

impl Details {
    fn of(model: &FoundationModel, region: &str) -> Self {
        Self {
            model_arn: arn::foundation_model(region, &model.id),
            model_id: model.id.clone(),
            model_name: model.name.clone(),
            provider_name: model.provider.clone(),
            input_modalities: vec!["TEXT"],
            output_modalities: vec!["TEXT"],
            response_streaming_supported: true,
            customizations_supported: model.customizations.iter().copied().map(Customization::name).collect(),
            inference_types_supported: vec!["ON_DEMAND", "PROVISIONED"],
            model_lifecycle: Lifecycle { status: "ACTIVE" },
        }
    }
}
