//! Programs that strangers send: chat templates and graders that would take a stack, a processor or a memory without
//! end are refused by name, and the service answers on.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tunesmith::objects::{Put, Uri};
use tunesmith::worker::Pool;

use crate::support::http::Reply;
use crate::support::{TINY, TestApp, fixture, segment, until, with_app, with_worker};

const JOBS: &str = "/model-customization-jobs";
const IMPORTS: &str = "/model-import-jobs";
const DEPLOYMENTS: &str = "/model-customization/custom-model-deployments";

fn kind(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.error())
}

/// A sum that is as deep as it is long, within the size that is read.
fn chain() -> String {
    format!("{{{{ a{} }}}}", "+a".repeat(60_000))
}

const ENDLESS: &str = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}\
                       {% endfor %}{% endfor %}";

/// Gives the installed base model another chat template, which is read when it is first asked.
fn install(app: &TestApp, template: &str) {
    let models = app.data_dir().parent().unwrap().join("models");
    std::fs::write(models.join(TINY).join("chat_template.jinja"), template).unwrap();
}

async fn converse(app: &TestApp, model: &str) -> Reply {
    let body = json!({ "messages": [{ "role": "user", "content": [{ "text": "abc" }] }] });
    app.call("POST", &format!("/model/{}/converse", segment(model)), Some(&body)).await
}

async fn count(app: &TestApp, model: &str) -> Reply {
    let messages = json!([{ "role": "user", "content": [{ "text": "abc" }] }]);
    let body = json!({ "input": { "converse": { "messages": messages } } });
    app.call("POST", &format!("/model/{}/count-tokens", segment(model)), Some(&body)).await
}

async fn invoke(app: &TestApp, prompt: &str) -> Reply {
    let body = json!({ "prompt": prompt, "max_gen_len": 2 });
    app.call("POST", &format!("/model/{}/invoke", segment(TINY)), Some(&body)).await
}

#[test]
fn a_template_that_would_overflow_a_stack_costs_its_callers_an_error_and_nobody_else() {
    with_app(async |app| {
        install(&app, &chain());
        for reply in [count(&app, TINY).await, converse(&app, TINY).await, invoke(&app, "abc").await] {
            assert_eq!(kind(&reply), (400, "ValidationException"), "{}", reply.text());
            assert!(reply.message().contains("a tag has more than 1000 words"), "{}", reply.message());
        }
        // What was rendered by its author needs no template.
        assert_eq!(invoke(&app, "<|begin|>abc").await.status, 200);
        // A deployment loads the model at every start: it is made, and what is asked of it is refused.
        let model = app.model("m").await;
        let body = json!({ "modelDeploymentName": "chat", "modelArn": model.arn });
        assert_eq!(app.call("POST", DEPLOYMENTS, Some(&body)).await.status, 202);
        until("the deployment is made", async || {
            let there = app.call("GET", &format!("{DEPLOYMENTS}/chat"), None).await.json();
            (there["status"] == "Active").then_some(())
        })
        .await;
        assert_eq!(kind(&converse(&app, "chat").await), (400, "ValidationException"));
        app
    });
}

#[test]
fn a_template_that_never_ends_ends_by_its_fuel_and_gives_its_place_back() {
    with_app(async |app| {
        install(&app, ENDLESS);
        for reply in [converse(&app, TINY).await, count(&app, TINY).await] {
            assert_eq!(kind(&reply), (400, "ValidationException"), "{}", reply.text());
            assert!(reply.message().contains("takes more work than"), "{}", reply.message());
        }
        assert_eq!(invoke(&app, "<|begin|>abc").await.status, 200);
        app
    });
}

