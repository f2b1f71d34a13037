//! CreateModelCustomizationJob: everything cheap is checked here, before the 201; what is wrong with
//! the records fails the job later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{distillation, reinforcement};
use crate::app::readiness::answered_within;
use crate::app::{App, models};
use crate::bedrock::arn::{self, Place};
use crate::bedrock::constraint::{Shape, Violations, check, given};
use crate::bedrock::customization::CustomizationConfig;
use crate::bedrock::idempotency::{digest, token_conflict};
use crate::bedrock::roles::check_role;
use crate::bedrock::shapes;
use crate::bedrock::shapes::{
    BaseModelIdentifier, CustomModelName, IdempotencyToken, JobName, KmsKeyId, OutputDataConfig, RoleArn, Tag,
    TrainingDataConfig, ValidationDataConfig, VpcConfig, check_tag_count, stored_tags,
};
use crate::bedrock::walls::within_walls;
use crate::error::{Error, Result};
use crate::http::Caller;
use crate::http::extract::Json;
use crate::models::{Customization, DecoderConfig, FoundationModel};
use crate::objects::{Put, Uri};
use crate::store::custom_models::{self, CustomModel};
use crate::store::jobs::{self, Accepted, JobSpec};
use crate::store::{self, CustomizationType, ModelStatus};
use crate::train::{Memory, Settings, TrainingObjective, TuningMethod, refuse_the_impossible};

/// Longest that the trial of writing to the output folder takes while the caller waits. Reading was answered before, so
/// the store is there; a slow disk may take its time.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// What to train, on what, and where to.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CreateModelCustomizationJobRequest)]
pub struct Request {
    /// A name for the job.
    #[schema(required)]
    pub job_name: Option<JobName>,
    /// A name for the model that comes out.
    #[schema(required)]
    pub custom_model_name: Option<CustomModelName>,
    /// Echoed; where the service maps roles to object storage, it must be one of them.
    #[schema(required)]
    pub role_arn: Option<RoleArn>,
    /// The same token again gives the same job.
    pub client_request_token: Option<IdempotencyToken>,
    /// The foundation model to start from, or the custom model to tune further.
    #[schema(required)]
    pub base_model_identifier: Option<BaseModelIdentifier>,
    /// FINE_TUNING when absent.
    pub customization_type: Option<shapes::CustomizationType>,
    /// Asked of the object store for what the job writes.
    pub custom_model_kms_key_id: Option<KmsKeyId>,
    /// Tags on the job.
    #[schema(max_items = 200)]
    pub job_tags: Option<Vec<Tag>>,
    /// Tags on the model.
    #[schema(max_items = 200)]
    pub custom_model_tags: Option<Vec<Tag>>,
    /// The records to learn from.
    #[schema(required)]
    pub training_data_config: Option<TrainingDataConfig>,
    /// Records to measure on.
    pub validation_data_config: Option<ValidationDataConfig>,
    /// Where outputs go.
    #[schema(required)]
    pub output_data_config: Option<OutputDataConfig>,
    /// Names and values, all strings; echoed as sent.
    pub hyper_parameters: Option<BTreeMap<String, String>>,
    /// Echoed.
    pub vpc_config: Option<VpcConfig>,
    /// For reinforcement fine-tuning; the types that learn from records need none.
    pub customization_config: Option<CustomizationConfig>,
}

impl Shape for Request {
    fn check(&self, _: &str, violations: &mut Violations) {
        violations.required("jobName", self.job_name.as_ref());
        violations.required("customModelName", self.custom_model_name.as_ref());
        violations.required("roleArn", self.role_arn.as_ref());
        violations.optional("clientRequestToken", self.client_request_token.as_ref());
        violations.required("baseModelIdentifier", self.base_model_identifier.as_ref());
        violations.optional("customizationType", self.customization_type.as_ref());
        violations.optional("customModelKmsKeyId", self.custom_model_kms_key_id.as_ref());
        violations.list("jobTags", self.job_tags.as_deref(), 0, 200);
        violations.list("customModelTags", self.custom_model_tags.as_deref(), 0, 200);
        violations.required("trainingDataConfig", self.training_data_config.as_ref());
        violations.optional("validationDataConfig", self.validation_data_config.as_ref());
        violations.required("outputDataConfig", self.output_data_config.as_ref());
        violations.optional("vpcConfig", self.vpc_config.as_ref());
        violations.optional("customizationConfig", self.customization_config.as_ref());
    }
}

