//! InvokeModel: the body is the model family's own. Ours is Llama's (source: AWS, "Meta Llama models",
//! inference parameters), for every base.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Asked, MAX_TOKENS, TEMPERATURE, TOP_P};
use crate::app::App;
use crate::bedrock::shapes::AskedModelIdentifier;
use crate::error::{Error, Result};
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::infer::{Answer, Options, Prompt, StopReason};

/// Tokens of the prompt.
const INPUT_TOKENS: HeaderName = HeaderName::from_static("x-amzn-bedrock-input-token-count");
/// Tokens of the answer.
const OUTPUT_TOKENS: HeaderName = HeaderName::from_static("x-amzn-bedrock-output-token-count");
/// Milliseconds that the model took.
const LATENCY: HeaderName = HeaderName::from_static("x-amzn-bedrock-invocation-latency");
/// The most tokens one answer may have (AWS, "Meta Llama models").
const MAX_GENERATION: i64 = 2048;

/// A prompt and how to answer it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = InvokeModelRequest)]
pub struct Request {
    /// One user's turn where the model has a chat template; continued as it is where it has none.
    #[schema(min_length = 1)]
    pub(super) prompt: String,
    /// 0 always takes the most likely token; 0.5 when absent.
    #[schema(minimum = 0, maximum = 1)]
    temperature: Option<f32>,
    /// Draw only from the most likely tokens that hold this share of probability; 0.9 when absent.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// The most tokens to answer with; 512 when absent.
    #[schema(minimum = 1, maximum = 2048)]
    max_gen_len: Option<i64>,
}

/// The answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InvokeModelResponse)]
pub struct Reply {
    generation: String,
    prompt_token_count: usize,
    generation_token_count: usize,
    /// `stop`, or `length` when the answer was cut.
    stop_reason: &'static str,
}

impl Request {
    pub(super) fn parse(body: &[u8]) -> Result<Self> {
        let malformed = |why: String| {
            Error::validation(format!("Malformed input request: {why}, please reformat your input and try again."))
        };
        let request: Self = serde_json::from_slice(body).map_err(|cause| malformed(cause.to_string()))?;
        let outside = |name: &str, min: &str, max: &str| malformed(format!("{name} must be between {min} and {max}"));
        for (name, value) in [("temperature", request.temperature), ("top_p", request.top_p)] {
            if value.is_some_and(|value| !(0.0..=1.0).contains(&value)) {
                return Err(outside(name, "0", "1"));
            }
        }
        if request.max_gen_len.is_some_and(|length| !(1..=MAX_GENERATION).contains(&length)) {
            return Err(outside("max_gen_len", "1", &MAX_GENERATION.to_string()));
        }
        if request.prompt.is_empty() {
            return Err(malformed("prompt must not be empty".into()));
        }
        Ok(request)
    }

    fn options(&self, seed: u64) -> Options {
        Options {
            max_tokens: self.max_gen_len.map_or(MAX_TOKENS, |length| length.unsigned_abs() as usize),
            temperature: self.temperature.unwrap_or(TEMPERATURE),
            top_p: self.top_p.unwrap_or(TOP_P),
            seed,
            ..Options::default()
        }
    }
}

/// Why an answer ended, in Llama's words.
pub(super) fn stop_reason(answer: &Answer) -> &'static str {
    match answer.stop_reason {
        StopReason::EndTurn | StopReason::StopSequence => "stop",
        StopReason::MaxTokens | StopReason::ContextWindow => "length",
    }
}

/// What a request to a model comes to.
pub(super) async fn asked<'a>(
    app: &'a App,
    caller: &Caller,
    id: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Asked<'a>> {
    super::check_headers(headers)?;
    super::refuse_guardrail(headers)?;
    let model = super::model(app, caller, id).await?;
    let request = Request::parse(body)?;
    let options = request.options(app.clock.seed());
    Ok(Asked { model, prompt: Prompt::Text(request.prompt), options })
}

/// Ask a model
///
/// `modelId` is a foundation model's id or ARN. As an extension, a custom model's name or ARN works too, and a
/// customization job's ARN: its newest checkpoint answers while it runs.
#[utoipa::path(
    post, path = "/model/{modelId}/invoke", operation_id = "InvokeModel", tag = "bedrock-runtime",
    params(("modelId" = inline(AskedModelIdentifier), Path, description = "Which model")),
    request_body = Request,
    responses((status = 200, description = "The answer", body = Reply, headers(
        ("X-Amzn-Bedrock-Input-Token-Count" = u64, description = "Tokens of the prompt"),
        ("X-Amzn-Bedrock-Output-Token-Count" = u64, description = "Tokens of the answer"),
        ("X-Amzn-Bedrock-Invocation-Latency" = u64, description = "Milliseconds that the model took"),
        ("x-tunesmith-preview" = String, description = "Of a job's checkpoint: `step=N`"),
    )))
)]
pub async fn invoke(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let asked = asked(&app, &caller, &id, &headers, &body).await?;
    let preview = asked.model.preview;
    let begun = app.clock.monotonic();
    let answer = super::answer(&app, asked).await?;

    let stop_reason = stop_reason(&answer);
    let reply = Reply {
        generation: answer.text,
        prompt_token_count: answer.input_tokens,
        generation_token_count: answer.output_tokens,
        stop_reason,
    };
    let counts = [
        (INPUT_TOKENS, HeaderValue::from(answer.input_tokens)),
        (OUTPUT_TOKENS, HeaderValue::from(answer.output_tokens)),
        (LATENCY, HeaderValue::from(begun.elapsed().as_millis() as u64)),
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
    ];
    Ok((preview, counts, serde_json::to_vec(&reply)?).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_not_understood_is_said_to_be_malformed() {
        for body in [
            "",
            "{}",
            "[]",
            r#"{"prompt": 1}"#,
            r#"{"prompt": ""}"#,
            r#"{"prompt": "a", "max_gen_len": 0}"#,
            r#"{"prompt": "a", "max_gen_len": 99999999999999999999}"#,
            r#"{"prompt": "a", "temperature": 1.5}"#,
            r#"{"prompt": "a", "top_p": -0.1}"#,
            r#"{"prompt": "a", "surprise": true}"#,
        ] {
            let refusal = Request::parse(body.as_bytes()).unwrap_err();
            assert!(refusal.message().starts_with("Malformed input request: "), "{body}: {refusal}");
        }
        assert!(Request::parse(br#"{"prompt": "a", "max_gen_len": 1, "temperature": 0, "top_p": 1}"#).is_ok());
    }
}
