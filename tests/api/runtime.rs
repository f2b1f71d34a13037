//! Asking a model over the wire. The model has learned nothing, so only the form of its answers counts.

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use base64::Engine as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::http::{PATIENCE, Reply};
use crate::support::{TINY, segment, with_app};

/// The frames of a stream: what kind, which, and its payload.
fn frames(mut bytes: &[u8]) -> Result<Vec<(String, String, Value)>, String> {
    let mut decoder = MessageFrameDecoder::new();
    let mut frames = Vec::new();
    while let DecodedFrame::Complete(message) = decoder.decode_frame(&mut bytes).map_err(|cause| cause.to_string())? {
        let header = |name: &str| {
            let found = message.headers().iter().find(|header| header.name().as_str() == name);
            found.map(|header| header.value().as_string().unwrap().as_str().to_string())
        };
        let name = header(":event-type").or_else(|| header(":exception-type")).unwrap();
        assert_eq!(header(":content-type").as_deref(), Some("application/json"));
        frames.push((header(":message-type").unwrap(), name, serde_json::from_slice(message.payload()).unwrap()));
    }
    Ok(frames)
}

fn events(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let event = |(kind, name, payload): (String, String, Value)| {
        assert_eq!(kind, "event", "{name}: {payload}");
        (name, payload)
    };
    frames(&reply.body).unwrap().into_iter().map(event).collect()
}

#[test]
fn a_streamed_answer_is_the_whole_answer_in_pieces() {
    with_app(async |app| {
        let id = segment(TINY);
        let converse = json!({
            "messages": [{ "role": "user", "content": [{ "text": "a b" }] }],
            "inferenceConfig": { "maxTokens": 20, "temperature": 0.0 },
        });
        let whole = app.call("POST", &format!("/model/{id}/converse"), Some(&converse)).await.json();
        let streamed = app.call("POST", &format!("/model/{id}/converse-stream"), Some(&converse)).await;
        let events_of = events(&streamed);
        let names: Vec<&str> = events_of.iter().map(|(name, _)| name.as_str()).collect();
        let deltas = names.iter().filter(|name| **name == "contentBlockDelta").count();
        assert!(deltas > 1, "{names:?}");
        let mut expected = vec!["messageStart"];
        expected.extend(vec!["contentBlockDelta"; deltas]);
        expected.extend(["contentBlockStop", "messageStop", "metadata"]);
        assert_eq!(names, expected);
        let text: String = events_of.iter().filter_map(|(_, payload)| payload["delta"]["text"].as_str()).collect();
        assert_eq!(text, whole["output"]["message"]["content"][0]["text"]);
        assert_eq!(events_of[0].1, json!({ "role": "assistant" }));
        assert_eq!(events_of[names.len() - 2].1["stopReason"], whole["stopReason"]);
        assert_eq!(events_of[names.len() - 1].1["usage"], whole["usage"]);

        let invoke = json!({ "prompt": "a b", "max_gen_len": 20, "temperature": 0 });
        let whole = app.call("POST", &format!("/model/{id}/invoke"), Some(&invoke)).await.json();
        let streamed = app.call("POST", &format!("/model/{id}/invoke-with-response-stream"), Some(&invoke)).await;
        assert_eq!(streamed.header("x-amzn-bedrock-content-type"), Some("application/json"));
        let chunks: Vec<Value> = events(&streamed)
            .into_iter()
            .map(|(name, payload)| {
                assert_eq!(name, "chunk");
                let bytes = base64::engine::general_purpose::STANDARD.decode(payload["bytes"].as_str().unwrap());
                serde_json::from_slice(&bytes.unwrap()).unwrap()
            })
            .collect();
        let text: String = chunks.iter().map(|chunk| chunk["generation"].as_str().unwrap()).collect();
        assert_eq!(text, whole["generation"]);
        let (first, last) = (&chunks[0], &chunks[chunks.len() - 1]);
        assert_eq!(first["prompt_token_count"], whole["prompt_token_count"]);
        assert_eq!(last["generation_token_count"], whole["generation_token_count"]);
        assert_eq!((&last["stop_reason"], &first["stop_reason"]), (&whole["stop_reason"], &Value::Null));
        let metrics = &last["amazon-bedrock-invocationMetrics"];
        assert_eq!(metrics["inputTokenCount"], whole["prompt_token_count"]);
        assert!(metrics["firstByteLatency"].as_u64() <= metrics["invocationLatency"].as_u64());

        // Every bit is covered by a checksum.
        for place in [3, streamed.body.len() / 2, streamed.body.len() - 1] {
            let mut flipped = streamed.body.clone();
            flipped[place] ^= 4;
            assert!(frames(&flipped).map(|frames| frames.len()) != Ok(chunks.len()), "a flipped bit at {place}");
        }
        app
    });
}

