//! CreateCustomModel: an adapter in `peft`'s format over a base that is here, or whole weights, become a
//! custom model. What it is and what it stands on is found out before the 202; the weights are checked
//! afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::app::readiness::answered_within;
use crate::bedrock::arn::{self, Place};
use crate::bedrock::constraint::{Shape, Violations, check, given};
use crate::bedrock::idempotency::{digest, token_conflict};
use crate::bedrock::imports::{KmsKeyArn, ModelDataSource, probe};
use crate::bedrock::roles::check_role;
use crate::bedrock::shapes::{CustomModelName, IdempotencyToken, RoleArn, Tag, check_tag_count, stored_tags};
use crate::bedrock::walls::within_walls;
use crate::error::{Error, Kind, Result};
use crate::http::Caller;
use crate::http::extract::Json;
use crate::models::DecoderConfig;
use crate::models::limits::{max_bytes, shortened};
use crate::objects::{Objects, Uri};
use crate::store::custom_models::CustomModel;
use crate::store::imports::{self, Accepted, Import};
use crate::store::{self, CustomizationType, ImportKind, ImportStatus, ModelStatus};

/// Longest that the small files of a model are read while the caller waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the model lies, and a name for it.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CreateCustomModelRequest)]
pub struct Request {
    /// A name for the model.
    #[schema(required)]
    pub model_name: Option<CustomModelName>,
    /// The folder: a `peft` adapter over a foundation model that is here, or a whole model.
    #[schema(required)]
    pub model_source_config: Option<ModelDataSource>,
    /// Echoed: the files stay where they are.
    pub model_kms_key_arn: Option<KmsKeyArn>,
    /// Where the service maps roles to object storage, it must be one of them.
    pub role_arn: Option<RoleArn>,
    /// Tags on the model.
    #[schema(max_items = 200)]
    pub model_tags: Option<Vec<Tag>>,
    /// The same token again gives the same model.
    pub client_request_token: Option<IdempotencyToken>,
}

impl Shape for Request {
    fn check(&self, _: &str, violations: &mut Violations) {
        violations.required("modelName", self.model_name.as_ref());
        violations.required("modelSourceConfig", self.model_source_config.as_ref());
        violations.optional("modelKmsKeyArn", self.model_kms_key_arn.as_ref());
        violations.optional("roleArn", self.role_arn.as_ref());
        violations.list("modelTags", self.model_tags.as_deref(), 0, 200);
        violations.optional("clientRequestToken", self.client_request_token.as_ref());
    }
}

/// The model's name in all other calls.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CreateCustomModelResponse)]
pub struct Response {
    /// ARN of the model.
    model_arn: String,
}

/// Create a custom model
///
/// The model is `Creating` until its weights are checked, then `Active` or `Failed`.
#[utoipa::path(
    post, path = "/custom-models/create-custom-model", operation_id = "CreateCustomModel", tag = "bedrock",
    request_body = Request,
    responses((status = 202, description = "The model is being made", body = Response))
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<Request>,
) -> Result<(StatusCode, axum::Json<Response>)> {
    check("", &request)?;
    let answer = |model_arn| Ok((StatusCode::ACCEPTED, axum::Json(Response { model_arn })));
    let request_digest = digest(&request)?;
    if let Some(token) = &request.client_request_token
        && let Some(earlier) = imports::by_token(&app.db, &caller.account, ImportKind::CustomModel, &token.0).await?
    {
        return if earlier.request_digest == request_digest {
            answer(earlier.model_arn)
        } else {
            Err(token_conflict())
        };
    }
    within_walls(&app, &caller, &request).await?;
    let name = given(request.model_name.clone(), "modelName")?.0;
    check_tag_count(request.model_tags.as_deref(), "modelTags", Some(&name))?;
    let source = given(request.model_source_config.as_ref(), "modelSourceConfig")?;
    let folder = source.folder()?;
    if let Some(role) = &request.role_arn {
        check_role(&app.config, &role.0, std::slice::from_ref(&folder), &[])?;
    }
    let objects = app.objects_for_request(&caller.account);
    probe(&objects, &folder).await?;
    let base = answered_within(PATIENCE, base_of(&app, &objects, &folder)).await?;
    let (import, model) = request.accept(&app, &caller, &folder, base, request_digest)?;
    match imports::insert_model(&app.db, &import, &model).await? {
        Accepted::Inserted => {
            app.job_accepted.notify_waiters();
            answer(model.arn)
        }
        Accepted::Already(earlier) => answer(earlier.model_arn),
        Accepted::TokenConflict => Err(token_conflict()),
        Accepted::NameTaken | Accepted::ModelNameTaken => {
            Err(Error::validation("The provided model name is currently in use."))
        }
    }
}

/// What a model stands on.
struct Base {
    /// As the registry knows it, or `imported.<architecture>` for weights of unknown descent.
    id: String,
    /// The weights are no model without it.
    needed: bool,
}

