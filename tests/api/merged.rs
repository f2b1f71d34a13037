//! Jobs that also write their model merged.

use serde_json::{Value, json};
use tunesmith::objects::Uri;

use crate::support::{TestApp, until, with_app, with_worker};

async fn create(app: &TestApp, name: &str, more: Value) -> crate::support::http::Reply {
    app.upload("s3://tuning/train.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n").await;
    let mut job = app.job(name);
    job["hyperParameters"] = json!({ "stepCount": "4", "learningRate": "1e-2", "mergedWeights": "true" });
    job["hyperParameters"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    app.call("POST", "/model-customization-jobs", Some(&job)).await
}

#[test]
fn a_job_writes_the_merged_model_beside_its_adapter_and_says_how_far_it_moved() {
    with_worker(&[], async |app| {
        let reply = create(&app, "both", json!({ "tuningMethod": "qlora" })).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        let arn = reply.json()["jobArn"].as_str().unwrap().to_string();
        until("the job is completed", async || {
            let job = app.call("GET", "/model-customization-jobs/both", None).await.json();
            assert_ne!(job["status"], "Failed", "{job}");
            (job["status"] == "Completed").then_some(())
        })
        .await;
        let root = Uri::parse(&format!("s3://tuning/out/model-customization-job-{}", arn.rsplit('/').next().unwrap()));
        let (root, objects) = (root.unwrap(), &app.service.app.objects);
        let manifest = objects.get_bytes(&root.join("training_manifest.json"), 1 << 20).await.unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let merged = &manifest["merged"];
        assert_eq!((&merged["method"], &merged["dtype"]), (&json!("qlora"), &json!("bfloat16")), "{merged}");
        assert!(merged["difference"]["mean"].as_f64().unwrap() < 0.1, "{merged}");
        assert!(merged["differenceToFourBits"]["largest"].as_f64().unwrap() > 0.0, "{merged}");
        let listed = objects.list(&root.join("merged").folder()).all().await.unwrap();
        let mut names: Vec<_> = listed.iter().map(|object| object.uri.name().to_string()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
        let digests = merged["sha256"].as_object().unwrap();
        assert_eq!(digests.keys().collect::<Vec<_>>().len(), names.len(), "{merged}");
        assert_eq!(manifest["hyperParameters"]["mergedWeights"], "true");
        app
    });
}

#[test]
fn what_cannot_be_merged_is_refused_before_it_is_trained() {
    with_app(async |app| {
        for (more, said) in [
            (json!({ "tuningMethod": "prefix" }), "what tuningMethod prefix learns cannot be merged here"),
            (json!({ "tuningMethod": "adapter" }), "bottlenecks have a bend"),
            (json!({ "tuningMethod": "full" }), "is whole already"),
            (json!({ "trainingObjective": "reward" }), "a reward model's head"),
        ] {
            let reply = create(&app, "refused", more).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());
            assert!(reply.message().contains(said), "{}", reply.message());
        }
        app
    });
}
