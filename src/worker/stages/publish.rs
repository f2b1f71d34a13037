//! Makes the result visible. First everything is uploaded under the attempt; then one statement decides
//! that these outputs are the result; then they are put at their final keys, and one transaction adds
//! the model and completes the job. An attempt that finds the decision made by another only finishes
//! the last part, with that attempt's bytes.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::halt::{Halt, Reason};
use super::super::retry::retry_unavailable;
use super::super::transfer;
use crate::app::layout::Layout;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::jobs::{Claim, Held};
use crate::objects::{Folder, Objects};
use crate::store::custom_models::CustomModel;
use crate::store::jobs::JobSpec;
use crate::store::{Json, ModelStatus};
use crate::train::Summary;

/// What was decided: stored with the job, so that any attempt can finish publishing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Decision {
    /// The twelve characters that will end the model's ARN.
    pub(crate) model_id: String,
    /// The outputs.
    pub(crate) outputs: Folder,
    /// The folder among the outputs that inference loads: `adapter` or `model`.
    pub(crate) artifact: String,
    /// Last training loss.
    pub(crate) training_loss: Option<f64>,
    /// Last validation losses, one per validator.
    pub(crate) validation_losses: Vec<f64>,
}

/// What an earlier attempt, or this one, decided.
pub(crate) fn decided(claim: &Claim) -> Result<Option<(i64, Decision)>> {
    let (Some(attempt), Some(value)) = (claim.job.published_attempt, &claim.job.published) else { return Ok(None) };
    Ok(Some((attempt, serde_json::from_value(value.0.clone())?)))
}

/// What publishing needs of an attempt.
pub(crate) struct Publisher<'a> {
    pub(crate) claim: &'a Claim,
    pub(crate) objects: &'a Objects,
    pub(crate) layout: &'a Layout,
    pub(crate) clock: &'a Clock,
    pub(crate) halt: &'a Halt,
}

impl Publisher<'_> {
    /// Uploads `outputs` under this attempt and decides that they are the result.
    pub(crate) async fn decide(&self, outputs: &Path, summary: &Summary) -> Result<Decision> {
        let listing = transfer::folder(outputs).await?;
        let to = self.layout.attempt_outputs(self.claim.attempt());
        transfer::upload(self.objects, self.halt, outputs, &listing, &to, &self.layout.put()).await?;
        let decision = Decision {
            model_id: self.clock.id(),
            outputs: listing,
            training_loss: Some(summary.training_loss).filter(|loss| loss.is_finite()),
            validation_losses: summary.validation_losses.clone(),
            artifact: folder_name(outputs, &summary.artifact)?,
        };
        let value = serde_json::to_value(&decision)?;
        match retry_unavailable(self.halt, "deciding the result", async || self.claim.publish(&value).await).await? {
            Held::Yes => Ok(decision),
            Held::No => Err(self.not_ours().await),
        }
    }

    /// Puts the decided outputs, which lie in `outputs`, at their final keys and completes the job.
    pub(crate) async fn finish(&self, decision: &Decision, outputs: &Path) -> Result<()> {
        for name in decision.outputs.files.keys() {
            let (uri, path, put) = (self.layout.output(name), outputs.join(name), self.layout.put());
            retry_unavailable(self.halt, "placing an output", async || self.objects.put_file(&uri, &path, &put).await)
                .await?;
        }
        let model = self.model(decision)?;
        match retry_unavailable(self.halt, "completing the job", async || self.claim.complete(&model).await).await? {
            Held::Yes => Ok(()),
            Held::No => Err(self.not_ours().await),
        }
    }

    /// Brings the outputs that another attempt decided for into `folder`.
    pub(crate) async fn fetch(&self, decision: &Decision, attempt: i64, folder: &Path) -> Result<()> {
        for from in self.layout.attempt_outputs_of_any(attempt) {
            if transfer::download(self.objects, self.halt, &from, &decision.outputs, folder).await? {
                return Ok(());
            }
        }
        let from = self.layout.attempt_outputs(attempt);
        Err(Error::validation(format!(
            "The trained outputs at {from} were changed or removed before the job could be completed. Create a new job."
        )))
    }

    /// A write found that the attempt may not go on: says why through the halt.
    async fn not_ours(&self) -> Error {
        match retry_unavailable(self.halt, "asking whose the job is", async || self.claim.status().await).await {
            Ok(Some(_)) => self.halt.raise(Reason::Stop),
            Ok(None) => self.halt.raise(Reason::Lost),
            // Told to end meanwhile, for a reason that stands already.
            Err(error) => return error,
        }
        Error::unavailable(anyhow::anyhow!("the job may not be completed by this attempt"))
    }

    fn model(&self, decision: &Decision) -> Result<CustomModel> {
        let spec = &self.claim.job.spec;
        let folder = format!("{}/", decision.artifact);
        let files = decision.outputs.files.iter();
        let digests: BTreeMap<String, String> = files
            .filter_map(|(name, entry)| Some((name.strip_prefix(&folder)?.to_string(), entry.sha256.clone())))
            .collect();
        Ok(CustomModel {
            id: decision.model_id.clone(),
            account_id: spec.account_id.clone(),
            arn: model_arn(spec, &decision.model_id)?,
            name: spec.output_model_name.clone(),
            job_id: Some(spec.id.clone()),
            job_arn: Some(spec.arn.clone()),
            job_name: Some(spec.name.clone()),
            customization_type: spec.customization_type,
            base_model_id: spec.base_model_id.clone(),
            base_model_arn: spec.base_model_arn.clone(),
            foundation_model_arn: spec.foundation_model_arn.clone(),
            kms_key_arn: spec.kms_key_arn.clone(),
            hyper_parameters: spec.hyper_parameters.clone(),
            training_data: Some(spec.training_data.clone()),
            validation_data: spec.validation_data.clone(),
            output_data: Some(spec.output_data.clone()),
            customization_config: spec.customization_config.clone(),
            training_loss: decision.training_loss,
            validation_losses: Some(Json(decision.validation_losses.clone())),
            artifact_uri: self.layout.output(&decision.artifact).to_string(),
            artifact_digests: Json(digests),
            status: ModelStatus::Active,
            failure_message: None,
            creation_time: self.clock.now(),
        })
    }
}

/// The name of a folder directly inside `outputs`.
fn folder_name(outputs: &Path, folder: &Path) -> Result<String> {
    let name = folder.strip_prefix(outputs).map_err(Error::internal)?;
    name.to_str().map(str::to_string).ok_or_else(|| Error::internal(anyhow::anyhow!("{name:?} is not UTF-8")))
}

/// The model's ARN is the job's, with another kind and another id.
fn model_arn(spec: &JobSpec, model_id: &str) -> Result<String> {
    let arn = spec.arn.replacen(":model-customization-job/", ":custom-model/", 1);
    match arn.strip_suffix(&spec.id) {
        Some(stem) if arn != spec.arn => Ok(format!("{stem}{model_id}")),
        _ => Err(Error::internal(anyhow::anyhow!("{} is not the ARN of a job", spec.arn))),
    }
}
