//! Asking a customization job by its ARN, an extension: while it runs, and for a while after it failed or was stopped,
//! its newest checkpoint answers, which `x-tunesmith-preview: step=N` on the answer says; once it is completed, the
//! model that it made.

use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponseParts, ResponseParts};

use super::{Model, Source, no_such_model};
use crate::app::models::Found;
use crate::app::{App, preview};
use crate::error::{Error, Kind, Result};
use crate::store::jobs::{self, Job, Progress};
use crate::store::{CustomizationType, Status, custom_models};
use crate::train::{FIRST_CHECKPOINT_TIME, Settings, reinforcement_hyper_parameters};

/// Says that a checkpoint answered, and which.
const HEADER: HeaderName = HeaderName::from_static("x-tunesmith-preview");

/// The step of the checkpoint that answers, if it is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preview(Option<u64>);

impl IntoResponseParts for Preview {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        let value = self.0.and_then(|step| HeaderValue::from_str(&format!("step={step}")).ok());
        if let Some(value) = value {
            parts.headers_mut().insert(HEADER, value);
        }
        Ok(parts)
    }
}

/// Whether an id is a customization job's ARN.
pub(super) fn is_job(id: &str) -> bool {
    id.starts_with("arn:") && id.contains(":model-customization-job/")
}

/// What answers for a job.
pub(super) async fn model<'a>(app: &'a App, account: &str, arn: &str) -> Result<Model<'a>> {
    let job = jobs::find(&app.db, account, arn).await?.ok_or_else(no_such_model)?;
    if job.status == Status::Completed {
        preview::forget(app, &job.spec.id).await;
        let made = job.output_model_arn.as_deref().unwrap_or_default();
        let model = custom_models::find(&app.db, account, made).await?;
        let model = model.ok_or_else(|| Error::not_found("The custom model that the job made was deleted."))?;
        let source = Source::Found(Found::Custom(Box::new(model)));
        return Ok(Model { source, pass: None, preview: Preview::default() });
    }
    match preview::newest(app, &job).await? {
        Some(found) => {
            Ok(Model { source: Source::Preview(found.served), pass: None, preview: Preview(Some(found.step)) })
        }
        None => {
            if job.status.is_end() {
                preview::forget(app, &job.spec.id).await;
            }
            Err(nothing_yet(app, &job))
        }
    }
}

/// Why no checkpoint answers.
fn nothing_yet(app: &App, job: &Job) -> Error {
    let name = &job.spec.name;
    if job.status.is_end() {
        return Error::not_found(format!(
            "The job {name} is {} and has no checkpoint (any more): checkpoints are removed soon after a job has ended. \
             Create a new job.",
            job.status
        ));
    }
    let due = match interval(app, job) {
        Some(steps) => format!("after step {steps}"),
        None => format!("about {} s after training has begun", FIRST_CHECKPOINT_TIME.as_secs()),
    };
    let stands = match job.progress.as_deref() {
        None => "it waits for a worker".to_string(),
        Some(Progress { step: 0, phase, .. }) => format!("it has taken no step yet ({phase})"),
        Some(Progress { step, total_steps, .. }) => format!("it is at step {step} of {total_steps}"),
    };
    Error::new(
        Kind::ModelNotReady,
        format!("The job {name} has no checkpoint to answer with yet: {stands}. The first is due {due}."),
    )
}

/// Steps between checkpoints, if the job or its base says so.
fn interval(app: &App, job: &Job) -> Option<u64> {
    let base = app.registry.get(&job.spec.base_model_id)?;
    let given = &job.spec.hyper_parameters;
    let settings = match job.spec.customization_type {
        CustomizationType::ReinforcementFineTuning => {
            let rft = job.spec.customization_config.as_ref().and_then(|config| config.get("rftConfig"));
            Settings::parse(&reinforcement_hyper_parameters(given, rft).ok()?, &base.hyper_parameters)
        }
        _ => Settings::parse(given, &base.hyper_parameters),
    };
    settings.ok()?.checkpoint_interval
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_known_by_its_arn_alone() {
        assert!(is_job(
            "arn:aws:bedrock:us-east-1:000000000000:model-customization-job/tunesmith.tiny-v1:0/abcdefghijkl"
        ));
        for other in ["tickets", "tunesmith.tiny-v1:0", "arn:aws:bedrock:us-east-1:0:custom-model/a.b/abcdefghijkl"] {
            assert!(!is_job(other), "{other}");
        }
    }
}
