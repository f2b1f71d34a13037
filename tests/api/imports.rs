//! Models made elsewhere: import jobs and CreateCustomModel, from the request to the answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tunesmith::objects::{Put, Uri};
use tunesmith::store::imports;
use tunesmith::worker::Pool;

use crate::support::http::{PATIENCE, Reply};
use crate::support::{ACCOUNT, TINY, TestApp, segment, with_app};

pub(super) const JOBS: &str = "/model-import-jobs";
pub(super) const CREATE: &str = "/custom-models/create-custom-model";

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models").join(name)
}

/// Puts a folder of fixtures under `s3://tuning/<to>/`, with some files changed or (`None`) left out.
pub(super) async fn put(app: &TestApp, name: &str, to: &str, changed: &[(&str, Option<&str>)]) {
    let objects = &app.service.app.objects;
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_file() && !changed.iter().any(|(changed, _)| *changed == name) {
            let uri = Uri::parse(&format!("s3://tuning/{to}/{name}")).unwrap();
            objects.put_file(&uri, &path, &Put::default()).await.unwrap();
        }
    }
    for (name, text) in changed {
        if let Some(text) = text {
            app.upload(&format!("s3://tuning/{to}/{name}"), text).await;
        }
    }
}

/// The adapter of the fixtures, naming `base`.
pub(super) async fn put_adapter(app: &TestApp, to: &str, base: &str) {
    let text = std::fs::read_to_string(fixture("lora/after/adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["base_model_name_or_path"] = base.into();
    put(app, "lora/after", to, &[("adapter_config.json", Some(&config.to_string()))]).await;
}

pub(super) fn source(folder: &str) -> Value {
    json!({ "s3DataSource": { "s3Uri": format!("s3://tuning/{folder}/") } })
}

pub(super) fn job(name: &str, folder: &str) -> Value {
    json!({
        "jobName": name,
        "importedModelName": format!("model-{name}"),
        "roleArn": "arn:aws:iam::000000000000:role/importer",
        "modelDataSource": source(folder),
        "clientRequestToken": format!("token-{name}"),
        "jobTags": [{ "key": "of", "value": "job" }],
        "importedModelTags": [{ "key": "of", "value": "model" }],
        "vpcConfig": { "subnetIds": ["subnet-1"], "securityGroupIds": ["sg-1"] },
        "importedModelKmsKeyId": "alias/ours",
    })
}

pub(super) async fn get(app: &TestApp, path: &str, identifier: &str) -> Reply {
    app.call("GET", &format!("{path}/{}", segment(identifier)), None).await
}

/// Polls until `member` of what is at `path` is none of `waiting`.
pub(super) async fn settled(app: &TestApp, path: &str, identifier: &str, member: &str, waiting: &str) -> Value {
    let begun = std::time::Instant::now();
    loop {
        let found = get(app, path, identifier).await;
        assert_eq!(found.status, 200, "{}", found.text());
        if found.json()[member] != waiting {
            return found.json();
        }
        assert!(begun.elapsed() < PATIENCE, "{}", found.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn tags(app: &TestApp, arn: &str) -> Value {
    let reply = app.call("POST", "/listTagsForResource", Some(&json!({ "resourceARN": arn }))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["tags"].clone()
}

pub(super) async fn invoke(app: &TestApp, model: &str) -> Reply {
    let body = json!({ "prompt": "abc", "max_gen_len": 12, "temperature": 0.0 });
    app.call("POST", &format!("/model/{}/invoke", segment(model)), Some(&body)).await
}

fn kind(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.error())
}

#[test]
fn an_imported_model_answers_as_its_weights_do() {
    with_app(async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        put(&app, "llama", "llama", &[("notes.txt", Some("not part of it"))]).await;
        let reply = app.call("POST", JOBS, Some(&job("first", "llama"))).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        let arn = reply.json()["jobArn"].as_str().unwrap().to_string();
        assert!(arn.starts_with("arn:aws:bedrock:us-east-1:000000000000:model-import-job/"), "{arn}");

        let done = settled(&app, JOBS, "first", "status", "InProgress").await;
        assert_eq!(done["status"], "Completed", "{done}");
        assert_eq!(done["jobArn"], arn.as_str());
        assert_eq!(done["modelDataSource"], source("llama"));
        assert_eq!(done["vpcConfig"], json!({ "subnetIds": ["subnet-1"], "securityGroupIds": ["sg-1"] }));
        assert_eq!(done["importedModelKmsKeyArn"], "arn:aws:kms:us-east-1:000000000000:alias/ours");
        assert!(done["endTime"].is_string() && done.get("failureMessage").is_none(), "{done}");
        let model = done["importedModelArn"].as_str().unwrap();
        assert!(model.starts_with("arn:aws:bedrock:us-east-1:000000000000:imported-model/"), "{model}");

        for identifier in [model, "model-first"] {
            let found = get(&app, "/imported-models", identifier).await.json();
            assert_eq!((&found["modelArn"], &found["jobArn"]), (&json!(model), &json!(arn)));
            assert_eq!((&found["modelArchitecture"], &found["instructSupported"]), (&json!("llama"), &json!(true)));
        }
        assert_eq!(tags(&app, &arn).await, json!([{ "key": "of", "value": "job" }]));
        assert_eq!(tags(&app, model).await, json!([{ "key": "of", "value": "model" }]));

        // The same weights are installed as a foundation model: the answers are the same.
        let expected = invoke(&app, TINY).await;
        assert_eq!(expected.status, 200, "{}", expected.text());
        for identifier in [model, "model-first"] {
            let reply = invoke(&app, identifier).await;
            assert_eq!((reply.status, reply.json()), (200, expected.json()), "{identifier}");
        }

        assert_eq!(get(&app, JOBS, "nothing").await.status, 404);
        assert_eq!(app.call("DELETE", "/imported-models/model-first", None).await.status, 200);
        assert_eq!(kind(&get(&app, "/imported-models", model).await), (404, "ResourceNotFoundException"));
        assert_eq!(kind(&invoke(&app, model).await), (404, "ResourceNotFoundException"));
        assert_eq!(get(&app, JOBS, &arn).await.json()["status"], "Completed", "the job stays");
        pool.drain().await;
        app
    });
}

#[test]
fn an_import_that_cannot_work_fails_with_what_to_mend() {
    with_app(async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        put(&app, "llama", "no-tokenizer", &[("tokenizer.json", None)]).await;
        put(&app, "llama", "no-shard", &[("model-00002-of-00003.safetensors", None)]).await;
        put(&app, "llama", "torn", &[("model-00002-of-00003.safetensors", Some("torn"))]).await;
        put(&app, "llama", "gpt", &[("config.json", Some(r#"{"architectures": ["GPT2LMHeadModel"]}"#))]).await;
        put_adapter(&app, "adapter", TINY).await;
        for (name, said) in [
            ("no-tokenizer", "s3://tuning/no-tokenizer lacks the file tokenizer.json"),
            ("no-shard", "s3://tuning/no-shard/model-00002-of-00003.safetensors"),
            ("torn", "s3://tuning/torn/model-00002-of-00003.safetensors"),
            ("gpt", "GPT2LMHeadModel is not supported"),
            ("adapter", "make it a custom model with CreateCustomModel"),
        ] {
            assert_eq!(app.call("POST", JOBS, Some(&job(name, name))).await.status, 201);
            let failed = settled(&app, JOBS, name, "status", "InProgress").await;
            assert_eq!(failed["status"], "Failed", "{failed}");
            let message = failed["failureMessage"].as_str().unwrap();
            assert!(message.contains(said), "{name}: {message}");
            assert!(failed.get("importedModelArn").is_none(), "{failed}");
            assert_eq!(get(&app, "/imported-models", &format!("model-{name}")).await.status, 404);
        }
        let empty = app.call("POST", JOBS, Some(&job("empty", "nothing-there"))).await;
        assert_eq!(kind(&empty), (400, "ValidationException"));
        assert!(empty.message().contains("Could not validate GetObject permissions"), "{}", empty.message());
        pool.drain().await;
        app
    });
}

#[test]
fn an_import_job_is_told_apart_by_token_then_name() {
    with_app(async |app| {
        put(&app, "llama", "llama", &[]).await;
        let first = app.call("POST", JOBS, Some(&job("first", "llama"))).await;
        let again = app.call("POST", JOBS, Some(&job("first", "llama"))).await;
        assert_eq!((again.status, again.json()), (201, first.json()));
        let with = |changes: Value| {
            let mut body = job("first", "llama");
            body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            body
        };
        for (changes, status, error, message) in [
            (json!({ "importedModelName": "other" }), 400, "ConflictException", "The clientRequestToken was used"),
            (
                json!({ "clientRequestToken": "t2", "importedModelName": "other" }),
                400,
                "ValidationException",
                "The provided job name is currently in use.",
            ),
            (
                json!({ "clientRequestToken": "t3", "jobName": "other" }),
                400,
                "ValidationException",
                "The provided model name is currently in use.",
            ),
        ] {
            let reply = app.call("POST", JOBS, Some(&with(changes))).await;
            assert_eq!(kind(&reply), (status, error));
            assert!(reply.message().starts_with(message), "{}", reply.message());
        }
        let waiting = get(&app, JOBS, "first").await.json();
        assert_eq!(waiting["status"], "InProgress");
        assert!(waiting.get("importedModelArn").is_none() && waiting.get("endTime").is_none(), "{waiting}");

        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        settled(&app, JOBS, "first", "status", "InProgress").await;
        let taken = with(json!({ "clientRequestToken": "t4", "jobName": "other" }));
        let taken = app.call("POST", JOBS, Some(&taken)).await;
        assert_eq!(taken.message(), "The provided model name is currently in use.");
        pool.drain().await;
        app
    });
}

#[test]
fn an_adapter_made_elsewhere_becomes_a_custom_model() {
    with_app(async |app| {
        put_adapter(&app, "adapter", &format!("/home/someone/models/{TINY}")).await;
        let body = json!({
            "modelName": "brought",
            "modelSourceConfig": source("adapter"),
            "modelTags": [{ "key": "of", "value": "model" }],
            "clientRequestToken": "token",
        });
        let reply = app.call("POST", CREATE, Some(&body)).await;
        assert_eq!(reply.status, 202, "{}", reply.text());
        let arn = reply.json()["modelArn"].as_str().unwrap().to_string();
        assert!(arn.starts_with("arn:aws:bedrock:us-east-1:000000000000:custom-model/imported/"), "{arn}");
        let again = app.call("POST", CREATE, Some(&body)).await;
        assert_eq!((again.status, again.json()), (202, reply.json()));

        // Nobody works on it yet.
        let creating = get(&app, "/custom-models", "brought").await.json();
        assert_eq!(
            (&creating["modelStatus"], &creating["customizationType"]),
            (&json!("Creating"), &json!("IMPORTED"))
        );
        assert!(creating.get("jobArn").is_none(), "{creating}");
        assert_eq!(kind(&invoke(&app, &arn).await), (429, "ModelNotReadyException"));
        let deployment = json!({ "modelDeploymentName": "d", "modelArn": arn });
        let path = "/model-customization/custom-model-deployments";
        assert_eq!(app.call("POST", path, Some(&deployment)).await.error(), "ValidationException");

        // A worker that died over it holds nobody up for longer than its lease.
        let (db, clock) = (&app.service.app.db, &app.service.app.clock);
        let lost = imports::claim(db, "killed", 60_000, clock.database()).await.unwrap().unwrap();
        assert_eq!(imports::claim(db, "other", 60_000, clock.database()).await.unwrap(), None);
        clock.jump_database(Duration::from_secs(61), false);
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        let active = settled(&app, "/custom-models", "brought", "modelStatus", "Creating").await;
        assert_eq!(active["modelStatus"], "Active", "{active}");
        assert_eq!(active["baseModelArn"], format!("arn:aws:bedrock:us-east-1::foundation-model/{TINY}"));
        assert!(!imports::fail(db, &lost, "too late", clock.now()).await.unwrap(), "a stale worker changes nothing");
        assert_eq!(tags(&app, &arn).await, json!([{ "key": "of", "value": "model" }]));

        assert_eq!(app.call("POST", path, Some(&deployment)).await.status, 202);
        let deployed = settled(&app, path, "d", "status", "Creating").await;
        assert_eq!(deployed["status"], "Active", "{deployed}");
        let (base, tuned) = (invoke(&app, TINY).await, invoke(&app, "d").await);
        assert_eq!(tuned.status, 200, "{}", tuned.text());
        assert_ne!(tuned.json()["generation"], base.json()["generation"], "the adapter changes the answer");
        pool.drain().await;
        app
    });
}

#[test]
fn whole_weights_become_a_custom_model_that_needs_no_base() {
    with_app(async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        put(&app, "llama", "whole", &[]).await;
        let body = json!({ "modelName": "whole", "modelSourceConfig": source("whole") });
        assert_eq!(app.call("POST", CREATE, Some(&body)).await.status, 202);
        let active = settled(&app, "/custom-models", "whole", "modelStatus", "Creating").await;
        assert_eq!(active["modelStatus"], "Active", "{active}");
        assert_eq!(active["baseModelArn"], "arn:aws:bedrock:us-east-1::foundation-model/imported.llama");
        let (own, installed) = (invoke(&app, "whole").await, invoke(&app, TINY).await);
        assert_eq!((own.status, own.json()), (200, installed.json()));

        // What was checked is what is served: a file that changed afterwards is not.
        put(&app, "llama", "changing", &[]).await;
        let body = json!({ "modelName": "changing", "modelSourceConfig": source("changing") });
        assert_eq!(app.call("POST", CREATE, Some(&body)).await.status, 202);
        settled(&app, "/custom-models", "changing", "modelStatus", "Creating").await;
        app.upload("s3://tuning/changing/config.json", "{}").await;
        let refused = invoke(&app, "changing").await;
        assert_eq!(kind(&refused), (424, "ModelErrorException"));
        assert!(refused.message().contains("s3://tuning/changing/config.json"), "{}", refused.message());
        pool.drain().await;
        app
    });
}

#[test]
fn a_custom_model_that_cannot_be_made_is_refused_or_fails_with_the_reason() {
    with_app(async |app| {
        let create = async |name: &str, folder: &str| {
            app.call("POST", CREATE, Some(&json!({ "modelName": name, "modelSourceConfig": source(folder) }))).await
        };
        put_adapter(&app, "stranger", "somebody/else-7b").await;
        put(&app, "lora/after", "half", &[("adapter_config.json", None)]).await;
        put_adapter(&app, "misfit", "tunesmith.starter-v1:0").await;
        put_adapter(&app, "fits", TINY).await;
        for (folder, said) in [
            ("stranger", "names the base model 'somebody/else-7b', which is not known here"),
            ("half", "holds neither adapter_config.json"),
            ("empty", "Could not validate GetObject permissions"),
        ] {
            let reply = create("m", folder).await;
            assert_eq!(kind(&reply), (400, "ValidationException"), "{}", reply.text());
            assert!(reply.message().contains(said), "{folder}: {}", reply.message());
        }
        // A name that a running job was promised, or that a model has.
        app.create("running").await;
        assert_eq!(create("model-running", "fits").await.message(), "The provided model name is currently in use.");
        assert_eq!(create("taken", "misfit").await.status, 202);
        assert_eq!(create("taken", "fits").await.message(), "The provided model name is currently in use.");
        // Deleted while it waits: nobody works on it any more, and the name is free.
        assert_eq!(create("unwanted", "fits").await.status, 202);
        assert_eq!(app.call("DELETE", "/custom-models/unwanted", None).await.status, 200);

        let (db, clock) = (&app.service.app.db, &app.service.app.clock);
        let mut claimed = Vec::new();
        while let Some(import) = imports::claim(db, "test", 60_000, clock.database()).await.unwrap() {
            assert_eq!(import.account_id, ACCOUNT);
            claimed.push(import);
        }
        let names: Vec<_> = claimed.iter().map(|import| import.model_name.as_str()).collect();
        assert_eq!(names, ["taken"]);
        assert!(imports::release(db, &claimed[0]).await.unwrap());

        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        let failed = settled(&app, "/custom-models", "taken", "modelStatus", "Creating").await;
        assert_eq!(failed["modelStatus"], "Failed", "{failed}");
        assert!(failed["failureMessage"].as_str().unwrap().contains("lora_A"), "{failed}");
        pool.drain().await;
        app
    });
}

#[test]
fn imports_and_imported_models_are_listed_by_page_state_and_name() {
    with_app(async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        put(&app, "llama", "llama", &[]).await;
        put(&app, "llama", "broken", &[("tokenizer.json", None)]).await;
        for (name, folder) in [("a-1", "llama"), ("b-2", "broken"), ("a-3", "llama")] {
            // Rows of one millisecond come in no order that a test could know.
            app.service.app.clock.jump(Duration::from_millis(2), false);
            assert_eq!(app.call("POST", JOBS, Some(&job(name, folder))).await.status, 201);
            settled(&app, JOBS, name, "status", "InProgress").await;
        }
        let names = async |path: &str, member: &str, name: &str| -> Vec<String> {
            let reply = app.call("GET", path, None).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let items = reply.json()[member].as_array().unwrap().clone();
            items.iter().map(|item| item[name].as_str().unwrap().to_string()).collect()
        };
        let jobs = async |query: &str| names(&format!("{JOBS}?{query}"), "modelImportJobSummaries", "jobName").await;
        assert_eq!(jobs("").await, ["a-3", "b-2", "a-1"]);
        assert_eq!(jobs("sortOrder=Ascending&nameContains=A-").await, ["a-1", "a-3"]);
        assert_eq!(jobs("statusEquals=Failed").await, ["b-2"]);
        assert_eq!(jobs("statusEquals=InProgress").await, [""; 0]);
        let page = app.call("GET", &format!("{JOBS}?maxResults=2"), None).await.json();
        let token = segment(page["nextToken"].as_str().unwrap());
        assert_eq!(jobs(&format!("maxResults=2&nextToken={token}")).await, ["a-1"]);

        let models =
            async |query: &str| names(&format!("/imported-models?{query}"), "modelSummaries", "modelName").await;
        assert_eq!(models("").await, ["model-a-3", "model-a-1"]);
        assert_eq!(models("nameContains=a-1").await, ["model-a-1"]);
        let page = app.call("GET", "/imported-models?maxResults=1", None).await.json();
        let token = segment(page["nextToken"].as_str().unwrap());
        assert_eq!(models(&format!("maxResults=1&nextToken={token}")).await, ["model-a-1"]);
        let stranger = app.stranger().await;
        for (path, member) in [(JOBS, "modelImportJobSummaries"), ("/imported-models", "modelSummaries")] {
            assert_eq!(app.call_as(&stranger, "GET", path, None).await.json()[member], json!([]));
        }
        let hidden = app.call_as(&stranger, "GET", "/imported-models/model-a-1", None).await;
        assert_eq!(kind(&hidden), (404, "ResourceNotFoundException"));
        pool.drain().await;
        app
    });
}
