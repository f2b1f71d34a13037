//! Tags: on everything that has an ARN, at most fifty, and nobody else's.

use serde_json::{Value, json};

use crate::support::{TestApp, with_app};

async fn tags_of(app: &TestApp, arn: &str) -> Value {
    let reply = app.call("POST", "/listTagsForResource", Some(&json!({ "resourceARN": arn }))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["tags"].clone()
}

/// The ARN of one resource of every kind.
async fn one_of_each(app: &TestApp) -> Vec<String> {
    let model = app.model("tagged").await;
    let deployment = json!({ "modelDeploymentName": "d", "modelArn": model.arn });
    let deployment = app.call("POST", "/model-customization/custom-model-deployments", Some(&deployment)).await;
    let throughput = json!({ "provisionedModelName": "p", "modelId": model.arn, "modelUnits": 1 });
    let throughput = app.call("POST", "/provisioned-model-throughput", Some(&throughput)).await;
    vec![
        model.job_arn.unwrap(),
        model.arn,
        deployment.json()["customModelDeploymentArn"].as_str().unwrap().to_string(),
        throughput.json()["provisionedModelArn"].as_str().unwrap().to_string(),
    ]
}

#[test]
fn every_kind_of_resource_is_tagged_listed_and_untagged() {
    with_app(async |app| {
        for arn in one_of_each(&app).await {
            assert_eq!(tags_of(&app, &arn).await, json!([]), "{arn}");
            let tag = |key: &str, value: &str| json!({ "key": key, "value": value });
            for tags in [json!([tag("team", "blue"), tag("cost", "")]), json!([tag("team", "red")])] {
                let body = json!({ "resourceARN": arn, "tags": tags });
                let reply = app.call("POST", "/tagResource", Some(&body)).await;
                assert_eq!(reply.status, 200, "{}", reply.text());
            }
            assert_eq!(
                tags_of(&app, &arn).await,
                json!([tag("cost", ""), tag("team", "red")]),
                "the value is replaced"
            );
            let body = json!({ "resourceARN": arn, "tagKeys": ["cost", "absent"] });
            assert_eq!(app.call("POST", "/untagResource", Some(&body)).await.status, 200);
            assert_eq!(tags_of(&app, &arn).await, json!([tag("team", "red")]));
        }
        app
    });
}

#[test]
fn the_fifty_first_tag_is_refused_and_none_of_its_request_is_kept() {
    with_app(async |app| {
        let arn = app.create("many").await;
        let tags = |range: std::ops::Range<u32>| -> Vec<Value> {
            range.map(|n| json!({ "key": format!("k{n}"), "value": "" })).collect()
        };
        let body = json!({ "resourceARN": arn, "tags": tags(0..49) });
        assert_eq!(app.call("POST", "/tagResource", Some(&body)).await.status, 200);
        let body = json!({ "resourceARN": arn, "tags": tags(49..51) });
        let reply = app.call("POST", "/tagResource", Some(&body)).await;
        assert_eq!((reply.status, reply.error()), (400, "TooManyTagsException"));
        assert_eq!(reply.json()["resourceName"], json!(arn));
        assert_eq!(tags_of(&app, &arn).await.as_array().unwrap().len(), 49);
        let body = json!({ "resourceARN": arn, "tags": tags(0..50) });
        assert_eq!(app.call("POST", "/tagResource", Some(&body)).await.status, 200, "fifty, counting those there");

        let mut job = app.job("born-with-too-many");
        job["jobTags"] = json!(tags(0..51));
        let reply = app.call("POST", "/model-customization-jobs", Some(&job)).await;
        assert_eq!(reply.error(), "TooManyTagsException");
        assert_eq!(reply.json()["resourceName"], "born-with-too-many");
        app
    });
}

#[test]
fn a_stranger_finds_nothing_to_tag() {
    with_app(async |app| {
        let stranger = app.stranger().await;
        let nowhere = app.create("mine").await;
        let absent = format!("{}aaaaaaaaaaaa", &nowhere[..nowhere.len() - 12]);
        for (pair, arn) in [(&stranger, &nowhere), (&app.root, &absent)] {
            let bodies = [
                ("/tagResource", json!({ "resourceARN": arn, "tags": [{ "key": "a", "value": "b" }] })),
                ("/untagResource", json!({ "resourceARN": arn, "tagKeys": ["a"] })),
                ("/listTagsForResource", json!({ "resourceARN": arn })),
            ];
            for (path, body) in bodies {
                let reply = app.call_as(pair, "POST", path, Some(&body)).await;
                assert_eq!((reply.status, reply.error()), (404, "ResourceNotFoundException"), "{path}");
            }
        }
        app
    });
}

#[test]
fn a_key_that_aws_reserves_is_refused() {
    with_app(async |app| {
        let arn = app.create("reserved").await;
        let body = json!({ "resourceARN": arn, "tags": [{ "key": "aws:mine", "value": "" }] });
        let reply = app.call("POST", "/tagResource", Some(&body)).await;
        assert_eq!((reply.status, reply.error()), (400, "ValidationException"));
        assert!(reply.message().contains("'tags.1.member.key'"), "{}", reply.message());
        app
    });
}
