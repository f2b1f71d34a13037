//! Asking models. A foundation model is asked by id or ARN, a custom model through a deployment or
//! provisioned throughput by its ARN or name and, as an extension of ours, directly by its own; an imported
//! model by its ARN or name.

pub mod converse;
pub mod invoke;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::HeaderMap;

use super::arn;
use super::constraint::{Violations, check, choices, texts};
use super::shapes::AskedModelIdentifier;
use crate::app::App;
use crate::app::artifact::{Artifact, Files, bring};
use crate::error::{Error, Kind, Result};
use crate::http::Caller;
use crate::infer::{Answer, Options, Prompt, Target};
use crate::store::custom_models::CustomModel;
use crate::store::{ModelStatus, custom_models, imported_models, serving};

texts! {
    /// A version of a guardrail.
    GuardrailVersion, 0..=8, r"(|([1-9][0-9]{0,7})|(DRAFT))";
}

choices! {
    /// Whether to trace.
    Trace, ["ENABLED", "DISABLED", "ENABLED_FULL"];
    /// How fast to answer.
    PerformanceConfigLatency, ["standard", "optimized"];
    /// Which tier is asked.
    ServiceTierType, ["priority", "default", "flex", "reserved"];
}

/// Checks the headers that say how to answer; none of them changes an answer here.
fn check_headers(headers: &HeaderMap) -> Result<()> {
    let value = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let mut violations = Violations::default();
    violations.optional("trace", value("x-amzn-bedrock-trace").map(Trace).as_ref());
    let version = value("x-amzn-bedrock-guardrailversion").map(GuardrailVersion);
    violations.optional("guardrailVersion", version.as_ref());
    let latency = value("x-amzn-bedrock-performanceconfig-latency").map(PerformanceConfigLatency);
    violations.optional("performanceConfigLatency", latency.as_ref());
    violations.optional("serviceTier", value("x-amzn-bedrock-service-tier").map(ServiceTierType).as_ref());
    violations.finish()
}

/// How Llama is asked when the caller says nothing (AWS, "Meta Llama models", inference parameters).
const TEMPERATURE: f32 = 0.5;
const TOP_P: f32 = 0.9;
const MAX_TOKENS: usize = 512;

/// What a model id in the path stands for.
async fn target(app: &App, caller: &Caller, id: &str) -> Result<Target> {
    check("modelId", &AskedModelIdentifier(id.to_string())).map_err(|cause| {
        Error::validation("The provided model identifier is invalid.").because(anyhow::anyhow!("{}", cause.message()))
    })?;
    let foundation = |id| arn::foundation_model_id(&app.config.region, id).and_then(|id| app.registry.get(id));
    let behind = match foundation(id) {
        Some(_) => None,
        None => serving::model_behind(&app.db, &caller.account, id).await?,
    };
    let id = behind.as_deref().unwrap_or(id);
    if let Some(model) = foundation(id) {
        return Ok(Target { base_dir: model.dir.clone(), context_length: Some(model.context_length), adapter: None });
    }
    if let Some(model) = custom_models::find(&app.db, &caller.account, id).await? {
        return custom(app, &model).await;
    }
    let imported = imported_models::find(&app.db, &caller.account, id).await?.ok_or_else(|| {
        Error::not_found("Could not resolve the foundation model from the provided model identifier.")
    })?;
    match bring(app, &Files::from(&imported)).await? {
        Artifact::Whole(base_dir) => Ok(Target { base_dir, context_length: None, adapter: None }),
        Artifact::Adapter(_) => Err(Error::internal(anyhow::anyhow!("{} consists of an adapter", imported.arn))),
    }
}

async fn custom(app: &App, model: &CustomModel) -> Result<Target> {
    if model.status != ModelStatus::Active {
        return Err(Error::new(Kind::ModelNotReady, format!("The custom model {} is {}", model.name, model.status)));
    }
    let base = app.registry.get(&model.base_model_id);
    let context_length = base.map(|base| base.context_length);
    Ok(match bring(app, &Files::from(model)).await? {
        // A whole model needs its base for nothing.
        Artifact::Whole(base_dir) => Target { base_dir, context_length, adapter: None },
        Artifact::Adapter(adapter) => {
            let base = base.ok_or_else(|| {
                let message =
                    format!("The foundation model {} of this custom model is not installed here", model.base_model_id);
                Error::new(Kind::ModelNotReady, message)
            })?;
            Target { base_dir: base.dir.clone(), context_length, adapter: Some(adapter) }
        }
    })
}

/// Tells the engine to stop when nobody waits for the answer any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks the engine on a thread that may block.
async fn answer(app: &App, target: Target, prompt: Prompt, options: Options) -> Result<Answer> {
    let place = Arc::clone(&app.answers)
        .try_acquire_owned()
        .map_err(|_| Error::new(Kind::Throttling, "Too many requests are being answered, please try again"))?;
    let engine = Arc::clone(&app.engine);
    let cancel = CancelOnDrop(Arc::default());
    let cancelled = Arc::clone(&cancel.0);
    let work = move || {
        let answer = engine.answer(&target, &prompt, &options, &cancelled, &mut |_| {});
        drop(place);
        answer
    };
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

/// What would change the answer, and is not there, is refused rather than ignored.
fn refuse_guardrail(headers: &HeaderMap) -> Result<()> {
    match headers.get("x-amzn-bedrock-guardrailidentifier").is_some_and(|id| !id.is_empty()) {
        true => Err(Error::validation("Guardrails are not supported: leave the guardrail identifier out")),
        false => Ok(()),
    }
}
