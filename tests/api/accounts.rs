//! Accounts are walls: what one account has is for every other as if it were not there, through the API, through the
//! embedded object store, and for jobs that run long after they were asked for.

mod members;
mod storage;
mod walk;

use serde_json::{Value, json};
use tunesmith::worker::Pool;

use crate::support::{Pair, TINY, TestApp, segment, until, with_app};

/// The account that looks over the wall.
const OTHER: &str = "222222222222";

/// A bucket of the other account's own, with something to learn from.
pub(super) async fn own_bucket(app: &TestApp, pair: &Pair) {
    let s3 = app.s3(pair);
    s3.create_bucket().bucket("theirs").send().await.unwrap();
    let line = b"{\"prompt\": \"a\", \"completion\": \"b\"}\n".to_vec();
    s3.put_object().bucket("theirs").key("train.jsonl").body(line.into()).send().await.unwrap();
}

/// A job of the other account that reads and writes in its own bucket.
pub(super) fn own_job(app: &TestApp, name: &str) -> Value {
    let mut job = app.job(name);
    job["trainingDataConfig"]["s3Uri"] = json!("s3://theirs/train.jsonl");
    job["outputDataConfig"]["s3Uri"] = json!("s3://theirs/out");
    job
}

async fn status(app: &TestApp, pair: &Pair, job: &str) -> Value {
    app.call_as(pair, "GET", &format!("/model-customization-jobs/{}", segment(job)), None).await.json()
}

#[test]
fn an_account_made_on_the_command_line_works_beside_the_first_until_it_is_disabled() {
    with_app(async |app| {
        let (made, id) = app.command("accounts", &["create", "--name=research", "--id=222222222222"]);
        assert!(made && id.trim() == OTHER, "{id}");
        let (made, said) = app.command("accounts", &["create", "--name=again", "--id=222222222222"]);
        assert!(!made && said.contains("choose another --id"), "{said}");
        let (made, said) = app.keys(&["create", "--account=333333333333"]);
        assert!(!made && said.contains("tunesmith accounts create"), "{said}");
        let pair = app.create_pair(&["--account=222222222222"]);
        own_bucket(&app, &pair).await;
        let reply = app.call_as(&pair, "POST", "/model-customization-jobs", Some(&own_job(&app, "ours"))).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        assert!(reply.json()["jobArn"].as_str().unwrap().contains(":222222222222:"), "{}", reply.text());

        assert!(app.command("accounts", &["disable", OTHER]).0);
        let refused = app.call_as(&pair, "GET", "/custom-models", None).await;
        assert_eq!((refused.status, refused.error()), (403, "UnrecognizedClientException"));
        assert!(app.s3(&pair).list_buckets().send().await.is_err());
        let (_, listed) = app.command("accounts", &["list"]);
        assert!(listed.lines().any(|line| line.contains(OTHER) && line.contains("disabled")), "{listed}");
        let (disabled, said) = app.command("accounts", &["disable", crate::support::ACCOUNT]);
        assert!(!disabled && said.contains("cannot be disabled"), "{said}");
        assert!(app.command("accounts", &["enable", OTHER]).0);
        assert_eq!(app.call_as(&pair, "GET", "/custom-models", None).await.status, 200);
        app
    });
}

#[test]
fn a_grant_opens_a_folder_at_once_and_a_job_that_lost_it_fails_with_the_reason() {
    with_app(async |app| {
        app.upload("s3://tuning/shared/train.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n").await;
        app.upload("s3://tuning/private.jsonl", "secret-1234").await;
        let pair = app.stranger().await;
        own_bucket(&app, &pair).await;
        assert!(app.command("accounts", &["create", "--name=research", "--id=222222222222"]).0);
        let mut job = own_job(&app, "granted");
        job["trainingDataConfig"]["s3Uri"] = json!("s3://tuning/shared/train.jsonl");
        let create = async |job: &Value| app.call_as(&pair, "POST", "/model-customization-jobs", Some(job)).await;
        let before = create(&job).await;
        assert_eq!((before.status, before.error()), (400, "ValidationException"));
        assert!(before.message().starts_with("Could not validate GetObject permissions"), "{}", before.message());

        let (granted, said) = app.command("accounts", &["grant", OTHER, "s3://tuning/shared"]);
        assert!(granted, "{said}");
        let reply = create(&job).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        let mut beside = own_job(&app, "beside");
        beside["trainingDataConfig"]["s3Uri"] = json!("s3://tuning/private.jsonl");
        assert_eq!(create(&beside).await.status, 400, "the folder is granted, not its neighbours");
        let grader = json!({ "grader": "s3://tuning/private.jsonl" });
        let mut graded = own_job(&app, "graded");
        graded["customizationType"] = json!("REINFORCEMENT_FINE_TUNING");
        graded["hyperParameters"] = grader;
        let refused = create(&graded).await;
        assert_eq!(refused.status, 400);
        assert!(refused.message().starts_with("Could not validate GetObject permissions"), "{}", refused.message());

        assert!(app.command("accounts", &["withdraw", OTHER, "s3://tuning/shared"]).0);
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        let ended = until("the job ends", async || {
            let job = status(&app, &pair, "granted").await;
            (job["status"] != "InProgress").then_some(job)
        })
        .await;
        assert_eq!(ended["status"], "Failed", "{ended}");
        let why = ended["failureMessage"].as_str().unwrap();
        assert!(why.starts_with("Could not validate GetObject permissions") && !why.contains("secret"), "{why}");
        pool.drain().await;
        app
    });
}

