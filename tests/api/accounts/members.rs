//! Every member of the service models that names a place in object storage, in the hands of another account.

use std::process::Command;

use serde_json::{Value, json};

use super::{own_bucket, own_job};
use crate::support::{TINY, TestApp, segment, with_app};

/// Operation and path of each, as botocore has them; `None` where it is not installed and need not be.
fn members() -> Option<Vec<(String, Vec<Value>)>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/s3_members.py");
    let output = Command::new("python3").arg(script).output();
    let members = output.ok().filter(|output| output.status.success());
    assert!(members.is_some() || std::env::var_os("TEST_REQUIRE_ALL").is_none(), "python3 with botocore does not work");
    Some(serde_json::from_slice(&members?.stdout).unwrap())
}

/// Puts the text at the end of the path; what is missing on the way is made.
fn set(value: &mut Value, path: &[Value], text: &str) {
    let Some((step, rest)) = path.split_first() else {
        *value = json!(text);
        return;
    };
    match step.as_str() {
        Some(name) => {
            if !value.is_object() {
                *value = json!({});
            }
            set(&mut value[name], rest, text);
        }
        None => {
            if value.as_array().is_none_or(Vec::is_empty) {
                *value = json!([null]);
            }
            set(&mut value[0], rest, text);
        }
    }
}

/// Where a request of the operation goes and what is in it, with everything in the caller's own bucket; `None` for an
/// operation that is not served.
fn request(app: &TestApp, operation: &str, served: &[String]) -> Option<(String, Value)> {
    if !served.iter().any(|name| name == operation) {
        return None;
    }
    let source = json!({ "s3DataSource": { "s3Uri": "s3://theirs/model" } });
    let role = "arn:aws:iam::222222222222:role/tuner";
    let messages = json!([{ "role": "user", "content": [] }]);
    let converse = |verb: &str| format!("/model/{}/{verb}", segment(TINY));
    Some(match operation {
        "CreateModelCustomizationJob" => ("/model-customization-jobs".into(), own_job(app, "walk")),
        "CreateModelImportJob" => (
            "/model-import-jobs".into(),
            json!({ "jobName": "walk", "importedModelName": "walk", "roleArn": role, "modelDataSource": source }),
        ),
        "CreateCustomModel" => (
            "/custom-models/create-custom-model".into(),
            json!({ "modelName": "walk", "roleArn": role, "modelSourceConfig": source }),
        ),
        "Converse" => (converse("converse"), json!({ "messages": messages })),
        "ConverseStream" => (converse("converse-stream"), json!({ "messages": messages })),
        "CountTokens" => (converse("count-tokens"), json!({ "input": { "converse": { "messages": messages } } })),
        other => panic!("{other} is served and names places in object storage: say here how it is asked"),
    })
}

fn served() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
    let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    operations.filter_map(|operation| operation["operationId"].as_str().map(ToString::to_string)).collect()
}

#[test]
fn no_member_of_any_operation_reaches_into_another_accounts_storage_or_tells_what_is_there() {
    let Some(members) = members() else { return };
    with_app(async |app| {
        app.upload("s3://tuning/train.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n").await;
        app.upload("s3://tuning/model/config.json", "planted-5678").await;
        app.upload("s3://tuning/secret.json", "planted-1234").await;
        let pair = app.stranger().await;
        own_bucket(&app, &pair).await;
        let served = served();
        let mut cases = Vec::new();
        for (operation, path) in &members {
            if let Some((target, body)) = request(&app, operation, &served) {
                cases.push((format!("{operation} {path:?}"), target, body, path.clone(), "UPLACE".to_string()));
            }
        }
        // What no model names: places among the hyperparameters, plain, spaced, and inside JSON sent as text.
        let (target, job) = request(&app, "CreateModelCustomizationJob", &served).unwrap();
        for (kind, text) in [
            ("REINFORCEMENT_FINE_TUNING", "UPLACE"),
            ("REINFORCEMENT_FINE_TUNING", "  UPLACE "),
            ("REINFORCEMENT_FINE_TUNING", "{\"type\": \"multi\", \"graders\": [{\"input\": \"UPLACE\"}]}"),
            ("FINE_TUNING", "UPLACE"),
        ] {
            let mut job = job.clone();
            job["customizationType"] = json!(kind);
            let path = vec![json!("hyperParameters"), json!("grader")];
            cases.push((format!("grader {kind} {text}"), target.clone(), job, path, text.to_string()));
        }
        assert!(cases.len() > 20, "{}", cases.len());
        for (what, target, body, path, text) in cases {
            let ask = async |uri: &str| {
                let mut body = body.clone();
                set(&mut body, &path, &text.replace("UPLACE", uri));
                if path.contains(&json!("invocationLogsConfig")) {
                    // One or the other.
                    body["trainingDataConfig"].as_object_mut().unwrap().remove("s3Uri");
                }
                let reply = app.call_as(&pair, "POST", &target, Some(&body)).await;
                assert!((400..500).contains(&reply.status), "{what} {uri}: {} {}", reply.status, reply.text());
                assert!(!reply.text().contains("planted"), "{what} {uri}: {}", reply.text());
                let (bucket, key) = uri.strip_prefix("s3://").unwrap().split_once('/').unwrap();
                let said = reply.text().replace(bucket, "BUCKET").replace(key, "KEY");
                (reply.status, reply.error().to_string(), said)
            };
            let there = ask("s3://tuning/secret.json").await;
            for elsewhere in
                ["s3://tuning/nothing.json", "s3://nowhere-at-all/secret.json", "s3://tuning/model/config.json"]
            {
                assert_eq!(ask(elsewhere).await, there, "{what} {elsewhere}");
            }
            if !target.starts_with("/model/") {
                assert!(there.2.contains("Could not validate"), "{what}: {there:?}");
            }
        }
        app
    });
}
