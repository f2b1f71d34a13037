//! Every operation of the committed document against everyone who may not call it. A route whose parameters
//! are not named here fails the test, so that none is forgotten.

use serde_json::Value;
use tunesmith::store::keys::{self, Key, KeyKind};

use crate::support::promise::Promise;
use crate::support::{ACCOUNT, Pair, TINY, TestApp, http, segment, with_app};

/// Method and path of every operation.
fn operations() -> Vec<(String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
    let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["operationId"].is_string() {
                found.push((method.to_uppercase(), path.clone()));
            }
        }
    }
    assert!(found.len() >= 11, "{found:?}");
    found
}

/// The path with its parameters filled in; `job` is what names a job.
fn target(path: &str, job: &str) -> String {
    let mut target = path.replace("{jobIdentifier}", &segment(job)).replace("{modelId}", &segment(TINY));
    for name in ["modelIdentifier", "customModelDeploymentIdentifier", "provisionedModelId"] {
        target = target.replace(&format!("{{{name}}}"), "nothing-of-that-name");
    }
    assert!(!target.contains('{'), "{path}: say here what to put for its parameter");
    target
}

/// A pair and a bearer key whose time is over.
async fn expired(app: &TestApp) -> (Pair, String) {
    let now = app.service.app.clock.now();
    let key = |id: &str, kind| Key {
        id: id.into(),
        account_id: ACCOUNT.into(),
        kind,
        note: String::new(),
        created_at: now - 2000,
        expires_at: Some(now - 1000),
        revoked_at: None,
        policy: None,
    };
    let db = &app.service.app.db;
    assert!(keys::insert_temporary(db, &key("ASIAEXPIRED", KeyKind::SigV4), "secret", "token").await.unwrap());
    assert!(keys::insert_bearer(db, &key("bearer-expired", KeyKind::Bearer), "spent").await.unwrap());
    let pair =
        Pair { access_key: "ASIAEXPIRED".into(), secret_key: "secret".into(), session_token: Some("token".into()) };
    (pair, "Bearer spent".into())
}

#[test]
fn every_operation_refuses_everyone_without_a_valid_key() {
    with_app(async |app| {
        let job = app.create("mine").await;
        let (late, spent) = expired(&app).await;
        let (mut promise, mut refused) = (Promise::new(7, "every_operation_refuses", "the API"), 0);
        let forged = Pair { secret_key: "forged".into(), ..app.root.clone() };
        let unknown = Pair { access_key: "AKIANOBODY".into(), ..app.root.clone() };
        let odd = Pair { session_token: Some("token".into()), ..app.root.clone() };
        for (method, path) in operations() {
            let (method, target) = (method.as_str(), target(&path, &job));
            let body = if method == "GET" || method == "DELETE" { "" } else { "{}" };
            let signed = |pair: &Pair, shift_s: i64| app.signed(pair, method, &target, body, shift_s);
            let bearer = |value: &str| vec![("authorization".to_string(), value.to_string())];
            for (what, headers, refusal) in [
                ("no key", Vec::new(), "MissingAuthenticationTokenException"),
                ("a bad signature", signed(&forged, 0), "InvalidSignatureException"),
                ("an unknown key", signed(&unknown, 0), "UnrecognizedClientException"),
                ("a token that is not the key's", signed(&odd, 0), "UnrecognizedClientException"),
                ("expired credentials", signed(&late, 0), "ExpiredTokenException"),
                ("an expired bearer key", bearer(&spent), "AccessDeniedException"),
                ("a wrong bearer key", bearer("Bearer wrong"), "AccessDeniedException"),
                ("a date six minutes ago", signed(&app.root, -360), "InvalidSignatureException"),
                ("a date six minutes ahead", signed(&app.root, 360), "InvalidSignatureException"),
                (
                    "a signature over another path",
                    app.signed(&app.root, method, "/elsewhere", body, 0),
                    "InvalidSignatureException",
                ),
                ("a swapped body", app.signed(&app.root, method, &target, "swapped", 0), "InvalidSignatureException"),
            ] {
                let reply = http::send(app.address, method, &target, &headers, body.as_bytes()).await;
                assert_eq!((reply.status, reply.error()), (403, refusal), "{method} {path} with {what}");
                assert!(reply.header("x-amzn-requestid").is_some(), "{method} {path} with {what}");
                refused += 1;
            }
        }
        promise
            .tried(format!("{refused} requests: {} operations × eleven ways of not being allowed", operations().len()));
        promise.found("each 403 with its own exception, none 2xx, none 5xx");
        promise.held();
        app
    });
}

#[test]
fn every_operation_answers_another_account_as_if_nothing_were_there() {
    with_app(async |app| {
        let job = app.create("mine").await;
        let absent = format!("{}absentabsent", &job[..job.len() - 12]);
        let stranger = app.stranger().await;
        for (method, path) in operations() {
            let body = (method == "POST" || method == "PATCH").then(|| serde_json::json!({}));
            let there = app.call_as(&stranger, &method, &target(&path, &job), body.as_ref()).await;
            let nowhere = app.call_as(&stranger, &method, &target(&path, &absent), body.as_ref()).await;
            assert_eq!((there.status, there.error()), (nowhere.status, nowhere.error()), "{method} {path}");
            assert_eq!(there.text().replace(&job, ""), nowhere.text().replace(&absent, ""), "{method} {path}");
            if path.starts_with("/model-customization-jobs/{jobIdentifier}") {
                assert_eq!((there.status, there.error()), (404, "ResourceNotFoundException"), "{method} {path}");
            }
            // Foundation models belong to no account.
            if method == "GET" && !path.contains('{') && !path.starts_with("/foundation") {
                assert_eq!(there.status, 200, "{path}: {}", there.text());
                let list = there.json();
                let empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
                assert!(list.as_object().unwrap().values().all(empty), "{path}: {list}");
            }
        }
        app
    });
}
