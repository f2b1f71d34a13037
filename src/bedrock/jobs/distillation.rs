//! What a distillation job needs beside what all jobs need: a teacher that can be asked, or logs with its answers.

use crate::app::{App, models};
use crate::bedrock::constraint::given;
use crate::bedrock::customization::DistillationConfig;
use crate::bedrock::shapes::TrainingDataConfig;
use crate::error::{Error, Result};
use crate::objects::{Objects, Uri};
use crate::store::ModelStatus;

/// Refuses what cannot be distilled from.
pub(super) async fn check(
    app: &App,
    account: &str,
    config: &DistillationConfig,
    training: &TrainingDataConfig,
) -> Result<()> {
    let teacher = given(config.teacher_model_config.as_ref(), "distillationConfig.teacherModelConfig")?;
    if teacher.max_response_length_for_inference.is_some_and(|length| length < 1) {
        return Err(Error::validation("maxResponseLengthForInference must be 1 or more"));
    }
    let answered = training.invocation_logs_config.as_ref().and_then(|logs| logs.use_prompt_response);
    if answered == Some(true) {
        // The logs hold its answers: it need not be here.
        return Ok(());
    }
    let identifier = given(teacher.teacher_model_identifier.as_ref(), "teacherModelConfig.teacherModelIdentifier")?;
    match models::teacher(app, account, &identifier.0).await? {
        None => Err(Error::validation(format!(
            "The provided teacher model identifier is invalid: there is no model '{}' here; ListFoundationModels, \
             ListCustomModels and ListImportedModels show those that can teach. To learn from answers that another \
             service's model has already given, use invocationLogsConfig with usePromptResponse true.",
            identifier.0
        ))),
        Some(models::Found::Custom(model)) if model.status != ModelStatus::Active => {
            Err(Error::validation(format!("The custom model {} is {}: it cannot teach", model.name, model.status)))
        }
        Some(_) => Ok(()),
    }
}

/// There must be something to read in the folder of logs.
pub(super) async fn probe(objects: &Objects, folder: &Uri) -> Result<()> {
    match objects.list(folder).next().await? {
        Some(page) if !page.is_empty() => Ok(()),
        _ => Err(Error::validation(format!("There is no object under {folder}: invocation logs are read from there"))),
    }
}