/// The job's name in all other calls.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CreateModelCustomizationJobResponse)]
pub struct Response {
    /// ARN of the job.
    pub job_arn: String,
}

/// Create a model customization job
#[utoipa::path(
    post, path = "/model-customization-jobs", operation_id = "CreateModelCustomizationJob", tag = "bedrock",
    request_body = Request,
    responses((status = 201, description = "The job is accepted", body = Response))
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<Request>,
) -> Result<(StatusCode, axum::Json<Response>)> {
    check("", &request)?;
    let answer = |job_arn| Ok((StatusCode::CREATED, axum::Json(Response { job_arn })));

    // An SDK's retry carries the same token and the same names: it must not meet "name taken".
    let digest = digest(&request)?;
    if let Some(token) = &request.client_request_token
        && let Some(job) = jobs::by_token(&app.db, &caller.account, &token.0).await?
    {
        return if job.spec.request_digest == digest { answer(job.spec.arn) } else { Err(token_conflict()) };
    }

    within_walls(&app, &caller, &request).await?;
    let spec = request.accept(&app, &caller, digest).await?;
    probe(&app, &spec).await?;
    match jobs::insert(&app.db, &spec, &stored_tags(request.job_tags)).await? {
        Accepted::Inserted => {
            app.job_accepted.notify_waiters();
            answer(spec.arn)
        }
        Accepted::AlreadyAccepted(job) => answer(job.spec.arn),
        Accepted::TokenConflict => Err(token_conflict()),
        Accepted::NameTaken => Err(Error::validation("The provided job name is currently in use.")),
        Accepted::ModelNameTaken => Err(Error::validation("The provided model name is currently in use.")),
    }
}

impl Request {
    /// Checks what the shapes cannot say, and gives the job as it will be stored.
    async fn accept(&self, app: &App, caller: &Caller, request_digest: String) -> Result<JobSpec> {
        let customization_type = self.customization()?;
        let identifier = given(self.base_model_identifier.as_ref(), "baseModelIdentifier")?;
        let (base, parent) = base_model(app, caller, &identifier.0).await?;
        may_be_customized(base, customization_type)?;

        let hyper_parameters = self.hyper_parameters.clone().unwrap_or_default();
        let rft = self.customization_config.as_ref().and_then(|config| config.rft_config.as_ref());
        let settings = if customization_type == CustomizationType::ReinforcementFineTuning {
            let settings = reinforcement::settings(&hyper_parameters, rft, &base.hyper_parameters)?;
            reinforcement::check_grader(&app.config, &caller.account, rft, &settings)?;
            settings
        } else {
            Settings::parse(&hyper_parameters, &base.hyper_parameters)?
        };
        may_learn(customization_type, &settings.objective)?;
        settings.check_reinforcement(&settings.method, parent.is_none())?;
        match &parent {
            Some(parent) => may_be_tuned_further(parent, &settings)?,
            None if settings.continue_optimizer_state => {
                return Err(Error::validation(
                    "continueOptimizerState goes on with what a custom model's job kept: give a custom model as \
                     baseModelIdentifier",
                ));
            }
            None => {
                let shape = DecoderConfig::read(&base.dir)?;
                settings.method.check(&shape)?;
                settings.check_merging_into(&shape)?;
                if let Some(bytes) = app.job_memory {
                    refuse_the_impossible(&shape, &settings, Memory::host(bytes))?;
                }
            }
        }

        let training = given(self.training_data_config.as_ref(), "trainingDataConfig")?;
        match self.customization_config.as_ref().and_then(|config| config.distillation_config.as_ref()) {
            Some(config) => distillation::check(app, &caller.account, config, training).await?,
            None if training.invocation_logs_config.is_some() => {
                return Err(Error::validation(
                    "trainingDataConfig.invocationLogsConfig is only for customizationType DISTILLATION: give \
                     trainingDataConfig.s3Uri",
                ));
            }
            None => drop(given(training.s3_uri.as_ref(), "trainingDataConfig.s3Uri")?),
        }
        check_tag_count(self.job_tags.as_deref(), "jobTags", self.job_name.as_ref().map(|name| name.0.as_str()))?;
        let model = self.custom_model_name.as_ref().map(|name| name.0.as_str());
        check_tag_count(self.custom_model_tags.as_deref(), "customModelTags", model)?;

        let place = Place { region: &app.config.region, account: &caller.account };
        let id = app.clock.id();
        let foundation_model_arn = arn::foundation_model(&app.config.region, &base.id);
        let base_model_arn = parent.map_or_else(|| foundation_model_arn.clone(), |parent| parent.arn);
        let seed = settings.seed.unwrap_or_else(|| app.clock.seed());
        Ok(JobSpec {
            arn: place.job(&base.id, &id),
            id,
            account_id: caller.account.clone(),
            name: given(self.job_name.clone(), "jobName")?.0,
            request_token: self.client_request_token.clone().map(|token| token.0),
            request_digest,
            customization_type,
            base_model_id: base.id.clone(),
            foundation_model_arn,
            base_model_arn,
            output_model_name: given(self.custom_model_name.clone(), "customModelName")?.0,
            role_arn: given(self.role_arn.clone(), "roleArn")?.0,
            kms_key_arn: self.custom_model_kms_key_id.as_ref().map(|key| place.kms_key(&key.0)),
            hyper_parameters: hyper_parameters.into(),
            training_data: serde_json::to_value(training)?.into(),
            validation_data: stored(self.validation_data_config.as_ref())?,
            output_data: serde_json::to_value(given(self.output_data_config.as_ref(), "outputDataConfig")?)?.into(),
            vpc_config: stored(self.vpc_config.as_ref())?,
            customization_config: stored(self.customization_config.as_ref())?,
            model_tags: stored_tags(self.custom_model_tags.clone()).into(),
            // Columns are signed; the run reads the same bits back.
            seed: seed.cast_signed(),
            creation_time: app.clock.now(),
        })
    }

