//! Bedrock's logs of requests as a source of prompts and answers (source: AWS, "Model invocation logging" and
//! "Use invocation logs for data preparation"). A log line holds the body of a request and of its reply as the
//! operation had them: Converse's form, or a model family's own. What is no text, has several turns, or failed,
//! is left out with the reason.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::jsonl::Fault;
use super::questions::{Asked, Question};
use super::records::join_blocks;

/// One answered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Which model was asked, as the log has it.
    pub model: String,
    /// What the caller gave along as `requestMetadata`.
    pub metadata: BTreeMap<String, String>,
    /// The request, and its answer.
    pub asked: Asked,
}

/// `requestMetadataFilters`: which requests are taken. Exactly one member is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetadataFilters {
    equals: Option<BTreeMap<String, String>>,
    not_equals: Option<BTreeMap<String, String>>,
    and_all: Option<Vec<Self>>,
    or_all: Option<Vec<Self>>,
}

impl MetadataFilters {
    /// Whether a request with this metadata is taken.
    pub fn take(&self, metadata: &BTreeMap<String, String>) -> bool {
        let has = |pairs: &BTreeMap<String, String>| pairs.iter().all(|(key, value)| metadata.get(key) == Some(value));
        self.equals.as_ref().is_none_or(has)
            && self.not_equals.as_ref().is_none_or(|pairs| !has(pairs))
            && self.and_all.as_ref().is_none_or(|all| all.iter().all(|one| one.take(metadata)))
            && self.or_all.as_ref().is_none_or(|all| all.iter().any(|one| one.take(metadata)))
    }
}

/// The members of a log line that are read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    schema_type: Option<String>,
    error_code: Option<String>,
    #[serde(default)]
    model_id: String,
    #[serde(default)]
    request_metadata: BTreeMap<String, String>,
    input: Option<Input>,
    output: Option<Output>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Input {
    input_body_json: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    output_body_json: Option<Value>,
}

impl Logged {
    /// Reads a line of a log file.
    ///
    /// # Errors
    /// Why the line is of no use.
    pub fn parse(line: &str) -> Result<Self, Fault> {
        let unusable = |why: &str| Fault::format(None, why);
        let line: Line =
            serde_json::from_str(line).map_err(|cause| Fault::syntax(None, format!("not a log line: {cause}")))?;
        if line.schema_type.as_deref() != Some("ModelInvocationLog") {
            return Err(unusable("schemaType is not ModelInvocationLog"));
        }
        if line.error_code.is_some() {
            return Err(unusable("the logged request failed"));
        }
        let input = line.input.and_then(|input| input.input_body_json);
        let input = input.ok_or_else(|| unusable("input.inputBodyJson is missing: large bodies are not read"))?;
        let question = question(&input)?;
        let answer = line.output.and_then(|output| output.output_body_json).as_ref().and_then(answer);
        Ok(Self { model: line.model_id, metadata: line.request_metadata, asked: Asked { question, answer } })
    }
}

/// The one turn of a request's body: Converse, Claude and Nova have `messages`, Llama and others a `prompt`.
fn question(body: &Value) -> Result<Question, Fault> {
    if let Some(prompt) = ["prompt", "inputText"].iter().find_map(|name| body.get(*name)?.as_str()) {
        if prompt.trim().is_empty() {
            return Err(Fault::format(None, "the logged prompt is empty"));
        }
        return Ok(Question::Text(prompt.to_string()));
    }
    let Some(messages) = body.get("messages").and_then(Value::as_array) else {
        return Err(Fault::format(None, "the logged request has neither messages nor a prompt"));
    };
    let [message] = messages.as_slice() else {
        return Err(Fault::format(None, format!("the logged request has {} turns, not one", messages.len())));
    };
    let user =
        text(message.get("content")).ok_or_else(|| Fault::format(None, "the logged request is not text alone"))?;
    let system = match body.get("system") {
        None => None,
        given => Some(text(given).ok_or_else(|| Fault::format(None, "the logged system prompt is not text alone"))?),
    };
    Ok(Question::Turn { system: system.filter(|text| !text.trim().is_empty()), user })
}

/// What was answered, when it ended by itself and is text alone.
fn answer(body: &Value) -> Option<String> {
    // A streamed reply of InvokeModelWithResponseStream: its pieces in order.
    if let Some(pieces) = body.as_array() {
        let texts: Vec<&str> = pieces.iter().filter_map(piece).collect();
        let cut = pieces.iter().any(is_cut);
        return Some(texts.concat()).filter(|text| !cut && !text.trim().is_empty());
    }
    if is_cut(body) {
        return None;
    }
    let message = body.get("output").and_then(|output| output.get("message")).unwrap_or(body);
    let said = text(message.get("content")).or_else(|| Some(body.get("generation")?.as_str()?.to_string()));
    said.filter(|text| !text.trim().is_empty())
}

/// The text of one piece of a streamed reply: Llama's, or Claude's.
fn piece(piece: &Value) -> Option<&str> {
    piece.get("generation").or_else(|| piece.get("delta")?.get("text"))?.as_str()
}

/// Whether a reply says that it was cut at its limit.
fn is_cut(body: &Value) -> bool {
    let reasons =
        [body.get("stopReason"), body.get("stop_reason"), body.get("delta").and_then(|d| d.get("stop_reason"))];
    reasons.into_iter().flatten().any(|reason| matches!(reason.as_str(), Some("max_tokens" | "length")))
}

