//! Asking a job that is still training: its newest checkpoint answers.

use std::sync::atomic::AtomicBool;

use candle_core::Device;
use serde_json::{Value, json};
use tunesmith::app::preview;
use tunesmith::infer::{Adapter, Capacity, Engine, Options, Prompt, Target};
use tunesmith::objects::Uri;
use tunesmith::store::scratch;

use crate::support::http::Reply;
use crate::support::{TestApp, fixture, segment, until, with_app, with_worker};

const HEADER: &str = "x-tunesmith-preview";

/// Creates a job that trains until it is stopped; gives its ARN.
async fn endless(app: &TestApp, name: &str, more: Value) -> String {
    app.upload("s3://tuning/train.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n").await;
    let mut job = app.job(name);
    job["hyperParameters"] = json!({ "stepCount": "1000000", "checkpointInterval": "20", "learningRate": "1e-2",
        "learningRateWarmupSteps": "0" });
    job["hyperParameters"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let reply = app.call("POST", "/model-customization-jobs", Some(&job)).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    reply.json()["jobArn"].as_str().unwrap().to_string()
}

async fn ask(app: &TestApp, arn: &str) -> Reply {
    let body = json!({ "prompt": "the cat", "max_gen_len": 8, "temperature": 0.0 });
    app.call("POST", &format!("/model/{}/invoke", segment(arn)), Some(&body)).await
}

/// The step of the checkpoint that answered.
fn step(reply: &Reply) -> u64 {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.header(HEADER).and_then(|value| value.strip_prefix("step=")).unwrap().parse().unwrap()
}

/// Waits for the first checkpoint that answers; until then, the job says when it is due.
async fn first(app: &TestApp, arn: &str) -> u64 {
    until("a checkpoint answers", async || {
        let reply = ask(app, arn).await;
        if reply.status == 429 {
            assert_eq!(reply.error(), "ModelNotReadyException");
            assert!(reply.message().ends_with("The first is due after step 20."), "{}", reply.message());
            return None;
        }
        Some(step(&reply))
    })
    .await
}

async fn status(app: &TestApp, name: &str) -> String {
    let job = app.call("GET", &format!("/model-customization-jobs/{name}"), None).await.json();
    assert_ne!(job["status"], "Failed", "{job}");
    job["status"].as_str().unwrap().to_string()
}

async fn stop(app: &TestApp, name: &str) {
    let reply = app.call("POST", &format!("/model-customization-jobs/{name}/stop"), None).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    until("the job is stopped", async || (status(app, name).await == "Stopped").then_some(())).await;
}

#[test]
fn a_training_jobs_newest_checkpoint_answers_until_the_job_has_ended_and_its_checkpoints_are_gone() {
    with_worker(&[], async |app| {
        let arn = endless(&app, "long", json!({})).await;
        let seen = first(&app, &arn).await;
        assert!(seen >= 20 && seen.is_multiple_of(20), "{seen}");
        // A newer one is taken up by the next request.
        until("a newer checkpoint answers", async || {
            let newer = step(&ask(&app, &arn).await);
            assert!(newer >= seen, "{newer} after {seen}");
            (newer > seen).then_some(())
        })
        .await;
        let converse = json!({ "messages": [{ "role": "user", "content": [{ "text": "a" }] }],
            "inferenceConfig": { "maxTokens": 4 } });
        for operation in ["converse", "converse-stream"] {
            step(&app.call("POST", &format!("/model/{}/{operation}", segment(&arn)), Some(&converse)).await);
        }
        let invoke = json!({ "prompt": "a", "max_gen_len": 4 });
        let path = format!("/model/{}/invoke-with-response-stream", segment(&arn));
        step(&app.call("POST", &path, Some(&invoke)).await);
        let stranger = app.stranger().await;
        let reply = app.call_as(&stranger, "POST", &path, Some(&invoke)).await;
        assert_eq!((reply.status, reply.error()), (404, "ResourceNotFoundException"));

        // Stopped, it stays at its last checkpoint, and that is what answers.
        stop(&app, "long").await;
        let reply = ask(&app, &arn).await;
        let last = step(&reply);
        assert_eq!(step(&ask(&app, &arn).await), last);
        let id = arn.rsplit('/').next().unwrap();
        let folder = app.data_dir().join("cache/previews").join(id);
        let mut kept: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        kept.sort();
        assert!(kept.len() <= 2, "{kept:?}");
        let newest = kept.pop().unwrap();
        assert!(newest.file_name().unwrap().to_string_lossy().starts_with(&format!("000001-{last:08}-")), "{newest:?}");
        let mut files: Vec<_> = std::fs::read_dir(&newest).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["adapter_config.json", "adapter_model.safetensors"], "no more than answers");
        let target = Target {
            base_dir: fixture("models/llama"),
            context_length: None,
            adapter: Some(Adapter { id: "own".into(), dir: newest }),
        };
        let engine = Engine::new(Device::Cpu, Capacity::default(), None);
        let options = Options { max_tokens: 8, ..Options::default() };
        let prompt = Prompt::Text("the cat".into());
        let own = engine.answer(&target, &prompt, &options, &AtomicBool::new(false), &mut |_| ()).unwrap();
        assert_eq!(reply.json()["generation"], json!(own.text));

        let root = format!("s3://tuning/out/model-customization-job-{id}/.tunesmith/");
        app.service.app.objects.delete_prefix(&Uri::parse(&root).unwrap()).await.unwrap();
        let gone = until("what was found is no longer fresh", async || {
            let reply = ask(&app, &arn).await;
            (reply.status != 200).then_some(reply)
        })
        .await;
        assert_eq!((gone.status, gone.error()), (404, "ResourceNotFoundException"));
        assert!(gone.message().contains("is Stopped and has no checkpoint"), "{}", gone.message());
        assert!(!folder.exists(), "nobody can ask what lies there");
        app
    });
}

