//! Keys made on the command line: temporary ones, short-lived ones, and those with a policy.

use std::time::Duration;

use serde_json::json;

use crate::support::{Pair, TestApp, http, with_app, with_settings};

async fn listing(app: &TestApp, pair: &Pair) -> (u16, String) {
    let reply = app.call_as(pair, "GET", "/foundation-models", None).await;
    (reply.status, reply.error().to_string())
}

fn refused(name: &str) -> (u16, String) {
    (403, name.to_string())
}

#[test]
fn temporary_credentials_open_with_their_token_until_they_end() {
    with_app(async |app| {
        let pair = app.create_pair(&["--temporary", "--ttl=2h"]);
        assert!(pair.access_key.starts_with("ASIA") && pair.session_token.is_some());
        assert_eq!(listing(&app, &pair).await.0, 200);

        let with_token = |token: Option<&str>| Pair { session_token: token.map(Into::into), ..pair.clone() };
        for wrong in [with_token(None), with_token(Some("another")), with_token(Some(""))] {
            assert_eq!(listing(&app, &wrong).await, refused("UnrecognizedClientException"));
        }
        // A token that is sent beside the signature, and not under it.
        let mut headers = app.signed(&with_token(None), "GET", "/foundation-models", "", 0);
        headers.push(("x-amz-security-token".into(), pair.session_token.clone().unwrap()));
        let reply = http::send(app.address, "GET", "/foundation-models", &headers, b"").await;
        assert_eq!((reply.status, reply.error()), (403, "InvalidSignatureException"), "{}", reply.text());

        app.service.app.clock.jump(Duration::from_secs(2 * 3600 + 60), false);
        assert_eq!(listing(&app, &pair).await, refused("ExpiredTokenException"));
        app
    });
}

#[test]
fn a_session_token_with_a_lasting_key_is_refused() {
    with_app(async |app| {
        let odd = Pair { session_token: Some("token".into()), ..app.root.clone() };
        assert_eq!(listing(&app, &odd).await, refused("UnrecognizedClientException"));
        app
    });
}

#[test]
fn the_database_holds_no_session_token_and_no_bearer_key() {
    with_app(async |app| {
        let token = app.create_pair(&["--temporary"]).session_token.unwrap();
        let bearer = app.create_bearer(&["--ttl=1h"])[0].1.replace("Bearer ", "");
        for file in std::fs::read_dir(app.data_dir()).unwrap().map(|entry| entry.unwrap().path()) {
            if file.is_file() {
                let bytes = std::fs::read(&file).unwrap();
                for secret in [&token, &bearer] {
                    assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{file:?}");
                }
            }
        }
        app
    });
}

#[test]
fn a_short_term_bearer_key_ends_and_lives_twelve_hours_at_most() {
    with_app(async |app| {
        let key = app.create_bearer(&["--ttl=12h"]);
        assert_eq!(http::send(app.address, "GET", "/foundation-models", &key, b"").await.status, 200);
        app.service.app.clock.jump(Duration::from_secs(12 * 3600 + 60), false);
        let reply = http::send(app.address, "GET", "/foundation-models", &key, b"").await;
        assert_eq!((reply.status, reply.error()), (403, "AccessDeniedException"));
        for (arguments, said) in [
            (&["create", "--bearer", "--ttl=13h"][..], "at most 12 hours"),
            (&["create", "--temporary", "--ttl=37h"], "at most 36 hours"),
            (&["create", "--ttl=soon"], "write a time such as"),
            (&["create", "--operation=GetEverything"], "GetModelCustomizationJob"),
            (&["create", "--bucket=tuning"], "s3://bucket"),
        ] {
            let (made, text) = app.keys(arguments);
            assert!(!made && text.contains(said), "{arguments:?}: {text}");
        }
        app
    });
}

#[test]
fn a_key_revoked_on_the_command_line_is_refused_at_once() {
    with_app(async |app| {
        let pair = app.create_pair(&["--temporary", "--note=for a visitor"]);
        assert_eq!(listing(&app, &pair).await.0, 200);
        assert!(app.keys(&["revoke", &pair.access_key]).0);
        assert_eq!(listing(&app, &pair).await, refused("UnrecognizedClientException"));
        let (_, listed) = app.keys(&["list"]);
        let line = listed.lines().find(|line| line.contains(&pair.access_key)).unwrap();
        assert!(line.contains("revoked") && line.contains("for a visitor"), "{line}");
        app
    });
}

