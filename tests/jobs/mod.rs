//! The store and the queue, on both databases.

pub(crate) mod database;

pub(crate) mod imports;
mod listing;
mod names;
mod queue;
mod root_keys;
mod scratch;
mod serving;
pub(crate) mod silence;
mod store;
mod worlds;

use tunesmith::store::Json;
use tunesmith::store::custom_models::CustomModel;
use tunesmith::store::jobs::{Job, JobSpec};
use tunesmith::store::{CustomizationType, ModelStatus};

pub(crate) const ACCOUNT: &str = "111111111111";
pub(crate) const STRANGER: &str = "222222222222";

/// A job of [`ACCOUNT`] that nothing stands in the way of: name, token and id derive from `n`.
pub(crate) fn spec(n: usize) -> JobSpec {
    let id = format!("job{n:09}");
    JobSpec {
        arn: format!("arn:aws:bedrock:us-east-1:{ACCOUNT}:model-customization-job/tunesmith.tiny-v1:0/{id}"),
        id,
        account_id: ACCOUNT.into(),
        name: format!("job-{n}"),
        request_token: Some(format!("token-{n}")),
        request_digest: format!("digest-{n}"),
        customization_type: CustomizationType::FineTuning,
        base_model_id: "tunesmith.tiny-v1:0".into(),
        base_model_arn: "arn:aws:bedrock:us-east-1::foundation-model/tunesmith.tiny-v1:0".into(),
        foundation_model_arn: "arn:aws:bedrock:us-east-1::foundation-model/tunesmith.tiny-v1:0".into(),
        output_model_name: format!("model-{n}"),
        role_arn: format!("arn:aws:iam::{ACCOUNT}:role/tuner"),
        kms_key_arn: None,
        hyper_parameters: Json([("epochCount".into(), "1e0".into())].into()),
        training_data: Json(serde_json::json!({"s3Uri": "s3://data/train.jsonl"})),
        validation_data: None,
        output_data: Json(serde_json::json!({"s3Uri": "s3://data/out/"})),
        vpc_config: None,
        customization_config: None,
        model_tags: Json(Vec::new()),
        seed: 7,
        creation_time: 1_000_000 + i64::try_from(n).unwrap(),
    }
}

/// The model that `job` makes.
pub(crate) fn model_of(job: &Job, now: i64) -> CustomModel {
    let spec = &job.spec;
    CustomModel {
        id: spec.id.replace("job", "mod"),
        account_id: spec.account_id.clone(),
        arn: spec.arn.replace("model-customization-job", "custom-model"),
        name: spec.output_model_name.clone(),
        job_id: Some(spec.id.clone()),
        job_arn: Some(spec.arn.clone()),
        job_name: Some(spec.name.clone()),
        customization_type: spec.customization_type,
        base_model_id: spec.base_model_id.clone(),
        base_model_arn: spec.base_model_arn.clone(),
        foundation_model_arn: spec.foundation_model_arn.clone(),
        kms_key_arn: None,
        hyper_parameters: spec.hyper_parameters.clone(),
        training_data: Some(spec.training_data.clone()),
        validation_data: None,
        output_data: Some(spec.output_data.clone()),
        customization_config: None,
        training_loss: Some(0.25),
        validation_losses: Some(Json(vec![0.5])),
        artifact_uri: format!("{}/adapter", spec.output_prefix().unwrap()),
        artifact_digests: Json([("adapter_model.safetensors".into(), "00".into())].into()),
        status: ModelStatus::Active,
        failure_message: None,
        creation_time: now,
    }
}