/// The members of `adapter_config.json` that matter here: `peft`'s, and that of the library `adapters`.
#[derive(Deserialize)]
struct AdapterConfig {
    base_model_name_or_path: Option<String>,
    model_name: Option<String>,
}

/// The member of `config.json` that matters here.
#[derive(Deserialize)]
struct ModelConfig {
    #[serde(rename = "_name_or_path")]
    name_or_path: Option<String>,
}

async fn base_of(app: &App, objects: &Objects, folder: &Uri) -> Result<Base> {
    if let Some(text) = file(objects, &folder.join("adapter_config.json")).await? {
        let config: AdapterConfig = serde_json::from_slice(&text)
            .map_err(|cause| Error::validation(shortened(format!("{folder}/adapter_config.json: {cause}"))))?;
        let member = if config.model_name.is_some() { "model_name" } else { "base_model_name_or_path" };
        let named = shortened(config.base_model_name_or_path.or(config.model_name).unwrap_or_default());
        let base = app.registry.known_as(&named).ok_or_else(|| {
            let known: Vec<&str> = app.registry.all().map(|model| model.id.as_str()).collect();
            Error::validation(format!(
                "{folder}/adapter_config.json names the base model '{named}', which is not known here. Known are: {}. Set \
                 {member} to one of them, or list '{named}' under aliases in the card.toml of its directory.",
                known.join(", ")
            ))
        })?;
        return Ok(Base { id: base.id.clone(), needed: true });
    }
    let Some(text) = file(objects, &folder.join("config.json")).await? else {
        return Err(Error::validation(format!(
            "{folder} holds neither adapter_config.json (an adapter in the format of peft) nor config.json (a whole model \
             in the format of Hugging Face)"
        )));
    };
    let wrong = |cause: String| {
        let cause = cause.strip_prefix("config.json: ").unwrap_or(&cause);
        Error::validation(shortened(format!("{folder}/config.json: {cause}")))
    };
    let text = String::from_utf8(text).map_err(|cause| wrong(cause.to_string()))?;
    let config = DecoderConfig::parse(&text).map_err(|error| wrong(error.message().to_string()))?;
    let own: ModelConfig = serde_json::from_str(&text).map_err(|cause| wrong(cause.to_string()))?;
    let known = own.name_or_path.as_deref().and_then(|name| app.registry.known_as(name));
    let id = known.map_or_else(|| format!("imported.{}", config.architecture.model_type()), |model| model.id.clone());
    Ok(Base { id, needed: false })
}

/// A small file, no larger than it may be; `None` when it is not there.
async fn file(objects: &Objects, uri: &Uri) -> Result<Option<Vec<u8>>> {
    match objects.get_bytes(uri, max_bytes(uri.name())).await {
        Ok(bytes) => Ok(Some(bytes.to_vec())),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Request {
    fn accept(
        &self,
        app: &App,
        caller: &Caller,
        folder: &Uri,
        base: Base,
        request_digest: String,
    ) -> Result<(Import, CustomModel)> {
        let place = Place { region: &app.config.region, account: &caller.account };
        let (id, now) = (app.clock.id(), app.clock.now());
        let model_arn = place.created_model(&id);
        let model_name = given(self.model_name.clone(), "modelName")?.0;
        let kms_key_arn = self.model_kms_key_arn.clone().map(|key| key.0);
        let mut source = serde_json::to_value(&self.model_source_config)?;
        if base.needed {
            source["baseModelId"] = base.id.clone().into();
        }
        let base_model_arn = arn::foundation_model(&app.config.region, &base.id);
        let model = CustomModel {
            id: id.clone(),
            account_id: caller.account.clone(),
            arn: model_arn.clone(),
            name: model_name.clone(),
            job_id: None,
            job_arn: None,
            job_name: None,
            customization_type: CustomizationType::Imported,
            base_model_id: base.id,
            foundation_model_arn: base_model_arn.clone(),
            base_model_arn,
            kms_key_arn: kms_key_arn.clone(),
            hyper_parameters: store::Json(BTreeMap::new()),
            training_data: None,
            validation_data: None,
            output_data: None,
            customization_config: None,
            training_loss: None,
            validation_losses: None,
            artifact_uri: folder.to_string(),
            artifact_digests: store::Json(BTreeMap::new()),
            status: ModelStatus::Creating,
            failure_message: None,
            creation_time: now,
        };
        let import = Import {
            model_id: id.clone(),
            id,
            account_id: caller.account.clone(),
            kind: ImportKind::CustomModel,
            arn: None,
            name: None,
            model_arn,
            model_name,
            role_arn: self.role_arn.clone().map(|role| role.0),
            kms_key_arn,
            source: source.into(),
            vpc_config: None,
            model_tags: stored_tags(self.model_tags.clone()).into(),
            request_token: self.client_request_token.clone().map(|token| token.0),
            request_digest,
            status: ImportStatus::InProgress,
            failure_message: None,
            creation_time: now,
            last_modified_time: now,
            end_time: None,
            attempt: 0,
            strikes: 0,
        };
        Ok((import, model))
    }
}
