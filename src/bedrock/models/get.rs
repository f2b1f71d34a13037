//! GetCustomModel.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::no_such_model;
use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::{self, ModelIdentifier, Time, TrainingMetrics, ValidatorMetric, validator_metrics};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::custom_models::{self, CustomModel};
use crate::store::{CustomizationType, ModelStatus};

/// A custom model and how it came to be.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GetCustomModelResponse)]
pub struct Response {
    model_arn: String,
    model_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_arn: Option<String>,
    base_model_arn: String,
    #[schema(value_type = shapes::CustomizationType)]
    customization_type: CustomizationType,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_kms_key_arn: Option<String>,
    hyper_parameters: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<shapes::TrainingDataConfig>)]
    training_data_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<shapes::ValidationDataConfig>)]
    validation_data_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<shapes::OutputDataConfig>)]
    output_data_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    training_metrics: Option<TrainingMetrics>,
    validation_metrics: Vec<ValidatorMetric>,
    creation_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    customization_config: Option<Value>,
    #[schema(value_type = shapes::ModelStatus)]
    model_status: ModelStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_message: Option<String>,
}

impl From<CustomModel> for Response {
    fn from(model: CustomModel) -> Self {
        Self {
            model_arn: model.arn,
            model_name: model.name,
            job_name: model.job_name,
            job_arn: model.job_arn,
            base_model_arn: model.base_model_arn,
            customization_type: model.customization_type,
            model_kms_key_arn: model.kms_key_arn,
            hyper_parameters: model.hyper_parameters.0,
            training_data_config: model.training_data.map(|data| data.0),
            validation_data_config: model.validation_data.map(|data| data.0),
            output_data_config: model.output_data.map(|data| data.0),
            training_metrics: model.training_loss.map(|training_loss| TrainingMetrics { training_loss }),
            validation_metrics: validator_metrics(model.validation_losses.as_ref().map(|losses| losses.as_slice())),
            creation_time: Time(model.creation_time),
            customization_config: model.customization_config.map(|config| config.0),
            model_status: model.status,
            failure_message: model.failure_message,
        }
    }
}

/// Get a custom model
#[utoipa::path(
    get, path = "/custom-models/{modelIdentifier}", operation_id = "GetCustomModel", tag = "bedrock",
    params(("modelIdentifier" = inline(ModelIdentifier), Path, description = "ARN or name")),
    responses((status = 200, description = "The model", body = Response))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(identifier): Segment,
) -> Result<axum::Json<Response>> {
    check("modelIdentifier", &ModelIdentifier(identifier.clone()))?;
    let model = custom_models::find(&app.db, &caller.account, &identifier).await?;
    Ok(axum::Json(model.ok_or_else(|| no_such_model(&identifier))?.into()))
}
