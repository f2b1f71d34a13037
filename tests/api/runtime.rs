//! Asking a model over the wire. The model has learned nothing, so only the form of its answers counts.

use serde_json::json;

use crate::support::{TINY, segment, with_app};

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
