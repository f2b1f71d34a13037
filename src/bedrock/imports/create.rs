//! CreateModelImportJob: a whole model in the format of Hugging Face becomes one that can be asked.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ImportedModelName, ModelDataSource, probe};
use crate::app::App;
use crate::bedrock::arn::Place;
use crate::bedrock::constraint::{Shape, Violations, check, given};
use crate::bedrock::idempotency::{digest, token_conflict};
use crate::bedrock::roles::check_role;
use crate::bedrock::shapes::{
    IdempotencyToken, JobName, KmsKeyId, RoleArn, Tag, VpcConfig, check_tag_count, stored_tags,
};
use crate::bedrock::walls::within_walls;
use crate::error::{Error, Result};
use crate::http::Caller;
use crate::http::extract::Json;
use crate::store::imports::{self, Accepted, Import};
use crate::store::{self, ImportKind, ImportStatus};

/// What to import, and under which name.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CreateModelImportJobRequest)]
pub struct Request {
    /// A name for the job.
    #[schema(required)]
    pub job_name: Option<JobName>,
    /// A name for the model.
    #[schema(required)]
    pub imported_model_name: Option<ImportedModelName>,
    /// Echoed; where the service maps roles to object storage, it must be one of them.
    #[schema(required)]
    pub role_arn: Option<RoleArn>,
    /// The folder of the model: `config.json`, `tokenizer.json`, `tokenizer_config.json` and safetensors.
    #[schema(required)]
    pub model_data_source: Option<ModelDataSource>,
    /// Tags on the job.
    #[schema(max_items = 200)]
    pub job_tags: Option<Vec<Tag>>,
    /// Tags on the model.
    #[schema(max_items = 200)]
    pub imported_model_tags: Option<Vec<Tag>>,
    /// The same token again gives the same job.
    pub client_request_token: Option<IdempotencyToken>,
    /// Echoed.
    pub vpc_config: Option<VpcConfig>,
    /// Echoed: the files stay where they are.
    pub imported_model_kms_key_id: Option<KmsKeyId>,
}

impl Shape for Request {
    fn check(&self, _: &str, violations: &mut Violations) {
        violations.required("jobName", self.job_name.as_ref());
        violations.required("importedModelName", self.imported_model_name.as_ref());
        violations.required("roleArn", self.role_arn.as_ref());
        violations.required("modelDataSource", self.model_data_source.as_ref());
        violations.list("jobTags", self.job_tags.as_deref(), 0, 200);
        violations.list("importedModelTags", self.imported_model_tags.as_deref(), 0, 200);
        violations.optional("clientRequestToken", self.client_request_token.as_ref());
        violations.optional("vpcConfig", self.vpc_config.as_ref());
        violations.optional("importedModelKmsKeyId", self.imported_model_kms_key_id.as_ref());
    }
}

/// The job's name in all other calls.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CreateModelImportJobResponse)]
pub struct Response {
    /// ARN of the job.
    job_arn: String,
}

/// Create a model import job
#[utoipa::path(
    post, path = "/model-import-jobs", operation_id = "CreateModelImportJob", tag = "bedrock",
    request_body = Request,
    responses((status = 201, description = "The job is accepted", body = Response))
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<Request>,
) -> Result<(StatusCode, axum::Json<Response>)> {
    check("", &request)?;
    let answer = |arn: Option<String>| {
        let job_arn = arn.ok_or_else(|| Error::internal(anyhow::anyhow!("an import job has no ARN")))?;
        Ok((StatusCode::CREATED, axum::Json(Response { job_arn })))
    };
    let request_digest = digest(&request)?;
    // An SDK's retry carries the same token and the same names: it must not meet "name taken".
    if let Some(token) = &request.client_request_token
        && let Some(job) = imports::by_token(&app.db, &caller.account, ImportKind::ImportedModel, &token.0).await?
    {
        return if job.request_digest == request_digest { answer(job.arn) } else { Err(token_conflict()) };
    }
    within_walls(&app, &caller, &request).await?;
    let import = request.accept(&app, &caller, request_digest)?;
    let folder = given(request.model_data_source.as_ref(), "modelDataSource")?.folder()?;
    check_role(&app.config, import.role_arn.as_deref().unwrap_or_default(), std::slice::from_ref(&folder), &[])?;
    probe(&app.objects_for_request(&caller.account), &folder).await?;
    match imports::insert_job(&app.db, &import, &stored_tags(request.job_tags)).await? {
        Accepted::Inserted => {
            app.job_accepted.notify_waiters();
            answer(import.arn)
        }
        Accepted::Already(job) => answer(job.arn),
        Accepted::TokenConflict => Err(token_conflict()),
        Accepted::NameTaken => Err(Error::validation("The provided job name is currently in use.")),
        Accepted::ModelNameTaken => Err(Error::validation("The provided model name is currently in use.")),
    }
}

impl Request {
    fn accept(&self, app: &App, caller: &Caller, request_digest: String) -> Result<Import> {
        let name = given(self.job_name.clone(), "jobName")?.0;
        let model_name = given(self.imported_model_name.clone(), "importedModelName")?.0;
        check_tag_count(self.job_tags.as_deref(), "jobTags", Some(&name))?;
        check_tag_count(self.imported_model_tags.as_deref(), "importedModelTags", Some(&model_name))?;
        let place = Place { region: &app.config.region, account: &caller.account };
        let (id, model_id, now) = (app.clock.id(), app.clock.id(), app.clock.now());
        let vpc_config = self.vpc_config.as_ref().map(serde_json::to_value).transpose()?;
        Ok(Import {
            arn: Some(place.import_job(&id)),
            id,
            account_id: caller.account.clone(),
            kind: ImportKind::ImportedModel,
            name: Some(name),
            model_arn: place.imported_model(&model_id),
            model_id,
            model_name,
            role_arn: self.role_arn.clone().map(|role| role.0),
            kms_key_arn: self.imported_model_kms_key_id.as_ref().map(|key| place.kms_key(&key.0)),
            source: serde_json::to_value(&self.model_data_source)?.into(),
            vpc_config: vpc_config.map(store::Json),
            model_tags: stored_tags(self.imported_model_tags.clone()).into(),
            request_token: self.client_request_token.clone().map(|token| token.0),
            request_digest,
            status: ImportStatus::InProgress,
            failure_message: None,
            creation_time: now,
            last_modified_time: now,
            end_time: None,
            attempt: 0,
            strikes: 0,
        })
    }
}
