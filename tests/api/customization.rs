//! What customization types need beside a data set: their configuration is checked in full, and a job whose type
//! does not fit is refused rather than trained as something else.

use serde_json::{Value, json};

use crate::support::{with_app, with_settings};

fn rft(hyper_parameters: Value) -> Value {
    let lambda = "arn:aws:lambda:us-east-1:000000000000:function:grader";
    json!({ "rftConfig": { "graderConfig": { "lambdaGrader": { "lambdaArn": lambda } }, "hyperParameters": hyper_parameters } })
}

fn distillation() -> Value {
    json!({ "distillationConfig": { "teacherModelConfig": { "teacherModelIdentifier": "meta.llama3-1-70b-instruct-v1:0" } } })
}

#[test]
fn a_type_that_is_not_run_or_lacks_what_it_needs_is_refused_by_name() {
    with_app(async |app| {
        app.create("first").await;
        let cases = [
            ("DISTILLATION", None),
            ("DISTILLATION", Some(rft(json!({ "epochCount": 1 })))),
            ("IMPORTED", None),
            ("FINE_TUNING", Some(distillation())),
        ];
        for (name, config) in cases {
            let mut job = app.job("second");
            job["customizationType"] = json!(name);
            if let Some(config) = config {
                job["customizationConfig"] = config;
            }
            let reply = app.call("POST", "/model-customization-jobs", Some(&job)).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"));
            assert!(reply.message().contains(name), "{}", reply.message());
        }
        app
    });
}

#[test]
fn every_violation_in_a_configuration_is_named_with_its_path() {
    with_app(async |app| {
        let refused = async |change: &dyn Fn(&mut Value)| -> String {
            let mut job = app.job("refused");
            change(&mut job);
            let reply = app.call("POST", "/model-customization-jobs", Some(&job)).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());
            reply.message().to_string()
        };
        let message = refused(&|job| {
            job["customizationConfig"] =
                rft(json!({ "epochCount": 51, "batchSize": 15, "learningRate": 0.1, "reasoningEffort": "none" }));
        })
        .await;
        for path in ["epochCount", "batchSize", "learningRate", "reasoningEffort"] {
            assert!(message.contains(&format!("'customizationConfig.rftConfig.hyperParameters.{path}'")), "{message}");
        }
        let both = refused(&|job| {
            job["customizationConfig"] = rft(json!({}));
            job["customizationConfig"]["distillationConfig"] = distillation()["distillationConfig"].clone();
        })
        .await;
        assert!(both.contains("exactly one of: distillationConfig, rftConfig"), "{both}");

        let logs = refused(&|job| {
            job["trainingDataConfig"] = json!({ "invocationLogsConfig": {
                "invocationLogSource": {},
                "requestMetadataFilters": { "equals": { "a": "b", "c": "d" }, "orAll": [] },
            } });
        })
        .await;
        for part in [
            "'trainingDataConfig.invocationLogsConfig.invocationLogSource'",
            ".equals'",
            ".orAll'",
            "exactly one of: equals",
        ] {
            assert!(logs.contains(part), "{part}: {logs}");
        }
        let neither = refused(&|job| job["trainingDataConfig"] = json!({})).await;
        assert!(neither.contains("exactly one of: s3Uri, invocationLogsConfig"), "{neither}");
        app
    });
}

#[test]
fn a_job_that_can_never_fit_into_memory_is_refused_with_the_numbers() {
    with_settings(&["--memory=50KB"], async |app| {
        app.upload("s3://tuning/train.jsonl", "{}\n").await;
        let reply = app.call("POST", "/model-customization-jobs", Some(&app.job("too-large"))).await;
        assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());
        for said in ["The job does not fit into memory", "The largest part is", "What helps", "TUNESMITH_MEMORY"] {
            assert!(reply.message().contains(said), "{}", reply.message());
        }
        app
    });
}