#[test]
fn revoking_the_root_key_stops_no_job_and_the_services_own_key_is_nobodys() {
    crate::support::with_worker(&[], async |app| {
        app.upload("s3://tuning/train.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n").await;
        let (_, listed) = app.keys(&["list"]);
        assert!(!listed.contains("tunesmith-service"), "{listed}");
        assert!(!app.keys(&["revoke", "tunesmith-service"]).0);
        let other = app.create_pair(&[]);
        assert!(app.keys(&["revoke", &app.root.access_key]).0);
        assert_eq!(app.call("GET", "/custom-models", None).await.status, 403);
        assert!(app.s3(&app.root).list_buckets().send().await.is_err());
        let reply = app.call_as(&other, "POST", "/model-customization-jobs", Some(&app.job("mine"))).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        let ended = until("the job ends", async || {
            let job = status(&app, &other, "mine").await;
            (job["status"] != "InProgress").then_some(job)
        })
        .await;
        assert_eq!(ended["status"], "Completed", "{ended}");
        let forged = Pair { access_key: "tunesmith-service".into(), ..other };
        assert_eq!(app.call_as(&forged, "GET", "/custom-models", None).await.status, 403);
        assert!(app.s3(&forged).list_buckets().send().await.is_err());
        app
    });
}

#[test]
fn a_character_that_postgres_cannot_store_is_refused_wherever_it_stands() {
    let Some(url) = crate::jobs::database::postgres() else { return };
    let schema = crate::jobs::database::block_on(crate::jobs::database::Schema::create(url));
    crate::support::with_settings(&["--database-url", &schema.url], async |app| {
        app.create("mine").await;
        let scope = ["000000000000", "jobs"];
        let cursor = tunesmith::store::Cursor { creation_time: 1, id: "a\0b".into() };
        let forged = tunesmith::http::page::write(&cursor, &scope);
        for target in [
            "/model-customization-jobs?nameContains=a%00".to_string(),
            "/model-customization-jobs?nextToken=%00".to_string(),
            format!("/model-customization-jobs?nextToken={forged}"),
            "/model-customization-jobs/a%00b".to_string(),
            "/custom-models/a%00b".to_string(),
            "/imported-models/%00".to_string(),
        ] {
            let reply = app.call("GET", &target, None).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{target}: {}", reply.text());
        }
        let mut job = app.job("nul");
        job["jobTags"] = json!([{ "key": "a\0", "value": "b" }]);
        assert_eq!(app.call("POST", "/model-customization-jobs", Some(&job)).await.status, 400);
        let invoke = json!({ "prompt": "a", "max_gen_len": 1 });
        let reply = app.call("POST", &format!("/model/{}%00/invoke", segment(TINY)), Some(&invoke)).await;
        assert_eq!(reply.status, 400, "{}", reply.text());
        // In S3 a key's id comes from the query of a link.
        let address = app.service.s3_endpoint().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
        let link = "/tuning/a?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%00IA%2F20261130%2Fus-east-1%2Fs3%2F\
                    aws4_request&X-Amz-Date=20261130T000000Z&X-Amz-Expires=600000&X-Amz-SignedHeaders=host&\
                    X-Amz-Signature=0000000000000000000000000000000000000000000000000000000000000000";
        let reply = crate::support::http::plain(address, link).await;
        assert!((400..500).contains(&reply.status), "{}", reply.text());
        app
    });
    crate::jobs::database::block_on(schema.remove());
}

#[test]
fn the_grader_function_of_another_account_is_not_called() {
    crate::support::with_settings(&["--lambda-endpoint=http://127.0.0.1:9"], async |app| {
        let pair = app.stranger().await;
        own_bucket(&app, &pair).await;
        for (owner, allowed) in [(crate::support::ACCOUNT, false), (OTHER, true)] {
            let mut job = own_job(&app, &format!("of-{owner}"));
            job["customizationType"] = json!("REINFORCEMENT_FINE_TUNING");
            job["hyperParameters"] = json!({});
            let arn = format!("arn:aws:lambda:us-east-1:{owner}:function:grade");
            job["customizationConfig"] =
                json!({ "rftConfig": { "graderConfig": { "lambdaGrader": { "lambdaArn": arn } } } });
            let reply = app.call_as(&pair, "POST", "/model-customization-jobs", Some(&job)).await;
            assert_eq!(reply.status == 201, allowed, "{}", reply.text());
            assert_eq!(reply.message().contains("InvokeFunction"), !allowed, "{}", reply.text());
        }
        app
    });
}

/// The files that reach object storage with the rights of the service itself, and why they may.
const OWN_RIGHTS: &[(&str, &str)] = &[
    ("app.rs", "makes the clients of accounts"),
    ("app/readiness.rs", "asks whether the store is there"),
    ("worker/scratch.rs", "removes what the service itself left under a job's prefix"),
    ("cli/demo.rs", "acts for the root account"),
];

#[test]
fn what_a_caller_names_is_reached_with_the_rights_of_its_account_alone() {
    fn walk(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    assert!(files.len() > 100, "{}", files.len());
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let name = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(file).unwrap();
        let scoped = |rest: &str| rest.starts_with("_of(") || rest.starts_with("_for_request(");
        let uses = text.match_indices("app.objects").any(|(at, found)| !scoped(&text[at + found.len()..]));
        let may = OWN_RIGHTS.iter().any(|(allowed, _)| *allowed == name);
        assert!(!uses || may, "{name} reaches object storage past the walls: use App::objects_of");
    }
}
