//! Converse: one conversation format for every model. Our models read and write text; whatever would
//! change an answer and is not supported is refused, never ignored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::HeaderMap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::preview::Preview;
use super::{Asked, MAX_TOKENS, PerformanceConfigLatency, ServiceTierType, TEMPERATURE, TOP_P};
use crate::app::App;
use crate::bedrock::constraint::{Shape, Violations, choices, texts};
use crate::bedrock::shapes::AskedModelIdentifier;
use crate::data::{self, Conversation, join_blocks};
use crate::error::{Error, Result};
use crate::http::Caller;
use crate::http::extract::{Segment, parse};
use crate::infer::{Answer, Options, Prompt};

choices! {
    /// Who speaks.
    ConversationRole, ["user", "assistant"];
}

texts! {
    /// A pointer into a model's own reply.
    FieldPath, 1..=256, r"[\s\S]*";
    /// A key of a label.
    RequestMetadataKey, 1..=256, r"[a-zA-Z0-9\s:_@$#=/+,-.]{1,256}";
    /// A value of a label.
    RequestMetadataValue, 0..=256, r"[a-zA-Z0-9\s:_@$#=/+,-.]{0,256}";
}

/// How fast to answer; every model here has one pace.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = PerformanceConfiguration)]
pub struct PerformanceConfig {
    latency: Option<PerformanceConfigLatency>,
}

impl Shape for PerformanceConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.optional(&format!("{at}.latency"), self.latency.as_ref());
    }
}

/// Which tier is asked; there is one.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ServiceTier {
    #[serde(rename = "type")]
    #[schema(required)]
    kind: Option<ServiceTierType>,
}

impl Shape for ServiceTier {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required(&format!("{at}.type"), self.kind.as_ref());
    }
}

/// A conversation to be continued.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ConverseRequest)]
pub struct Request {
    /// User and assistant in turns; the user begins and ends.
    messages: Option<Vec<Message>>,
    /// What the model is told before the conversation.
    system: Option<Vec<Content>>,
    /// How to answer.
    inference_config: Option<InferenceConfig>,
    /// Labels for logs: 1 to 16 pairs.
    request_metadata: Option<BTreeMap<String, String>>,
    #[schema(value_type = Option<Object>)]
    additional_model_request_fields: Option<Value>,
    /// JSON pointers into the model's own reply; our models have no fields of their own.
    #[schema(max_items = 10)]
    additional_model_response_field_paths: Option<Vec<String>>,
    #[schema(value_type = Option<Object>)]
    tool_config: Option<Value>,
    #[schema(value_type = Option<Object>)]
    guardrail_config: Option<Value>,
    #[schema(value_type = Option<Object>)]
    prompt_variables: Option<Value>,
    #[schema(value_type = Option<Object>)]
    output_config: Option<Value>,
    performance_config: Option<PerformanceConfig>,
    service_tier: Option<ServiceTier>,
}

/// One turn.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct Message {
    /// Who speaks.
    #[schema(required)]
    role: Option<ConversationRole>,
    /// What is said, in blocks.
    #[schema(required)]
    content: Option<Vec<Content>>,
}

/// A block of content: exactly one member, which must be `text`.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct Content {
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Kinds that text models do not read.
    #[serde(flatten, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(ignore)]
    other: BTreeMap<String, Value>,
}

/// How to answer.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = InferenceConfiguration)]
pub struct InferenceConfig {
    /// The most tokens to answer with; 512 when absent.
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    /// 0 always takes the most likely token; 0.5 when absent.
    #[schema(minimum = 0, maximum = 1)]
    temperature: Option<f32>,
    /// Draw only from the most likely tokens that hold this share of probability; 0.9 when absent.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Texts that end the answer.
    #[schema(max_items = 2500)]
    stop_sequences: Option<Vec<String>>,
}

/// The answer, what it cost, and why it ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ConverseResponse)]
pub struct Response {
    output: Output,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `model_context_window_exceeded`.
    stop_reason: &'static str,
    usage: Usage,
    metrics: Metrics,
}