#[test]
fn what_fails_before_the_first_word_is_an_error_and_no_stream() {
    with_app(async |app| {
        let id = segment(TINY);
        let long = json!({ "prompt": "a ".repeat(3000) });
        for (operation, body) in [
            ("invoke-with-response-stream", json!({ "inputText": "a" })),
            ("invoke-with-response-stream", long),
            ("converse-stream", json!({ "messages": [{ "role": "assistant", "content": [{ "text": "a" }] }] })),
        ] {
            let reply = app.call("POST", &format!("/model/{id}/{operation}"), Some(&body)).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{operation}");
        }
        let body = json!({ "prompt": "a" });
        let missing = app.call("POST", "/model/no-such-model/invoke-with-response-stream", Some(&body)).await;
        assert_eq!((missing.status, missing.error()), (404, "ResourceNotFoundException"));
        app
    });
}

#[test]
fn a_reader_who_goes_away_ends_the_answer() {
    with_app(async |app| {
        let places = app.service.app.answers.available_permits();
        let target = format!("/model/{}/invoke-with-response-stream", segment(TINY));
        // As long as the model can hold: it would take a while.
        let body = json!({ "prompt": "a", "max_gen_len": 2048, "temperature": 1 }).to_string();
        let headers = app.signed(&app.root, "POST", &target, &body, 0);
        let mut head = format!("POST {target} HTTP/1.1\r\nhost: {}\r\n", app.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        let mut stream = tokio::net::TcpStream::connect(app.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 16];
        stream.read_exact(&mut first).await.unwrap();
        assert!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&first));
        drop(stream);
        let all = u32::try_from(places).unwrap();
        tokio::time::timeout(PATIENCE, app.service.app.answers.acquire_many(all)).await.unwrap().unwrap().forget();
        app.service.app.answers.add_permits(places);
        app
    });
}

#[test]
fn counted_tokens_are_those_that_an_answer_is_charged() {
    with_app(async |app| {
        let id = segment(TINY);
        let converse = json!({ "messages": [{ "role": "user", "content": [{ "text": "a b c" }] }] });
        let invoke = json!({ "prompt": "a b c", "max_gen_len": 1 });
        let body = base64::engine::general_purpose::STANDARD.encode(invoke.to_string());
        let count = async |input: Value| {
            let reply = app.call("POST", &format!("/model/{id}/count-tokens"), Some(&json!({ "input": input }))).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            reply.json()["inputTokens"].clone()
        };
        let said = app.call("POST", &format!("/model/{id}/converse"), Some(&converse)).await.json();
        assert_eq!(count(json!({ "converse": converse })).await, said["usage"]["inputTokens"]);
        let said = app.call("POST", &format!("/model/{id}/invoke"), Some(&invoke)).await.json();
        assert_eq!(count(json!({ "invokeModel": { "body": body } })).await, said["prompt_token_count"]);
        for (input, words) in [
            (json!({}), "exactly one of"),
            (json!({ "invokeModel": {} }), "input.invokeModel.body"),
            (json!({ "invokeModel": { "body": "%" } }), "not base64"),
        ] {
            let reply = app.call("POST", &format!("/model/{id}/count-tokens"), Some(&json!({ "input": input }))).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"));
            assert!(reply.message().contains(words), "{}", reply.message());
        }
        app
    });
}

