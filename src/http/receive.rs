//! Reads a request in before anything acts on it: who calls is looked up from the head alone, then the
//! body is read under a size cap and a deadline, then the signature over it is checked. A client
//! without a key cannot make us read a body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::Caller;
use super::auth::Claim;
use super::json::check_depth;
use super::policy::Operations;
use super::rate::{Rate, too_many};
use super::reply::refuse;
use crate::app::App;
use crate::error::Error;

/// The largest body of an InvokeModel or Converse request (service model of `bedrock-runtime`).
pub const RUNTIME_BODY_BYTES: usize = 25_000_000;
/// The largest body of any other request; the largest the contract allows is far smaller.
pub const CONTROL_BODY_BYTES: usize = 1_000_000;
/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// What the door needs to know.
#[derive(Debug)]
pub struct Gate {
    app: Arc<App>,
    rate: Option<Rate>,
    operations: Operations,
}

impl Gate {
    /// The door to the `operations` of `app`, as its settings want it.
    pub fn new(app: Arc<App>, operations: Operations) -> Self {
        let rate = app.config.rate_limit.map(|per_second| Rate::new(per_second, app.config.rate_burst()));
        Self { app, rate, operations }
    }
}

/// Reads the request, authenticates it, and passes it on with its [`super::Caller`].
pub async fn receive(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let app = &gate.app;
    let (mut parts, body) = request.into_parts();
    if let Some(refusal) = refusal(&parts.headers, cap(parts.uri.path())) {
        return refusal;
    }
    let claim = match Claim::from_head(app, &parts).await {
        Ok(claim) => claim,
        Err(refusal) => return refusal.into_response(),
    };
    let body = match read(body, cap(parts.uri.path())).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let key = match claim.verify(&parts, &body) {
        Ok(key) => key,
        Err(refusal) => return refusal.into_response(),
    };
    if let Some(rate) = &gate.rate
        && let Err(wait) = rate.take(&key.id, app.clock.monotonic())
    {
        return too_many(wait);
    }
    if let Err(refusal) = check_depth(&body).and_then(|()| gate.operations.permit(&key, &parts, &body)) {
        return refusal.into_response();
    }
    parts.extensions.insert(Caller { account: key.account_id });
    next.run(Request::from_parts(parts, Body::from(body))).await
}

fn cap(path: &str) -> usize {
    if path.starts_with("/model/") { RUNTIME_BODY_BYTES } else { CONTROL_BODY_BYTES }
}

fn too_large(cap: usize) -> Response {
    let message = format!("The request body is larger than {cap} bytes");
    refuse(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLargeException", &message)
}

/// What the head alone condemns.
fn refusal(headers: &HeaderMap, cap: usize) -> Option<Response> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > cap as u64) {
        return Some(too_large(cap));
    }
    // A small compressed body may unfold to any size, and no SDK sends one here.
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let plain = encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let message = "Compressed request bodies are not supported: send the body without Content-Encoding";
    (!plain).then(|| Error::validation(message).into_response())
}

async fn read(body: Body, cap: usize) -> Result<Bytes, Response> {
    match tokio::time::timeout(BODY_DEADLINE, Limited::new(body, cap).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(cause)) if cause.downcast_ref::<LengthLimitError>().is_some() => Err(too_large(cap)),
        Ok(Err(_)) => Err(Error::validation("The request body could not be read to its end").into_response()),
        Err(_) => {
            let message = format!("The request body did not arrive within {} seconds", BODY_DEADLINE.as_secs());
            Err(refuse(StatusCode::REQUEST_TIMEOUT, "RequestTimeoutException", &message))
        }
    }
}