/// What the model said.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConverseOutput)]
pub struct Output {
    message: Message,
}

/// Tokens in and out.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TokenUsage)]
pub struct Usage {
    input_tokens: usize,
    output_tokens: usize,
    total_tokens: usize,
}

/// How long it took.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ConverseMetrics)]
pub struct Metrics {
    /// Milliseconds.
    latency_ms: u64,
}

impl Usage {
    /// Of an answer.
    pub(super) fn of(answer: &Answer) -> Self {
        let Answer { input_tokens, output_tokens, .. } = *answer;
        Self { input_tokens, output_tokens, total_tokens: input_tokens + output_tokens }
    }
}

impl Metrics {
    /// Of an answer that was begun then and has just ended.
    pub(super) fn since(begun: Instant) -> Self {
        Self { latency_ms: begun.elapsed().as_millis() as u64 }
    }
}

impl Request {
    pub(super) fn check(&self) -> Result<()> {
        let mut violations = Violations::default();
        for (index, path) in self.additional_model_response_field_paths.iter().flatten().enumerate() {
            let at = format!("additionalModelResponseFieldPaths.{}.member", index + 1);
            FieldPath(path.clone()).check(&at, &mut violations);
        }
        for (key, value) in self.request_metadata.iter().flatten() {
            RequestMetadataKey(key.clone()).check("requestMetadata.key", &mut violations);
            RequestMetadataValue(value.clone()).check("requestMetadata.value", &mut violations);
        }
        for (index, block) in self.system.iter().flatten().enumerate() {
            if block.text.as_deref() == Some("") {
                let at = format!("system.{}.member.text", index + 1);
                violations.add("", &at, "Member must have length greater than or equal to 1");
            }
        }
        violations.optional("performanceConfig", self.performance_config.as_ref());
        violations.optional("serviceTier", self.service_tier.as_ref());
        for (index, message) in self.messages.iter().flatten().enumerate() {
            let at = format!("messages.{}.member", index + 1);
            violations.required(&format!("{at}.role"), message.role.as_ref());
            if message.content.is_none() {
                violations.required(&format!("{at}.content"), None::<&ConversationRole>);
            }
        }
        self.inference_config.iter().for_each(|config| config.check(&mut violations));
        if let Some(pairs) = self.request_metadata.as_ref().filter(|pairs| !(1..=16).contains(&pairs.len())) {
            let size = format!("[{} members]", pairs.len());
            violations.add(&size, "requestMetadata", "Member must have length between 1 and 16");
        }
        if let Some(paths) = self.additional_model_response_field_paths.as_ref().filter(|paths| paths.len() > 10) {
            let size = format!("[{} members]", paths.len());
            let at = "additionalModelResponseFieldPaths";
            violations.add(&size, at, "Member must have length less than or equal to 10");
        }
        violations.finish()?;
        for (name, value) in [
            ("toolConfig", &self.tool_config),
            ("guardrailConfig", &self.guardrail_config),
            ("promptVariables", &self.prompt_variables),
            ("outputConfig", &self.output_config),
        ] {
            if value.is_some() {
                return Err(Error::validation(format!("{name} is not supported by this model: leave it out")));
            }
        }
        match &self.additional_model_request_fields {
            Some(Value::Object(members)) if members.is_empty() => Ok(()),
            None => Ok(()),
            Some(_) => Err(Error::validation("additionalModelRequestFields: this model has no further fields")),
        }
    }