#[test]
fn checkpoints_that_were_asked_stay_no_longer_than_those_of_the_job() {
    with_worker(&[], async |app| {
        let arn = endless(&app, "long", json!({})).await;
        first(&app, &arn).await;
        stop(&app, "long").await;
        let previews = app.data_dir().join("cache/previews");
        let id = arn.rsplit('/').next().unwrap();
        std::fs::create_dir_all(previews.join("jobunknown01/000001-00000020-0123456789abcdef")).unwrap();
        preview::sweep(&app.service.app).await;
        assert!(!previews.join("jobunknown01").exists(), "another database was here before");
        assert!(previews.join(id).exists(), "its checkpoints may still be asked");
        scratch::removed(&app.service.app.db, id, Some(i64::MAX)).await.unwrap();
        preview::sweep(&app.service.app).await;
        assert!(!previews.join(id).exists());
        app
    });
}

#[test]
fn a_completed_job_answers_with_the_model_that_it_made() {
    with_worker(&[], async |app| {
        let arn = endless(&app, "short", json!({ "stepCount": "40", "learningRate": "3e-2" })).await;
        until("the job is completed", async || (status(&app, "short").await == "Completed").then_some(())).await;
        let (of_job, of_model) = (ask(&app, &arn).await, ask(&app, "model-short").await);
        assert_eq!((of_job.status, of_job.header(HEADER)), (200, None), "{}", of_job.text());
        assert_eq!(of_job.json(), of_model.json());
        assert_eq!(app.call("DELETE", "/custom-models/model-short", None).await.status, 200);
        let gone = ask(&app, &arn).await;
        assert_eq!((gone.status, gone.error()), (404, "ResourceNotFoundException"));
        app
    });
}

#[test]
fn checkpoints_of_every_kind_of_method_answer() {
    with_worker(&[], async |app| {
        for (name, method) in [
            ("qlora", json!({ "tuningMethod": "qlora" })),
            ("adapter", json!({ "tuningMethod": "adapter", "adapterReductionFactor": "4" })),
            ("prefix", json!({ "tuningMethod": "prefix", "virtualTokens": "4", "prefixProjection": "true" })),
            ("full", json!({ "tuningMethod": "full" })),
        ] {
            let arn = endless(&app, name, method).await;
            first(&app, &arn).await;
            // The one record of its data set is heard sooner or later.
            let body = json!({ "prompt": "a", "max_gen_len": 4, "temperature": 0.0 });
            until("what was learned is heard", async || {
                let reply = app.call("POST", &format!("/model/{}/invoke", segment(&arn)), Some(&body)).await;
                step(&reply);
                (reply.json()["generation"] == "b").then_some(())
            })
            .await;
            stop(&app, name).await;
        }
        app
    });
}

#[test]
fn a_job_without_a_checkpoint_says_what_it_waits_for() {
    with_app(async |app| {
        let arn = app.create("waiting").await;
        let reply = ask(&app, &arn).await;
        assert_eq!((reply.status, reply.error()), (429, "ModelNotReadyException"));
        let said = "has no checkpoint to answer with yet: it waits for a worker. The first is due about 1 s after \
                    training has begun.";
        assert!(reply.message().ends_with(said), "{}", reply.message());
        app.call("POST", "/model-customization-jobs/waiting/stop", None).await;
        assert_eq!(ask(&app, &arn).await.error(), "ResourceNotFoundException");
        let absent = format!("{}aaaaaaaaaaaa", &arn[..arn.len() - 12]);
        assert_eq!(ask(&app, &absent).await.error(), "ResourceNotFoundException");
        app
    });
}