/// A text given as a string or as blocks of text; `None` when there is anything else.
fn text(content: Option<&Value>) -> Option<String> {
    match content? {
        Value::String(text) => Some(text.clone()),
        Value::Array(blocks) => {
            let texts: Option<Vec<&str>> = blocks.iter().map(|block| block.get("text")?.as_str()).collect();
            texts.filter(|texts| !texts.is_empty()).map(|texts| join_blocks(&texts))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(operation: &str, input: Value, output: Value) -> String {
        json!({"schemaType": "ModelInvocationLog", "schemaVersion": "1.0", "timestamp": "2026-01-01T00:00:00Z",
            "operation": operation, "modelId": "meta.llama3-v1:0",
            "input": {"inputContentType": "application/json", "inputBodyJson": input, "inputTokenCount": 3},
            "output": {"outputContentType": "application/json", "outputBodyJson": output, "outputTokenCount": 3},
            "requestMetadata": {"project": "a", "tier": "gold"}})
        .to_string()
    }

    fn asked(question: Question, answer: Option<&str>) -> Asked {
        Asked { question, answer: answer.map(str::to_string) }
    }

    fn turn(user: &str) -> Question {
        Question::Turn { system: None, user: user.into() }
    }

    #[test]
    fn every_operations_bodies_are_understood() {
        let converse = json!({"messages": [{"role": "user", "content": [{"text": "Hi"}]}], "system": [{"text": "S"}]});
        let reply = json!({"output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
            "stopReason": "end_turn"});
        let logged = Logged::parse(&line("Converse", converse, reply)).unwrap();
        assert_eq!(logged.asked.question, Question::Turn { system: Some("S".into()), user: "Hi".into() });
        assert_eq!(logged.asked.answer.as_deref(), Some("Hello"));
        assert_eq!((logged.model.as_str(), logged.metadata["tier"].as_str()), ("meta.llama3-v1:0", "gold"));

        let of = |operation, input, output| Logged::parse(&line(operation, input, output)).unwrap().asked;
        let llama = json!({"prompt": "Hi", "max_gen_len": 9});
        let whole = json!({"generation": "Hello", "stop_reason": "stop"});
        assert_eq!(of("InvokeModel", llama.clone(), whole), asked(Question::Text("Hi".into()), Some("Hello")));
        let streamed = json!([{"generation": "Hel"}, {"generation": "lo", "stop_reason": "stop"}]);
        let operation = "InvokeModelWithResponseStream";
        assert_eq!(of(operation, llama, streamed), asked(Question::Text("Hi".into()), Some("Hello")));
        let claude = json!({"messages": [{"role": "user", "content": "Hi"}], "anthropic_version": "x"});
        let content = json!({"content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn"});
        assert_eq!(of("InvokeModel", claude.clone(), content), asked(turn("Hi"), Some("Hello")));
        let deltas = json!([{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hel"}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "lo"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}]);
        assert_eq!(of(operation, claude, deltas), asked(turn("Hi"), Some("Hello")));
    }

    #[test]
    fn an_answer_that_was_cut_is_none() {
        let input = json!({"prompt": "Hi"});
        for output in [
            json!({"generation": "Hel", "stop_reason": "length"}),
            json!({"output": {"message": {"content": [{"text": "Hel"}]}}, "stopReason": "max_tokens"}),
            json!([{"generation": "Hel"}, {"generation": "", "stop_reason": "length"}]),
            json!({"output": {"message": {"content": [{"toolUse": {}}]}}, "stopReason": "tool_use"}),
        ] {
            let logged = Logged::parse(&line("InvokeModel", input.clone(), output.clone())).unwrap();
            assert_eq!(logged.asked.answer, None, "{output}");
        }
    }

    #[test]
    fn what_cannot_be_asked_again_is_left_out_with_the_reason() {
        let of = |input: Value| Logged::parse(&line("Converse", input, json!({}))).unwrap_err().reason;
        let said = |role: &str| json!({"role": role, "content": [{"text": "a"}]});
        assert!(of(json!({"messages": [said("user"), said("assistant"), said("user")]})).contains("3 turns, not one"));
        let image = json!({"messages": [{"role": "user", "content": [{"text": "a"}, {"image": {}}]}]});
        assert!(of(image).contains("not text alone"));
        assert!(of(json!({"inputs": "a"})).contains("neither messages nor a prompt"));
        assert!(Logged::parse("{}").unwrap_err().reason.contains("schemaType"));
        assert!(Logged::parse("{").unwrap_err().reason.contains("not a log line"));
        let failed = r#"{"schemaType": "ModelInvocationLog", "errorCode": "ThrottlingException"}"#;
        assert!(Logged::parse(failed).unwrap_err().reason.contains("failed"));
    }

    #[test]
    fn filters_look_at_the_requests_metadata() {
        let metadata = BTreeMap::from([("project".into(), "a".into()), ("tier".into(), "gold".into())]);
        let takes = |filter: Value| serde_json::from_value::<MetadataFilters>(filter).unwrap().take(&metadata);
        assert!(takes(json!({"equals": {"project": "a"}})));
        assert!(!takes(json!({"equals": {"project": "b"}})));
        assert!(!takes(json!({"notEquals": {"tier": "gold"}})));
        assert!(takes(json!({"notEquals": {"missing": "gold"}})));
        assert!(takes(json!({"andAll": [{"equals": {"project": "a"}}, {"notEquals": {"tier": "x"}}]})));
        assert!(!takes(json!({"andAll": [{"equals": {"project": "a"}}, {"equals": {"tier": "x"}}]})));
        assert!(takes(json!({"orAll": [{"equals": {"project": "b"}}, {"equals": {"tier": "gold"}}]})));
        assert!(!takes(json!({"orAll": [{"equals": {"project": "b"}}, {"equals": {"tier": "x"}}]})));
    }
}