#[test]
fn a_model_with_such_a_template_is_not_imported_and_the_reason_is_named() {
    with_app(async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        for (name, template, why) in
            [("chain", chain(), "a tag has more than 1000 words"), ("endless", ENDLESS.into(), "takes more work than")]
        {
            for entry in std::fs::read_dir(fixture("models/llama")).unwrap() {
                let path = entry.unwrap().path();
                let file = path.file_name().unwrap().to_string_lossy().into_owned();
                let uri = Uri::parse(&format!("s3://tuning/{name}/{file}")).unwrap();
                app.service.app.objects.put_file(&uri, &path, &Put::default()).await.unwrap();
            }
            app.upload(&format!("s3://tuning/{name}/chat_template.jinja"), &template).await;
            let source = json!({ "s3DataSource": { "s3Uri": format!("s3://tuning/{name}/") } });
            let role = "arn:aws:iam::000000000000:role/importer";
            let job = json!({ "jobName": name, "importedModelName": name, "roleArn": role, "modelDataSource": source });
            assert_eq!(app.call("POST", IMPORTS, Some(&job)).await.status, 201);
            let model = json!({ "modelName": format!("custom-{name}"), "roleArn": role, "modelSourceConfig": source });
            let created = app.call("POST", "/custom-models/create-custom-model", Some(&model)).await;
            assert_eq!(created.status, 202, "{}", created.text());
            for (path, member, waiting) in [
                (format!("{IMPORTS}/{name}"), "status", "InProgress"),
                (format!("/custom-models/custom-{name}"), "modelStatus", "Creating"),
            ] {
                let ended = until("it ends", async || {
                    let there = app.call("GET", &path, None).await.json();
                    (there[member] != waiting).then_some(there)
                })
                .await;
                assert_eq!(ended[member], "Failed", "{ended}");
                let message = ended["failureMessage"].as_str().unwrap();
                assert!(message.contains("chat template") && message.contains(why), "{message}");
            }
        }
        pool.drain().await;
        app
    });
}

/// A request for a reinforcement job with this grader.
fn reinforcement(app: &TestApp, name: &str, grader: &str) -> Value {
    let mut job = app.job(name);
    job["baseModelIdentifier"] = json!("tunesmith.starter-v1:0");
    job["customizationType"] = json!("REINFORCEMENT_FINE_TUNING");
    job["customizationConfig"] = json!({ "rftConfig": {} });
    job["hyperParameters"] = json!({ "grader": grader });
    job
}

fn multi(terms: usize) -> String {
    let judge = json!({ "type": "reward_model", "model": "nobody" });
    let formula = format!("judge{}", "+1".repeat(terms));
    json!({ "type": "multi", "graders": { "judge": judge }, "calculate_output": formula }).to_string()
}

#[test]
fn a_grader_of_two_hundred_thousand_terms_is_refused_inline_and_from_a_file() {
    with_worker(&[], async |app| {
        let mut prompts = String::new();
        for n in 0..24 {
            let record = json!({ "messages": [{ "role": "user", "content": format!("Say {n}.") }] });
            writeln!(prompts, "{record}").unwrap();
        }
        app.upload("s3://tuning/train.jsonl", &prompts).await;
        for terms in [25_000, 200_000] {
            let refused = app.call("POST", JOBS, Some(&reinforcement(&app, "inline", &multi(terms)))).await;
            assert_eq!(kind(&refused), (400, "ValidationException"), "{}", refused.text());
        }
        // A small one reaches the reward model that is not there; the large ones are not read so far.
        for (name, terms, why) in [
            ("small", 7_000, "nobody"),
            ("long", 20_000, "it may take at most 16384"),
            ("large", 200_000, "is larger than"),
        ] {
            let file = format!("s3://tuning/{name}.json");
            app.upload(&file, &multi(terms)).await;
            let reply = app.call("POST", JOBS, Some(&reinforcement(&app, name, &file))).await;
            assert_eq!(reply.status, 201, "{}", reply.text());
            let ended = until("the job ends", async || {
                let there = app.call("GET", &format!("{JOBS}/{name}"), None).await.json();
                (there["status"] != "InProgress").then_some(there)
            })
            .await;
            assert_eq!(ended["status"], "Failed", "{ended}");
            assert!(ended["failureMessage"].as_str().unwrap().contains(why), "{ended}");
        }
        app
    });
}