    pub(super) fn conversation(&self) -> Result<Conversation> {
        let messages = self.messages.as_deref().unwrap_or_default();
        let mut turns = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            let expected = if index % 2 == 0 { data::Role::User } else { data::Role::Assistant };
            if message.role.as_ref().is_some_and(|role| role.0 != expected.name()) {
                return Err(Error::validation(if index == 0 {
                    "A conversation must start with a user message. Try again with a conversation that starts with a \
                     user message."
                } else {
                    "A conversation must alternate between user and assistant roles. Make sure the conversation \
                     alternates between user and assistant roles and try again."
                }));
            }
            let text = text_of(message.content.as_deref().unwrap_or_default(), &format!("messages[{index}].content"))?;
            if text.trim().is_empty() {
                return Err(Error::validation(format!(
                    "The text of messages[{index}].content is blank: say something"
                )));
            }
            turns.push(data::Message { role: expected, text });
        }
        if turns.len() % 2 == 0 {
            return Err(Error::validation(
                "A conversation must start and end with a user message. Try again with a conversation that ends with a \
                 user message.",
            ));
        }
        let system = self.system.as_deref().map(|blocks| text_of(blocks, "system")).transpose()?;
        Ok(Conversation { system: system.filter(|text| !text.is_empty()), messages: turns })
    }

    fn options(&self, seed: u64) -> Options {
        let config = self.inference_config.as_ref();
        let max_tokens = config.and_then(|config| config.max_tokens);
        Options {
            max_tokens: max_tokens.map_or(MAX_TOKENS, |most| usize::try_from(most).unwrap_or(MAX_TOKENS)),
            temperature: config.and_then(|config| config.temperature).unwrap_or(TEMPERATURE),
            top_p: config.and_then(|config| config.top_p).unwrap_or(TOP_P),
            stop_sequences: config.and_then(|config| config.stop_sequences.clone()).unwrap_or_default(),
            seed,
            ..Options::default()
        }
    }
}

impl InferenceConfig {
    fn check(&self, violations: &mut Violations) {
        if let Some(most) = self.max_tokens.filter(|most| *most < 1) {
            let constraint = "Member must have value greater than or equal to 1";
            violations.add(&most.to_string(), "inferenceConfig.maxTokens", constraint);
        }
        for (name, value) in [("temperature", self.temperature), ("topP", self.top_p)] {
            if let Some(value) = value.filter(|value| !(0.0..=1.0).contains(value)) {
                let constraint = "Member must have value between 0 and 1";
                violations.add(&value.to_string(), &format!("inferenceConfig.{name}"), constraint);
            }
        }
        let stops = self.stop_sequences.as_deref().unwrap_or_default();
        if stops.len() > 2500 {
            let size = format!("[{} members]", stops.len());
            violations.add(
                &size,
                "inferenceConfig.stopSequences",
                "Member must have length less than or equal to 2500",
            );
        }
        if stops.iter().any(String::is_empty) {
            let constraint = "Member must have length greater than or equal to 1";
            violations.add("", "inferenceConfig.stopSequences", constraint);
        }
    }
}

/// The blocks' text, joined as training joins it.
fn text_of(blocks: &[Content], place: &str) -> Result<String> {
    let mut texts = Vec::with_capacity(blocks.len());
    for block in blocks {
        match (&block.text, block.other.keys().next()) {
            (Some(text), None) => texts.push(text.as_str()),
            (None, Some(kind)) => {
                return Err(Error::validation(format!("{place}: this model reads text only; remove the {kind} block")));
            }
            _ => return Err(Error::validation(format!("{place}: a block must have exactly one member, \"text\""))),
        }
    }
    Ok(join_blocks(&texts))
}

/// What a request to continue a conversation comes to.
pub(super) async fn asked<'a>(
    app: &'a App,
    caller: &Caller,
    id: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Asked<'a>> {
    super::refuse_guardrail(headers)?;
    let model = super::model(app, caller, id).await?;
    let request: Request = parse(body)?;
    request.check()?;
    Ok(Asked { model, prompt: Prompt::Chat(request.conversation()?), options: request.options(app.clock.seed()) })
}