    fn customization(&self) -> Result<CustomizationType> {
        let name = self.customization_type.as_ref().map_or("FINE_TUNING", |name| name.0.as_str());
        let supported = CustomizationType::parse(name).filter(|asked| *asked != CustomizationType::Imported);
        let supported = supported.ok_or_else(|| {
            Error::validation(format!(
                "customizationType {name} is not supported: use FINE_TUNING, CONTINUED_PRE_TRAINING, DISTILLATION or \
                 REINFORCEMENT_FINE_TUNING"
            ))
        })?;
        let teaches = self.customization_config.as_ref().map(|config| config.distillation_config.is_some());
        match (supported, teaches) {
            (CustomizationType::Distillation, Some(true)) => Ok(supported),
            (CustomizationType::Distillation, _) => Err(Error::validation(
                "customizationType DISTILLATION needs a teacher: give \
                 customizationConfig.distillationConfig.teacherModelConfig",
            )),
            (_, None) | (CustomizationType::ReinforcementFineTuning, Some(false)) => Ok(supported),
            _ => Err(Error::validation(format!("customizationConfig does not apply to customizationType {name}"))),
        }
    }
}

fn stored(config: Option<&impl Serialize>) -> Result<Option<store::Json<Value>>> {
    Ok(config.map(serde_json::to_value).transpose()?.map(store::Json))
}

/// The foundation model, and the custom model on it if that is what is tuned further.
async fn base_model<'a>(
    app: &'a App,
    caller: &Caller,
    identifier: &str,
) -> Result<(&'a FoundationModel, Option<CustomModel>)> {
    if let Some(base) = models::foundation(app, identifier) {
        return Ok((base, None));
    }
    let parent = custom_models::find(&app.db, &caller.account, identifier).await?;
    let parent = parent.filter(|parent| parent.status == ModelStatus::Active).ok_or_else(|| {
        Error::validation(format!(
            "The provided model identifier is invalid: there is no foundation model and no active custom model \
             '{identifier}'; ListFoundationModels and ListCustomModels show those that can be customized"
        ))
    })?;
    let base = app.registry.get(&parent.base_model_id).ok_or_else(|| {
        Error::validation(format!(
            "The foundation model {} of the custom model {} is not installed here",
            parent.base_model_id, parent.name
        ))
    })?;
    Ok((base, Some(parent)))
}