#[test]
fn a_read_only_key_gets_and_lists_and_does_nothing_else() {
    with_app(async |app| {
        app.create("mine").await;
        let pair = app.create_pair(&["--read-only"]);
        for target in ["/model-customization-jobs", "/model-customization-jobs/mine", "/custom-models"] {
            assert_eq!(app.call_as(&pair, "GET", target, None).await.status, 200, "{target}");
        }
        let job = app.job("theirs");
        for (method, target, body, operation) in [
            ("POST", "/model-customization-jobs", Some(&job), "CreateModelCustomizationJob"),
            ("POST", "/model-customization-jobs/mine/stop", None, "StopModelCustomizationJob"),
            ("DELETE", "/custom-models/any", None, "DeleteCustomModel"),
            ("POST", "/model/any/invoke", Some(&json!({ "prompt": "a" })), "InvokeModel"),
        ] {
            let reply = app.call_as(&pair, method, target, body).await;
            assert_eq!((reply.status, reply.error()), (403, "AccessDeniedException"), "{operation}");
            let said = format!("User is not authorized to perform: bedrock:{operation} ");
            assert!(reply.message().starts_with(&said), "{}", reply.message());
        }
        let reply = app.call_as(&pair, "GET", "/nothing", None).await;
        assert_eq!((reply.status, reply.error()), (404, "UnknownOperationException"));
        app
    });
}

#[test]
fn a_key_for_named_operations_does_those_alone() {
    with_app(async |app| {
        app.create("mine").await;
        let key = app.create_bearer(&["--operation=GetModelCustomizationJob", "--operation=ListCustomModels"]);
        for (target, status) in [
            ("/model-customization-jobs/mine", 200),
            ("/custom-models", 200),
            ("/model-customization-jobs", 403),
            ("/foundation-models", 403),
        ] {
            assert_eq!(http::send(app.address, "GET", target, &key, b"").await.status, status, "{target}");
        }
        app
    });
}

#[test]
fn a_key_for_a_folder_names_no_other_in_any_part_of_a_request() {
    with_app(async |app| {
        app.create("mine").await;
        app.upload("s3://tuning/ours/train.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n").await;
        let pair = app.create_pair(&["--bucket=s3://tuning/ours", "--bucket=s3://elsewhere"]);
        let mut job = app.job("ours");
        job["trainingDataConfig"]["s3Uri"] = json!("s3://tuning/ours/train.jsonl");
        job["outputDataConfig"]["s3Uri"] = json!("s3://tuning/ours/out");
        let validators = |uri: &str| json!({ "validators": [{ "s3Uri": "s3://tuning/ours/a" }, { "s3Uri": uri }] });
        for (member, value) in [
            ("trainingDataConfig", json!({ "s3Uri": "s3://tuning/train.jsonl" })),
            ("hyperParameters", json!({ "grader": "s3://tuning/grader.json" })),
            ("hyperParameters", json!({ "grader": " s3://tuning/grader.json" })),
            ("hyperParameters", json!({ "grader": "{\"type\": \"multi\", \"from\": \"s3://tuning/g\"}" })),
            ("hyperParameters", json!({ "anything": "s3://tuning/x" })),
            ("trainingDataConfig", json!({ "s3Uri": "s3://tuning/ours/../train.jsonl" })),
            ("outputDataConfig", json!({ "s3Uri": "s3://tuning/ours-too" })),
            ("validationDataConfig", validators("s3://tuning/train.jsonl")),
        ] {
            let mut wrong = job.clone();
            wrong[member] = value;
            let reply = app.call_as(&pair, "POST", "/model-customization-jobs", Some(&wrong)).await;
            assert_eq!((reply.status, reply.error()), (403, "AccessDeniedException"), "{}", reply.text());
            assert!(reply.message().contains("bedrock:CreateModelCustomizationJob"), "{}", reply.message());
        }
        let reply = app.call_as(&pair, "POST", "/model-customization-jobs", Some(&job)).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        assert_eq!(app.call_as(&pair, "GET", "/model-customization-jobs/mine", None).await.status, 200);
        app
    });
}

