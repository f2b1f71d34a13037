//! Asking models: what can be asked by which name, [`models`] knows.

pub mod converse;
pub mod converse_stream;
pub mod count_tokens;
mod frames;
pub mod invoke;
pub mod invoke_stream;
mod outlet;
mod preview;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::HeaderMap;

use self::preview::Preview;
use super::constraint::{Violations, check, choices, texts};
use super::shapes::AskedModelIdentifier;
use crate::app::artifact::For;
use crate::app::door::{Pass, Place};
use crate::app::models::{Found, Served};
use crate::app::{App, models};
use crate::error::{Error, Kind, Result};
use crate::http::Caller;
use crate::infer::{Answer, Options, Prompt, Target};

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
struct Model<'a> {
    source: Source<'a>,
    /// The place that is its own; any that is free when `None`.
    pass: Option<Pass>,
    preview: Preview,
}

/// A model that answers.
enum Source<'a> {
    /// Its files may have to be fetched, which is done for those who were admitted.
    Found(Found<'a>),
    /// A job's checkpoint, which lies here.
    Preview(Served),
}

impl Source<'_> {
    /// What the engine takes, and what keeps its files here until the answer is given.
    async fn served(&self, app: &App) -> Result<Served> {
        match self {
            Self::Found(found) => models::target(app, found, For::Request).await,
            Self::Preview(served) => Ok(served.clone()),
        }
    }

    /// What an error of the engine comes to.
    async fn after_failure(&self, app: &App, target: &Target, error: Error) -> Error {
        match self {
            Self::Found(found) => models::after_failure(app, found, target, error).await,
            Self::Preview(_) => error,
        }
    }
}

async fn model<'a>(app: &'a App, caller: &Caller, id: &str) -> Result<Model<'a>> {
    check("modelId", &AskedModelIdentifier(id.to_string())).map_err(|cause| {
        Error::validation("The provided model identifier is invalid.").because(anyhow::anyhow!("{}", cause.message()))
    })?;
    if preview::is_job(id) {
        return preview::model(app, &caller.account, id).await;
    }
    let (found, pass) = models::find_served(app, &caller.account, id).await?.ok_or_else(no_such_model)?;
    Ok(Model { source: Source::Found(found), pass, preview: Preview::default() })
}

fn no_such_model() -> Error {
    Error::not_found("Could not resolve the foundation model from the provided model identifier.")
}

/// Tells the engine to stop when nobody waits for the answer any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A place among the answers under way.
fn place(app: &App, pass: Option<Pass>) -> Result<Place> {
    let pass = pass.unwrap_or_else(|| app.door.on_demand());
    app.door
        .enter(&pass)
        .ok_or_else(|| Error::new(Kind::Throttling, "Too many requests are being answered, please try again"))
}

/// What a request to a model comes to.
struct Asked<'a> {
    model: Model<'a>,
    prompt: Prompt,
    options: Options,
}

/// Asks the engine on a thread that may block.
async fn answer(app: &App, asked: Asked<'_>) -> Result<Answer> {
    let Asked { model: Model { source, pass, .. }, prompt, options } = asked;
    let options = Options { reserved: pass.is_some(), ..options };
    let place = place(app, pass)?;
    let Served { target, in_use } = source.served(app).await?;
    let wanted = target.clone();
    let engine = Arc::clone(&app.engine);
    let cancel = CancelOnDrop(Arc::default());
    let cancelled = Arc::clone(&cancel.0);
    let work = move || {
        let answer = engine.answer(&target, &prompt, &options, &cancelled, &mut |_| {});
        drop((place, in_use));
        answer
    };
    let answer = tokio::select! {
        biased;
        answer = tokio::task::spawn_blocking(work) => answer.map_err(Error::internal)?,
        () = app.closing.cancelled() => return Err(ends()),
    };
    match answer {
        Ok(answer) => Ok(answer),
        Err(error) => Err(source.after_failure(app, &wanted, error).await),
    }
}

/// What is said to those whose answer the end of the process cuts off.
fn ends() -> Error {
    let message = "The service is being stopped and could not finish the answer, please try again";
    Error::new(Kind::Unavailable, message)
}

/// What would change the answer, and is not there, is refused rather than ignored.
fn refuse_guardrail(headers: &HeaderMap) -> Result<()> {
    match headers.get("x-amzn-bedrock-guardrailidentifier").is_some_and(|id| !id.is_empty()) {
        true => Err(Error::validation("Guardrails are not supported: leave the guardrail identifier out")),
        false => Ok(()),
    }
}
