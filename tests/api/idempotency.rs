//! The same request token is the same job, whatever retries and races.

use std::sync::Arc;

use serde_json::json;

use crate::support::with_app;

#[test]
fn sixty_four_requests_with_one_token_make_one_job() {
    with_app(async |app| {
        app.upload("s3://tuning/train.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n").await;
        let app = Arc::new(app);
        let calls = (0..64).map(|_| {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.call("POST", "/model-customization-jobs", Some(&app.job("race"))).await })
        });
        let mut arns = std::collections::BTreeSet::new();
        for call in calls.collect::<Vec<_>>() {
            let reply = call.await.unwrap();
            assert_eq!(reply.status, 201, "{}", reply.text());
            arns.insert(reply.json()["jobArn"].as_str().unwrap().to_string());
        }
        assert_eq!(arns.len(), 1, "{arns:?}");
        let list = app.call("GET", "/model-customization-jobs", None).await.json();
        assert_eq!(list["modelCustomizationJobSummaries"].as_array().unwrap().len(), 1);
        Arc::into_inner(app).unwrap()
    });
}

#[test]
fn the_same_token_with_another_request_is_a_conflict() {
    with_app(async |app| {
        app.create("first").await;
        let mut other = app.job("first");
        other["hyperParameters"] = json!({ "epochCount": "2" });
        let reply = app.call("POST", "/model-customization-jobs", Some(&other)).await;
        assert_eq!((reply.status, reply.error()), (400, "ConflictException"));
        app
    });
}

#[test]
fn a_taken_name_is_refused_with_the_sentence_that_clients_compare() {
    with_app(async |app| {
        app.create("taken").await;
        let mut again = app.job("taken");
        again["clientRequestToken"] = json!("another");
        let reply = app.call("POST", "/model-customization-jobs", Some(&again)).await;
        assert_eq!((reply.status, reply.error()), (400, "ValidationException"));
        assert_eq!(reply.message(), "The provided job name is currently in use.");

        again["jobName"] = json!("free");
        let reply = app.call("POST", "/model-customization-jobs", Some(&again)).await;
        assert_eq!(reply.message(), "The provided model name is currently in use.");
        app
    });
}
