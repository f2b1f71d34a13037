//! ConverseStream: Converse, word by word.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::json;

use super::converse::{self, Metrics, Request, Usage};
use super::frames::{self, event, exception};
use super::outlet::Said;
use crate::app::App;
use crate::bedrock::shapes::AskedModelIdentifier;
use crate::data::Role;
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Segment;

/// Continue a conversation, word by word
///
/// Frames of `messageStart`, `contentBlockDelta`, `contentBlockStop`, `messageStop` and `metadata`.
#[utoipa::path(
    post, path = "/model/{modelId}/converse-stream", operation_id = "ConverseStream", tag = "bedrock-runtime",
    params(("modelId" = inline(AskedModelIdentifier), Path, description = "Which model")),
    request_body = Request,
    responses((
        status = 200, description = "Frames of the answer", content_type = "application/vnd.amazon.eventstream",
        headers(("x-tunesmith-preview" = String, description = "Of a job's checkpoint: `step=N`"))
    ))
)]
pub async fn converse_stream(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let asked = converse::asked(&app, &caller, &id, &headers, &body).await?;
    let preview = asked.model.preview;
    let begun = app.clock.monotonic();
    let said = frames::pieces(&app, asked).await?;
    let start = event("messageStart", &json!({ "role": Role::Assistant.name() }));
    let frames = said.map(move |said| match said {
        Said::More(more) => {
            vec![event("contentBlockDelta", &json!({ "contentBlockIndex": 0, "delta": { "text": more.text } }))]
        }
        Said::End(Ok(answer)) => vec![
            event("contentBlockStop", &json!({ "contentBlockIndex": 0 })),
            event("messageStop", &json!({ "stopReason": answer.stop_reason.name() })),
            event("metadata", &json!({ "usage": Usage::of(&answer), "metrics": Metrics::since(begun) })),
        ],
        Said::End(Err(error)) => vec![exception(&error)],
    });
    Ok((preview, frames::reply(stream::once(async { vec![start] }).chain(frames))).into_response())
}