/// Continue a conversation
///
/// `modelId` is a foundation model's id or ARN. As an extension, a custom model's name or ARN works too, and a
/// customization job's ARN: its newest checkpoint answers while it runs.
#[utoipa::path(
    post, path = "/model/{modelId}/converse", operation_id = "Converse", tag = "bedrock-runtime",
    params(("modelId" = inline(AskedModelIdentifier), Path, description = "Which model")),
    request_body = Request,
    responses((status = 200, description = "The answer", body = Response, headers(
        ("x-tunesmith-preview" = String, description = "Of a job's checkpoint: `step=N`"),
    )))
)]
pub async fn converse(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(Preview, axum::Json<Response>)> {
    let asked = asked(&app, &caller, &id, &headers, &body).await?;
    let preview = asked.model.preview;
    let begun = app.clock.monotonic();
    let answer = super::answer(&app, asked).await?;
    let (stop_reason, usage) = (answer.stop_reason.name(), Usage::of(&answer));
    let content = Content { text: Some(answer.text), ..Content::default() };
    let response = Response {
        output: Output {
            message: Message {
                role: Some(ConversationRole(data::Role::Assistant.name().to_string())),
                content: Some(vec![content]),
            },
        },
        stop_reason,
        usage,
        metrics: Metrics::since(begun),
    };
    Ok((preview, axum::Json(response)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn conversation(messages: Value) -> Result<Conversation> {
        let body = json!({ "messages": messages, "system": [{ "text": "Be brief." }] }).to_string();
        let request: Request = parse(body.as_bytes())?;
        request.check()?;
        request.conversation()
    }

    #[test]
    fn blocks_of_text_become_turns() {
        let turns = conversation(json!([
            { "role": "user", "content": [{ "text": "a" }, { "text": "b" }] },
            { "role": "assistant", "content": [{ "text": "c" }] },
            { "role": "user", "content": [{ "text": "d" }] },
        ]))
        .unwrap();
        assert_eq!(turns.system.as_deref(), Some("Be brief."));
        assert_eq!(turns.messages.iter().map(|turn| turn.text.as_str()).collect::<Vec<_>>(), ["a\nb", "c", "d"]);
    }

    #[test]
    fn what_a_text_model_cannot_do_is_refused() {
        let user = |content: Value| json!({ "role": "user", "content": content });
        for (messages, reason) in [
            (json!([]), "must start and end with a user message"),
            (json!([{ "role": "assistant", "content": [{ "text": "a" }] }]), "must start with a user message"),
            (json!([user(json!([{ "text": "a" }])), user(json!([{ "text": "b" }]))]), "must alternate"),
            (json!([user(json!([{ "image": { "format": "png" } }]))]), "remove the image block"),
            (json!([user(json!([{ "text": "a", "image": {} }]))]), "exactly one member"),
            (json!([user(json!([{}]))]), "exactly one member"),
            (json!([user(json!([]))]), "blank"),
            (json!([{ "role": "user" }]), "'messages.1.member.content' failed"),
            (json!([{ "role": "owl", "content": [] }]), "enum value set: [user, assistant]"),
            (
                json!([user(json!("a"))]),
                "Value 'a' at 'messages.1.member.content' failed to satisfy constraint: Member must be a list",
            ),
        ] {
            let refusal = conversation(messages.clone()).unwrap_err();
            assert!(refusal.message().contains(reason), "{messages}: {refusal}");
        }
    }

    #[test]
    fn options_outside_their_range_are_refused() {
        for (config, reason) in [
            (json!({ "maxTokens": 0 }), "inferenceConfig.maxTokens"),
            (json!({ "temperature": 1.1 }), "inferenceConfig.temperature"),
            (json!({ "topP": -0.1 }), "inferenceConfig.topP"),
            (json!({ "stopSequences": [""] }), "inferenceConfig.stopSequences"),
        ] {
            let body = json!({ "messages": [], "inferenceConfig": config }).to_string();
            let refusal = parse::<Request>(body.as_bytes()).unwrap().check().unwrap_err();
            assert!(refusal.message().contains(reason), "{refusal}");
        }
    }
}