/// What is known of a custom model before its files are read.
fn may_be_tuned_further(parent: &CustomModel, settings: &Settings) -> Result<()> {
    let whole = !parent.artifact_digests.contains_key("adapter_config.json");
    match (whole, &settings.method) {
        (true, TuningMethod::Full) if !settings.continue_optimizer_state => Ok(()),
        (true, TuningMethod::Full) => {
            Err(Error::validation("continueOptimizerState goes on with an adapter; all weights begin without moments"))
        }
        (true, method) => Err(Error::validation(format!(
            "The custom model {} consists of whole weights, not of an adapter: tune it further with tuningMethod full \
             ({} would leave an adapter that needs this model for ever), or put its directory into the folder that \
             TUNESMITH_MODELS names and customize it as a foundation model",
            parent.name,
            method.name()
        ))),
        (false, TuningMethod::Full) => Err(Error::validation(format!(
            "The custom model {} is an adapter: it is tuned further by the method that made it, not by tuningMethod \
             full",
            parent.name
        ))),
        (false, _) => Ok(()),
    }
}

/// Whether jobs of this type have what the objective learns from.
fn may_learn(by: CustomizationType, objective: &TrainingObjective) -> Result<()> {
    match (by, objective) {
        (CustomizationType::ReinforcementFineTuning, TrainingObjective::Reinforcement(_))
        | (_, TrainingObjective::Sft) => Ok(()),
        (_, TrainingObjective::Reinforcement(_)) => Err(objective.needs_a_grader()),
        (CustomizationType::FineTuning, _) => Ok(()),
        (_, other) => Err(Error::validation(format!(
            "trainingObjective {} learns from preferences: set customizationType to FINE_TUNING",
            other.name()
        ))),
    }
}

fn may_be_customized(base: &FoundationModel, by: CustomizationType) -> Result<()> {
    let names: Vec<_> = base.customizations.iter().copied().map(Customization::name).collect();
    // Bedrock's list of what a model supports has no word for reinforcement: what can be fine-tuned can be rewarded.
    let needed = if by == CustomizationType::ReinforcementFineTuning { CustomizationType::FineTuning } else { by };
    if names.contains(&needed.as_str()) {
        return Ok(());
    }
    Err(Error::validation(format!(
        "The foundation model {} cannot be customized by {by}; it supports: {}",
        base.id,
        if names.is_empty() { "none".to_string() } else { names.join(", ") }
    )))
}

/// Reads and writes where the job will: a wrong bucket is told now, not in an hour.
async fn probe(app: &App, spec: &JobSpec) -> Result<()> {
    let grader = spec.hyper_parameters.get("grader").and_then(|grader| reinforcement::file(grader));
    let read = spec.training_uri().into_iter().chain(spec.validation_uris()).chain(grader);
    let reads: Vec<Uri> = read.map(Uri::parse).collect::<Result<_>>()?;
    let written = spec.output_data.get("s3Uri").and_then(Value::as_str);
    let writes: Vec<Uri> = written.map(Uri::parse).into_iter().collect::<Result<_>>()?;
    let logs = spec.invocation_logs_uri().map(Uri::parse).transpose()?;
    let all: Vec<Uri> = reads.iter().chain(&logs).cloned().collect();
    check_role(&app.config, &spec.role_arn, &all, &writes)?;
    let objects = app.objects_for_request(&spec.account_id);
    if let Some(folder) = &logs {
        distillation::probe(&objects, folder).await?;
    }
    for source in &reads {
        objects.probe_read(source).await?;
    }
    let put = Put { kms_key: spec.kms_key_arn.as_deref(), ..Put::default() };
    for folder in &writes {
        answered_within(WRITE_PATIENCE, app.objects_of(&spec.account_id).probe_write(folder, &put)).await?;
    }
    Ok(())
}
