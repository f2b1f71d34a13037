//! Nobody gets in without a key, and nobody sees another's things. The routes are read from the
//! document, so a new one is covered without being named here.

use serde_json::json;
use tunesmith::store::keys;

use crate::support::{ACCOUNT, TestApp, http, segment, with_app};

/// Every operation as method and a target that names things which exist.
async fn operations(app: &TestApp) -> Vec<(&'static str, String)> {
    let arn = app.create("mine").await;
    let document = tunesmith::routes::document();
    let mut found = Vec::new();
    for (path, item) in &document.paths.paths {
        let target = path
            .replace("{jobIdentifier}", &segment(&arn))
            .replace("{modelIdentifier}", "nothing-of-that-name")
            .replace("{customModelDeploymentIdentifier}", "nothing-of-that-name")
            .replace("{provisionedModelId}", "nothing-of-that-name")
            .replace("{modelId}", &segment(crate::support::TINY));
        assert!(!target.contains('{'), "{path}: say here what to put for its parameter");
        for (method, operation) in [
            ("GET", &item.get),
            ("POST", &item.post),
            ("DELETE", &item.delete),
            ("PUT", &item.put),
            ("PATCH", &item.patch),
        ] {
            if operation.is_some() {
                found.push((method, target.clone()));
            }
        }
    }
    assert!(found.len() >= 11, "{found:?}");
    found
}

#[test]
fn nobody_gets_in_without_a_valid_key() {
    with_app(async |app| {
        for (method, target) in operations(&app).await {
            let body = if method == "POST" { "{}" } else { "" };
            let good = app.signed(&app.root, method, &target, body, 0);
            let change = |name: &str, value: &str| -> Vec<(String, String)> {
                let replaced = |(key, old): &(String, String)| {
                    (key.clone(), if key.eq_ignore_ascii_case(name) { value.to_string() } else { old.clone() })
                };
                good.iter().map(replaced).collect()
            };
            let mut forged = app.root.clone();
            forged.secret_key.push('x');
            let bearer = |key: &str| vec![("authorization".to_string(), format!("Bearer {key}"))];
            for (what, headers) in [
                ("no key", Vec::new()),
                ("wrong bearer key", bearer("wrong")),
                ("empty bearer key", bearer("")),
                ("wrong secret", app.signed(&forged, method, &target, body, 0)),
                ("signed 6 minutes ago", app.signed(&app.root, method, &target, body, -360)),
                ("signed 16 minutes ahead", app.signed(&app.root, method, &target, body, 960)),
                ("signed for another path", app.signed(&app.root, method, "/elsewhere", body, 0)),
                ("signed for another body", app.signed(&app.root, method, &target, "swapped", 0)),
                ("another date", change("x-amz-date", "20200101T000000Z")),
                ("rubbish", change("authorization", "AWS4-HMAC-SHA256 rubbish")),
            ] {
                let reply = http::send(app.address, method, &target, &headers, body.as_bytes()).await;
                assert_eq!(reply.status, 403, "{method} {target} with {what}: {}", reply.text());
                assert!(!reply.error().is_empty() && reply.header("x-amzn-requestid").is_some(), "{what}");
            }
        }
        app
    });
}

#[test]
fn a_revoked_or_expired_key_is_refused_at_once() {
    with_app(async |app| {
        let stranger = app.stranger().await;
        assert_eq!(app.call_as(&stranger, "GET", "/custom-models", None).await.status, 200);
        let db = &app.service.app.db;
        assert!(keys::revoke(db, "222222222222", &stranger.access_key, app.service.app.clock.now()).await.unwrap());
        let reply = app.call_as(&stranger, "GET", "/custom-models", None).await;
        assert_eq!((reply.status, reply.error()), (403, "UnrecognizedClientException"));
        app
    });
}

#[test]
fn the_bearer_key_opens_what_the_pair_opens() {
    with_app(async |app| {
        let reply = http::send(app.address, "GET", "/foundation-models", &app.root_bearer(), b"").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        app
    });
}

#[test]
fn what_belongs_to_another_account_is_as_if_it_were_not_there() {
    with_app(async |app| {
        let arn = app.create("secret").await;
        let stranger = app.stranger().await;
        for target in
            [format!("/model-customization-jobs/{}", segment(&arn)), "/model-customization-jobs/secret".into()]
        {
            for (method, target) in [("GET", target.clone()), ("POST", format!("{target}/stop"))] {
                let theirs = app.call_as(&stranger, method, &target, None).await;
                assert_eq!((theirs.status, theirs.error()), (404, "ResourceNotFoundException"), "{method} {target}");
            }
        }
        let list = app.call_as(&stranger, "GET", "/model-customization-jobs", None).await;
        assert_eq!(list.json(), json!({ "modelCustomizationJobSummaries": [] }));
        // The name is free for them: accounts share no names.
        super::accounts::own_bucket(&app, &stranger).await;
        let job = super::accounts::own_job(&app, "secret");
        let theirs = app.call_as(&stranger, "POST", "/model-customization-jobs", Some(&job)).await;
        assert_eq!(theirs.status, 201, "{}", theirs.text());
        let mine = app.call("GET", "/model-customization-jobs/secret", None).await.json();
        assert!(mine["jobArn"].as_str().unwrap().contains(ACCOUNT));
        app
    });
}

#[test]
fn health_and_the_document_are_open_and_nothing_else_is() {
    with_app(async |app| {
        for (target, status) in [("/healthz", 200), ("/readyz", 200), ("/openapi.json", 200), ("/nothing", 403)] {
            let reply = http::send(app.address, "GET", target, &[], b"").await;
            assert_eq!(reply.status, status, "{target}: {}", reply.text());
            assert!(reply.header("x-amzn-requestid").is_some(), "{target}");
        }
        let reply = app.call("GET", "/nothing", None).await;
        assert_eq!((reply.status, reply.error()), (404, "UnknownOperationException"));
        app
    });
}
