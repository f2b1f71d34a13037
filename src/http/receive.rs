//! Reads a request in before anything acts on it: who calls is looked up from the head alone, then the
//! body is read under a size cap, a deadline and the budget of all bodies, then the signature over it is checked. A
//! client without a key cannot make us read a body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::Caller;
use super::auth::Claim;
use super::bodies::{Budget, Held};
use super::json::check_form;
use super::policy::Operations;
use super::rate::{Rate, too_many};
use super::reply::refuse;
use crate::app::App;
use crate::error::Error;
use crate::net::Source;

/// The largest body of an InvokeModel or Converse request (service model of `bedrock-runtime`).
pub const RUNTIME_BODY_BYTES: usize = 25_000_000;
/// The largest body of any other request; the largest the contract allows is far smaller.
pub const CONTROL_BODY_BYTES: usize = 1_000_000;
/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// Memory that a value of JSON takes at most beside its text.
const VALUE_BYTES: u64 = 128;

/// What the door needs to know.
#[derive(Debug)]
pub struct Gate {
    app: Arc<App>,
    rate: Option<Rate>,
    operations: Operations,
    bodies: Arc<Budget>,
}

impl Gate {
    /// The door to the `operations` of `app`, as its settings want it.
    pub fn new(app: Arc<App>, operations: Operations) -> Self {
        let rate = app.config.rate_limit.map(|per_second| Rate::new(per_second, app.config.rate_burst()));
        let bodies = Budget::new(app.config.serving.body_memory.0);
        Self { app, rate, operations, bodies }
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
    // Counted until the request is answered.
    let mut held = gate.bodies.open(parts.extensions.get::<Source>().copied());
    let body = match read(body, cap(parts.uri.path()), &mut held).await {
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
    let values = match check_form(&body) {
        Ok(values) => values,
        Err(refusal) => return refusal.into_response(),
    };
    // The text of what is parsed, and the tree around it.
    if let Err(full) = held.grow(body.len() as u64 + values as u64 * VALUE_BYTES) {
        return full.into_response();
    }
    if let Err(refusal) = gate.operations.permit(&key, &parts, &body) {
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

async fn read(body: Body, cap: usize, held: &mut Held) -> Result<Bytes, Response> {
    match tokio::time::timeout(BODY_DEADLINE, collect(Limited::new(body, cap), cap, held)).await {
        Ok(read) => read,
        Err(_) => {
            let message = format!("The request body did not arrive within {} seconds", BODY_DEADLINE.as_secs());
            Err(refuse(StatusCode::REQUEST_TIMEOUT, "RequestTimeoutException", &message))
        }
    }
}

/// The whole body, each piece counted before it is kept.
async fn collect(mut body: Limited<Body>, cap: usize, held: &mut Held) -> Result<Bytes, Response> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|cause| match cause.downcast_ref::<LengthLimitError>() {
            Some(_) => too_large(cap),
            None => Error::validation("The request body could not be read to its end").into_response(),
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > whole.capacity() {
            // Doubled, as the buffer would grow by itself.
            let room = (whole.len() + data.len()).max(2 * whole.capacity());
            held.grow((room - whole.capacity()) as u64).map_err(IntoResponse::into_response)?;
            whole.reserve(room - whole.len());
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
