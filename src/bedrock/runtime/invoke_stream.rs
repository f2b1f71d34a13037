//! InvokeModelWithResponseStream: InvokeModel in pieces, each the model family's own JSON in a frame `chunk`.

use std::sync::Arc;
use std::time::Instant;

use aws_smithy_types::event_stream::Message;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use super::frames::{self, event, exception};
use super::invoke::{self, Request, stop_reason};
use super::outlet::Said;
use crate::app::App;
use crate::bedrock::shapes::AskedModelIdentifier;
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Segment;

/// The media type of what is in the chunks.
const CONTENT_TYPE: HeaderName = HeaderName::from_static("x-amzn-bedrock-content-type");

/// Ask a model, word by word
///
/// Frames of `chunk`; the last has `amazon-bedrock-invocationMetrics`.
#[utoipa::path(
    post, path = "/model/{modelId}/invoke-with-response-stream", operation_id = "InvokeModelWithResponseStream",
    tag = "bedrock-runtime",
    params(("modelId" = inline(AskedModelIdentifier), Path, description = "Which model")),
    request_body = Request,
    responses((
        status = 200, description = "Frames of the answer", content_type = "application/vnd.amazon.eventstream",
        headers(
            ("X-Amzn-Bedrock-Content-Type" = String, description = "What is in the chunks"),
            ("x-tunesmith-preview" = String, description = "Of a job's checkpoint: `step=N`"),
        )
    ))
)]
pub async fn invoke_with_response_stream(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let asked = invoke::asked(&app, &caller, &id, &headers, &body).await?;
    let preview = asked.model.preview;
    let begun = app.clock.monotonic();
    let said = frames::pieces(&app, asked).await?;
    let first_byte = begun.elapsed();
    let mut first = true;
    let frames = said.map(move |said| match said {
        Said::More(more) => {
            let prompt_tokens = std::mem::take(&mut first).then_some(more.input_tokens);
            vec![chunk(&json!({
                "generation": more.text,
                "prompt_token_count": prompt_tokens,
                "generation_token_count": more.output_tokens,
                "stop_reason": null,
            }))]
        }
        Said::End(Ok(answer)) => vec![chunk(&json!({
            "generation": "",
            "prompt_token_count": first.then_some(answer.input_tokens),
            "generation_token_count": answer.output_tokens,
            "stop_reason": stop_reason(&answer),
            "amazon-bedrock-invocationMetrics": {
                "inputTokenCount": answer.input_tokens,
                "outputTokenCount": answer.output_tokens,
                "invocationLatency": milliseconds(begun),
                "firstByteLatency": first_byte.as_millis() as u64,
            },
        }))],
        Said::End(Err(error)) => vec![exception(&error)],
    });
    let mut reply = frames::reply(frames);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok((preview, reply).into_response())
}

fn milliseconds(begun: Instant) -> u64 {
    begun.elapsed().as_millis() as u64
}

fn chunk(body: &Value) -> Message {
    event("chunk", &json!({ "bytes": STANDARD.encode(body.to_string()) }))
}