#[test]
fn a_foundation_model_answers_in_both_forms_by_id_and_by_arn() {
    with_app(async |app| {
        let arn = format!("arn:aws:bedrock:us-east-1::foundation-model/{TINY}");
        for id in [TINY, &arn] {
            let invoke = json!({ "prompt": "a b", "max_gen_len": 3, "temperature": 0 });
            let reply = app.call("POST", &format!("/model/{}/invoke", segment(id)), Some(&invoke)).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let answer = reply.json();
            assert_eq!(reply.header("content-type"), Some("application/json"));
            let count = |name: &str| reply.header(name).unwrap().parse::<u64>().unwrap();
            assert_eq!(answer["prompt_token_count"], count("x-amzn-bedrock-input-token-count"));
            assert_eq!(answer["generation_token_count"], count("x-amzn-bedrock-output-token-count"));
            assert!(reply.header("x-amzn-bedrock-invocation-latency").is_some());
            assert!(answer["generation"].is_string() && answer["stop_reason"].is_string());

            let converse = json!({
                "messages": [{ "role": "user", "content": [{ "text": "a b" }] }],
                "inferenceConfig": { "maxTokens": 3, "temperature": 0.0 },
            });
            let reply = app.call("POST", &format!("/model/{}/converse", segment(id)), Some(&converse)).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let answer = reply.json();
            assert_eq!(answer["output"]["message"]["role"], "assistant");
            assert!(answer["output"]["message"]["content"][0]["text"].is_string());
            let usage = |name: &str| answer["usage"][name].as_u64().unwrap();
            assert!(usage("inputTokens") > 0 && usage("outputTokens") > 0);
            assert_eq!(usage("totalTokens"), usage("inputTokens") + usage("outputTokens"));
            assert!(answer["metrics"]["latencyMs"].is_u64());
        }
        app
    });
}

#[test]
fn unknown_models_wrong_bodies_and_guardrails_are_refused() {
    with_app(async |app| {
        let body = json!({ "prompt": "a" });
        let missing = app.call("POST", "/model/no-such-model/invoke", Some(&body)).await;
        assert_eq!((missing.status, missing.error()), (404, "ResourceNotFoundException"));
        let id = segment(TINY);
        let wrong = app.call("POST", &format!("/model/{id}/invoke"), Some(&json!({ "inputText": "a" }))).await;
        assert_eq!((wrong.status, wrong.error()), (400, "ValidationException"));
        let image = json!({ "messages": [{ "role": "user", "content": [{ "image": { "format": "png" } }] }] });
        let image = app.call("POST", &format!("/model/{id}/converse"), Some(&image)).await;
        assert_eq!((image.status, image.error()), (400, "ValidationException"));
        app
    });
}

#[test]
fn requests_at_once_are_answered_together_and_each_as_it_is_alone() {
    with_app(async |app| {
        let target = format!("/model/{}/invoke", segment(TINY));
        let ask = async |number: usize| {
            let prompt = ["a b", "b", "c a b a", "b b a"][number % 4];
            let body = json!({ "prompt": prompt, "max_gen_len": 5 + number, "temperature": 0 });
            let reply = app.call("POST", &target, Some(&body)).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            reply.json()
        };
        let mut alone = Vec::new();
        for number in 0..16 {
            alone.push(ask(number).await);
        }
        assert_eq!(futures::future::join_all((0..16).map(ask)).await, alone);
        app
    });
}

#[test]
fn what_comes_above_the_places_at_the_door_is_throttled() {
    with_app(async |app| {
        let places = app.service.app.answers.available_permits();
        let taken = app.service.app.answers.clone().try_acquire_many_owned(u32::try_from(places).unwrap()).unwrap();
        let target = format!("/model/{}/invoke", segment(TINY));
        let body = json!({ "prompt": "a", "max_gen_len": 1 });
        let reply = app.call("POST", &target, Some(&body)).await;
        assert_eq!((reply.status, reply.error()), (429, "ThrottlingException"));
        drop(taken);
        assert_eq!(app.call("POST", &target, Some(&body)).await.status, 200);
        app
    });
}
