//! CountTokens: how many tokens the same request would be charged for its input.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::{CancelOnDrop, Model, converse, invoke};
use crate::app::App;
use crate::app::models::Served;
use crate::bedrock::constraint::{Shape, Violations, check, given, texts};
use crate::error::{Error, Kind, Result};
use crate::http::Caller;
use crate::http::extract::{Segment, parse};
use crate::infer::Prompt;

/// How long a request waits for its turn to be counted.
const PATIENCE: Duration = Duration::from_secs(5);

texts! {
    /// Which model's tokenizer counts.
    FoundationModelVersionIdentifier, 1..=256, r"[a-zA-Z_\.\-/0-9:]+";
}

/// A request of another operation.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CountTokensRequest)]
pub struct Request {
    /// What is to be counted.
    #[schema(required)]
    input: Option<Input>,
}

/// Exactly one of its members.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CountTokensInput)]
pub struct Input {
    /// A request of InvokeModel.
    invoke_model: Option<InvokeModel>,
    /// A request of Converse.
    converse: Option<converse::Request>,
}

/// A request of InvokeModel.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = InvokeModelTokensRequest)]
pub struct InvokeModel {
    /// The request's body in base64.
    #[schema(required)]
    body: Option<String>,
}

impl Shape for Input {
    fn check(&self, at: &str, violations: &mut Violations) {
        let members = [("invokeModel", self.invoke_model.is_some()), ("converse", self.converse.is_some())];
        violations.union(at, &members);
        if self.invoke_model.as_ref().is_some_and(|request| request.body.is_none()) {
            violations.missing(&format!("{at}.invokeModel.body"));
        }
    }
}

/// The count.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CountTokensResponse)]
pub struct Response {
    /// Tokens of the input.
    input_tokens: usize,
}

/// Count the tokens of a request
#[utoipa::path(
    post, path = "/model/{modelId}/count-tokens", operation_id = "CountTokens", tag = "bedrock-runtime",
    params(("modelId" = inline(FoundationModelVersionIdentifier), Path, description = "Which model")),
    request_body = Request,
    responses((status = 200, description = "The count", body = Response))
)]
pub async fn count_tokens(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    body: Bytes,
) -> Result<axum::Json<Response>> {
    check("modelId", &FoundationModelVersionIdentifier(id.clone()))?;
    let Model { source, .. } = super::model(&app, &caller, &id).await.map_err(declared)?;
    let request: Request = parse(&body)?;
    let mut violations = Violations::default();
    violations.required("input", request.input.as_ref());
    violations.finish()?;
    let input = given(request.input.as_ref(), "input")?;
    let prompt = match (&input.converse, &input.invoke_model) {
        (Some(request), _) => {
            request.check()?;
            Prompt::Chat(request.conversation()?)
        }
        (None, Some(request)) => {
            let body = given(request.body.as_ref(), "input.invokeModel.body")?;
            let body = STANDARD
                .decode(body)
                .map_err(|cause| Error::validation(format!("input.invokeModel.body is not base64: {cause}")))?;
            Prompt::Text(invoke::Request::parse(&body)?.prompt)
        }
        (None, None) => return Err(Error::validation("input: give invokeModel or converse")),
    };
    let Served { target, in_use } = source.served(&app).await.map_err(declared)?;
    let permit = permit(&app).await?;
    let engine = Arc::clone(&app.engine);
    let cancel = CancelOnDrop(Arc::default());
    let cancelled = Arc::clone(&cancel.0);
    let count = tokio::task::spawn_blocking(move || {
        let goes_on = || match cancelled.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::Unavailable, "The count was cancelled")),
            false => Ok(()),
        };
        let count = engine.count_while(&target, &prompt, &goes_on);
        drop((in_use, permit));
        count
    });
    Ok(axum::Json(Response { input_tokens: count.await.map_err(Error::internal)?? }))
}

/// Admission: as many are counted at once as there are cores, and who waits too long is told to come back.
async fn permit(app: &App) -> Result<OwnedSemaphorePermit> {
    let permit = tokio::time::timeout(PATIENCE, Arc::clone(&app.counting).acquire_owned()).await;
    let busy = |_| Error::new(Kind::Throttling, "The tokens of too many requests are being counted, please try again");
    permit.map_err(busy)?.map_err(Error::internal)
}

/// The operation declares fewer errors than those that answer.
fn declared(error: Error) -> Error {
    let kind = match error.kind() {
        Kind::ModelNotReady => Kind::Unavailable,
        Kind::Model => Kind::Validation,
        _ => return error,
    };
    Error::new(kind, error.message()).because(error)
}
