//! Every request gets an id, and every reply carries it in `x-amzn-requestid`: what a caller quotes is
//! what the log shows. Failures are logged here, once; a panic in a handler becomes a 500.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use super::reply::Failure;
use crate::app::App;
use crate::error::Error;

/// The id of a request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// Runs the request under a fresh id.
pub async fn identify(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = app.clock.uuid();
    let (method, path) = (request.method().clone(), shortened(request.uri().path()));
    let begun = app.clock.monotonic();

    let mut reply = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(reply) => reply,
        Err(_) => Error::internal(anyhow::anyhow!("the handler panicked")).into_response(),
    };

    let (status, duration_ms) = (reply.status().as_u16(), begun.elapsed().as_millis() as u64);
    match reply.extensions_mut().remove::<Failure>() {
        Some(Failure(cause)) if status >= 500 => {
            tracing::error!(request_id = %id, %method, %path, status, duration_ms, %cause, "request failed");
        }
        Some(Failure(cause)) => {
            tracing::info!(request_id = %id, %method, %path, status, duration_ms, %cause, "request refused");
        }
        None => tracing::info!(request_id = %id, %method, %path, status, duration_ms, "request answered"),
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        reply.headers_mut().insert(REQUEST_ID, id);
    }
    reply
}

/// As much of a path as a log line should hold; the longest that means anything is an ARN, encoded.
fn shortened(path: &str) -> String {
    const LONGEST: usize = 400;
    match path.char_indices().nth(LONGEST) {
        None => path.to_string(),
        Some((end, _)) => format!("{}… ({} bytes)", &path[..end], path.len()),
    }
}