#[test]
fn keys_open_the_embedded_object_store_as_far_as_they_open_the_api() {
    with_app(async |app| {
        app.upload("s3://tuning/ours/a", "a").await;
        app.upload("s3://tuning/b", "b").await;
        let lasting = app.create_pair(&[]);
        let temporary = app.create_pair(&["--temporary"]);
        let reader = app.create_pair(&["--read-only"]);
        let folder = app.create_pair(&["--bucket=s3://tuning/ours", "--temporary"]);
        let caller = app.create_pair(&["--operation=InvokeModel"]);
        let with_token = |token: Option<&str>| Pair { session_token: token.map(Into::into), ..temporary.clone() };
        for (what, pair, reads, writes, beside) in [
            ("a lasting key", &lasting, true, true, true),
            ("a temporary key", &temporary, true, true, true),
            ("a temporary key without its token", &with_token(None), false, false, false),
            ("a temporary key with another token", &with_token(Some("other")), false, false, false),
            (
                "a lasting key with a token",
                &Pair { session_token: Some("t".into()), ..lasting.clone() },
                false,
                false,
                false,
            ),
            ("a key that only reads", &reader, true, false, true),
            ("a key for a folder", &folder, true, true, false),
            ("a key for an operation", &caller, false, false, false),
        ] {
            let s3 = app.s3(pair);
            let get = async |key: &str| s3.get_object().bucket("tuning").key(key).send().await.is_ok();
            assert_eq!(get("ours/a").await, reads, "{what} reads");
            assert_eq!(get("b").await, beside, "{what} reads beside the folder");
            let put = s3.put_object().bucket("tuning").key("ours/new").body(b"x".to_vec().into()).send().await;
            assert_eq!(put.is_ok(), writes, "{what} writes");
            let list = async |prefix: &str| s3.list_objects_v2().bucket("tuning").prefix(prefix).send().await.is_ok();
            assert_eq!(
                (list("ours/").await, list("").await, list("ours").await),
                (reads, beside, beside),
                "{what} lists"
            );
        }
        // A presigned link carries the token too.
        let link = aws_sdk_s3::presigning::PresigningConfig::expires_in(Duration::from_secs(60)).unwrap();
        let link = app.s3(&temporary).get_object().bucket("tuning").key("b").presigned(link).await.unwrap();
        let endpoint = app.service.s3_endpoint().unwrap();
        let path = link.uri().strip_prefix(&endpoint).unwrap().to_string();
        let address = endpoint.strip_prefix("http://").unwrap().parse().unwrap();
        assert_eq!(http::plain(address, &path).await.status, 200);
        let (before, after) = path.split_once("X-Amz-Security-Token=").unwrap();
        let without = format!("{before}{}", after.split_once('&').map_or("", |(_, rest)| rest));
        assert_eq!(http::plain(address, without.trim_end_matches('&')).await.status, 403);
        app.service.app.clock.jump(Duration::from_secs(13 * 3600), false);
        assert!(app.s3(&temporary).get_object().bucket("tuning").key("b").send().await.is_err(), "its time is over");
        app
    });
}

#[test]
fn where_roles_have_a_meaning_a_job_needs_one_that_may_read_and_write() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("roles.toml");
    let role = |name: &str| format!("arn:aws:iam::000000000000:role/{name}");
    let text = format!(
        "[\"{}\"]\nread = [\"s3://tuning/train.jsonl\"]\nwrite = [\"s3://tuning/out\"]\n[\"{}\"]\nread = [\"s3://tuning\"]\n",
        role("tuner"),
        role("reader")
    );
    std::fs::write(&file, text).unwrap();
    with_settings(&["--roles", file.to_str().unwrap()], async |app| {
        app.create("allowed").await;
        let mut job = app.job("refused");
        let mut expect = async |member: &str, value: serde_json::Value, said: &str| {
            let kept = job[member].clone();
            job[member] = value;
            let reply = app.call("POST", "/model-customization-jobs", Some(&job)).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{said}");
            assert!(reply.message().contains(said), "{}", reply.message());
            job[member] = kept;
        };
        expect("roleArn", json!(role("unknown")), "Could not assume provided IAM role").await;
        let get = "Could not validate GetObject permissions to access Amazon S3 bucket: tuning at key other.jsonl";
        expect("trainingDataConfig", json!({ "s3Uri": "s3://tuning/other.jsonl" }), get).await;
        let put = "Could not validate PutObject permissions to access S3 bucket: tuning at key \
                   else/.write_access_check_file.tmp";
        expect("outputDataConfig", json!({ "s3Uri": "s3://tuning/else" }), put).await;
        let put = "PutObject permissions to access S3 bucket: tuning at key out/.write_access_check_file.tmp";
        expect("roleArn", json!(role("reader")), put).await;
        app
    });
}
