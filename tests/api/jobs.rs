//! Customization jobs on the wire.

use serde_json::{Value, json};

use crate::support::{segment, with_app};

#[test]
fn a_new_job_reads_back_as_it_was_sent_and_without_what_does_not_apply() {
    with_app(async |app| {
        let arn = app.create("fresh").await;
        let by_name = app.call("GET", "/model-customization-jobs/fresh", None).await;
        let by_arn = app.call("GET", &format!("/model-customization-jobs/{}", segment(&arn)), None).await;
        assert_eq!(by_name.json(), by_arn.json());
        let job = by_name.json();
        assert_eq!(job["jobArn"], arn.as_str());
        assert_eq!(job["status"], "InProgress");
        assert_eq!(job["customizationType"], "FINE_TUNING");
        assert_eq!(job["hyperParameters"], json!({ "epochCount": "1.0", "learningRate": "1e-5" }));
        assert_eq!(job["outputDataConfig"], json!({ "s3Uri": "s3://tuning/out/" }));
        assert_eq!(job["validationMetrics"], json!([]));
        assert_eq!(job["clientRequestToken"], "token-fresh");
        assert_eq!(job["statusDetails"]["trainingDetails"], json!({ "status": "NotStarted" }));
        let time = job["creationTime"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
        let absent =
            ["outputModelArn", "endTime", "failureMessage", "vpcConfig", "trainingMetrics", "validationDataConfig"];
        for name in absent {
            assert_eq!(job.get(name), None, "{name}");
        }
        app
    });
}

#[test]
fn a_name_with_a_plus_is_found() {
    with_app(async |app| {
        app.upload("s3://tuning/train.jsonl", "{}\n").await;
        let mut job = app.job("plus");
        job["jobName"] = json!("a+b.c");
        assert_eq!(app.call("POST", "/model-customization-jobs", Some(&job)).await.status, 201);
        assert_eq!(app.call("GET", "/model-customization-jobs/a%2Bb.c", None).await.status, 200);
        let list = app.call("GET", "/model-customization-jobs?nameContains=a%2Bb", None).await.json();
        assert_eq!(list["modelCustomizationJobSummaries"].as_array().unwrap().len(), 1);
        app
    });
}

#[test]
fn a_stopped_job_reads_stopped_when_the_call_returns_and_is_not_stopped_twice() {
    with_app(async |app| {
        app.create("stop-me").await;
        let reply = app.call("POST", "/model-customization-jobs/stop-me/stop", None).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let job = app.call("GET", "/model-customization-jobs/stop-me", None).await.json();
        // No worker held it, so nothing is left to wait for.
        assert_eq!(job["status"], "Stopped");
        let again = app.call("POST", "/model-customization-jobs/stop-me/stop", None).await;
        assert_eq!((again.status, again.error()), (400, "ConflictException"));
        app
    });
}

#[test]
fn every_wrong_request_is_a_validation_exception_that_says_why() {
    with_app(async |app| {
        app.upload("s3://tuning/train.jsonl", "{}\n").await;
        let cases: &[(&str, Value, &str)] = &[
            ("jobName", Value::Null, "Value null at 'jobName' failed to satisfy constraint: Member must not be null"),
            ("jobName", json!("has space"), "Member must satisfy regular expression pattern: [a-zA-Z0-9]"),
            ("jobName", json!("a".repeat(64)), "Member must have length less than or equal to 63"),
            ("jobName", json!(7), "Member must be a string"),
            ("customModelName", json!("a--b"), "'customModelName' failed to satisfy constraint"),
            ("roleArn", json!("tuner"), "'roleArn' failed to satisfy constraint"),
            ("baseModelIdentifier", json!("no.such-model-v1:0"), "ListFoundationModels and ListCustomModels show"),
            ("customizationType", json!("MAGIC"), "Member must satisfy enum value set: [FINE_TUNING, CONTINUED"),
            ("customizationType", json!("DISTILLATION"), "DISTILLATION needs a teacher"),
            ("customizationType", json!("REINFORCEMENT_FINE_TUNING"), "needs a grader"),
            ("customizationType", json!("IMPORTED"), "IMPORTED is not supported"),
            ("hyperParameters", json!({ "epochs": "1" }), "epochs"),
            ("hyperParameters", json!({ "epochCount": "0" }), "epochCount"),
            ("hyperParameters", json!({ "epochCount": 1 }), "Member must be a string"),
            ("trainingDataConfig", json!({}), "exactly one of: s3Uri, invocationLogsConfig"),
            ("trainingDataConfig", json!({ "s3Uri": "s3://under_score/a" }), "'trainingDataConfig.s3Uri'"),
            (
                "trainingDataConfig",
                json!({ "s3Uri": "s3://tuning/missing.jsonl" }),
                "Could not validate GetObject permissions to access Amazon S3 bucket: tuning at key missing.jsonl",
            ),
            (
                "validationDataConfig",
                json!({ "validators": [{ "s3Uri": "s3://nowhere-at-all/v.jsonl" }] }),
                "Could not validate GetObject permissions to access Amazon S3 bucket: nowhere-at-all at key v.jsonl",
            ),
            ("validationDataConfig", json!({ "validators": [{}] }), "'validationDataConfig.validators.1.member.s3Uri'"),
            (
                "outputDataConfig",
                json!({ "s3Uri": "s3://nowhere-at-all/out" }),
                "Could not validate PutObject permissions to access S3 bucket: nowhere-at-all at key \
                 out/.write_access_check_file.tmp",
            ),
            ("jobTags", json!([{ "key": "k" }]), "'jobTags.1.member.value'"),
            ("vpcConfig", json!({ "subnetIds": [], "securityGroupIds": ["sg-1"] }), "'vpcConfig.subnetIds'"),
            ("clientRequestToken", json!("-"), "'clientRequestToken'"),
        ];
        for (field, value, reason) in cases {
            let mut request = app.job("wrong");
            request[field] = value.clone();
            let reply = app.call("POST", "/model-customization-jobs", Some(&request)).await;
            assert_eq!(
                (reply.status, reply.error()),
                (400, "ValidationException"),
                "{field} = {value}: {}",
                reply.text()
            );
            assert!(reply.message().contains(reason), "{field} = {value}: {}", reply.message());
        }
        let list = app.call("GET", "/model-customization-jobs", None).await.json();
        assert_eq!(list["modelCustomizationJobSummaries"], json!([]), "nothing was stored");
        app
    });
}

#[test]
fn foundation_models_are_listed_found_and_filtered() {
    with_app(async |app| {
        let all = app.call("GET", "/foundation-models?byCustomizationType=FINE_TUNING", None).await.json();
        let tiny = all["modelSummaries"].as_array().unwrap().iter().find(|m| m["modelId"] == crate::support::TINY);
        let tiny = tiny.unwrap();
        assert_eq!(tiny["modelArn"], "arn:aws:bedrock:us-east-1::foundation-model/tunesmith.tiny-v1:0");
        let arn = segment(tiny["modelArn"].as_str().unwrap());
        for id in [segment(crate::support::TINY), arn] {
            let found = app.call("GET", &format!("/foundation-models/{id}"), None).await;
            assert_eq!(&found.json()["modelDetails"], tiny);
        }
        let none = app.call("GET", "/foundation-models?byOutputModality=IMAGE", None).await.json();
        assert_eq!(none, json!({ "modelSummaries": [] }));
        let missing = app.call("GET", "/foundation-models/no.such-model", None).await;
        assert_eq!((missing.status, missing.error()), (404, "ResourceNotFoundException"));
        app
    });
}
