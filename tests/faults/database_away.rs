//! The database falls silent for a worker at work: the work goes on, and ends in the same attempt.

use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::objects::{Put, Uri};
use tunesmith::store::imports::{self, Import};
use tunesmith::store::jobs::{self, Accepted};
use tunesmith::store::{Db, ImportStatus, job_events};

use super::tiny;
use crate::jobs::ACCOUNT;
use crate::jobs::database::{Schema, block_on, postgres};
use crate::jobs::imports::import;
use crate::jobs::silence::Line;
use crate::upgrade::{Service, until};

#[test]
fn training_goes_on_without_the_database_and_the_job_ends_in_the_same_attempt() {
    let Some(url) = postgres() else { return };
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let schema = Schema::create(url).await;
        let db = Db::connect(&schema.url).await.unwrap();
        db.migrate().await.unwrap();
        let server = url.split('@').nth(1).unwrap().split('/').next().unwrap();
        let line = Line::to(server.to_string()).await;

        let models = tiny::models(folder.path());
        let mut service = Service::start(&folder.path().join("data"), &models, Some(&schema.url), ACCOUNT);
        let objects = service.objects();
        until(&mut service, "the object store answers", async || objects.ensure_bucket("tuning").await.ok()).await;
        let data = Uri::parse("s3://tuning/train.jsonl").unwrap();
        objects.put_bytes(&data, tiny::data(), &Put::default()).await.unwrap();
        let spec = tiny::job(1);
        assert_eq!(jobs::insert(&db, &spec, &[]).await.unwrap(), Accepted::Inserted);

        service.work(Some(&schema.url.replace(server, &format!("127.0.0.1:{}", line.port))));
        let find = async || jobs::find(&db, &spec.account_id, &spec.name).await.unwrap().unwrap();
        until(&mut service, "it trains", async || find().await.progress.filter(|progress| progress.step > 0)).await;
        line.silence(true);
        let root = Uri::parse(&spec.output_prefix().unwrap()).unwrap().folder();
        until(&mut service, "a checkpoint is kept", async || {
            let all = objects.list(&root).all().await.unwrap();
            all.iter().any(|object| object.uri.key().contains("/checkpoints/step-")).then_some(())
        })
        .await;
        // By the database's clock, which is this machine's here: as long again as the lease lasted.
        until(&mut service, "the lease has long run out", async || {
            let since = Clock::system().now() - find().await.lease_until.unwrap();
            (since > 4000).then_some(())
        })
        .await;
        let silent = find().await;
        assert_eq!(silent.attempt, 1);
        line.silence(false);

        let job = service.completed(&db, &spec).await;
        assert_eq!((job.attempt, job.strikes), (1, 0), "nothing was done twice");
        let events = job_events::list(&db, &spec.account_id, &spec.id).await.unwrap();
        let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["Created", "Claimed", "Published", "Completed"]);
        tokio::time::timeout(Duration::from_secs(10), db.close()).await.unwrap();
        schema.remove().await;
    });
}

#[test]
fn an_import_goes_on_without_the_database_and_ends_in_the_same_attempt() {
    let Some(url) = postgres() else { return };
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let schema = Schema::create(url).await;
        let db = Db::connect(&schema.url).await.unwrap();
        db.migrate().await.unwrap();
        let Db::Postgres(pool) = &db else { panic!("{url}") };
        let server = url.split('@').nth(1).unwrap().split('/').next().unwrap();
        let line = Line::to(server.to_string()).await;

        let models = tiny::models(folder.path());
        let mut service = Service::start(&folder.path().join("data"), &models, Some(&schema.url), ACCOUNT);
        let objects = service.objects();
        until(&mut service, "the object store answers", async || objects.ensure_bucket("tuning").await.ok()).await;
        for entry in std::fs::read_dir(models.join(tiny::MODEL)).unwrap() {
            let path = entry.unwrap().path();
            let key = format!("model/{}", path.file_name().unwrap().to_str().unwrap());
            objects.put_file(&Uri::new("tuning", &key), &path, &Put::default()).await.unwrap();
        }
        let asked = Import {
            account_id: ACCOUNT.into(),
            source: serde_json::json!({ "s3DataSource": { "s3Uri": "s3://tuning/model" } }).into(),
            ..import(1)
        };
        let find = async || imports::find_job(&db, ACCOUNT, "job-1").await.unwrap().unwrap();
        service.work(Some(&schema.url.replace(server, &format!("127.0.0.1:{}", line.port))));
        // The worker is at work when a first import is done; then the store stands still, so that the next one is
        // caught in the middle.
        let first = Import { account_id: ACCOUNT.into(), source: asked.source.clone(), ..import(2) };
        assert_eq!(imports::insert_job(&db, &first, &[]).await.unwrap(), imports::Accepted::Inserted);
        until(&mut service, "the worker works", async || {
            let first = imports::find_job(&db, ACCOUNT, "job-2").await.unwrap().unwrap();
            assert_ne!(first.status, ImportStatus::Failed, "{:?}", first.failure_message);
            (first.status == ImportStatus::Completed).then_some(())
        })
        .await;
        service.signal("STOP");
        assert_eq!(imports::insert_job(&db, &asked, &[]).await.unwrap(), imports::Accepted::Inserted);
        until(&mut service, "the import is begun", async || (find().await.attempt == 1).then_some(())).await;
        line.silence(true);
        until(&mut service, "the lease has long run out", async || {
            let sql = "SELECT lease_until FROM model_imports WHERE id = $1";
            let lease: i64 = sqlx::query_scalar(sql).bind(&asked.id).fetch_one(pool).await.unwrap();
            (Clock::system().now() - lease > 4000).then_some(())
        })
        .await;
        service.signal("CONT");
        line.silence(false);

        let ended = until(&mut service, "the import has ended", async || {
            let import = find().await;
            (import.status != ImportStatus::InProgress).then_some(import)
        })
        .await;
        assert_eq!((ended.status, ended.attempt, ended.strikes), (ImportStatus::Completed, 1, 0), "{ended:?}");
        tokio::time::timeout(Duration::from_secs(10), db.close()).await.unwrap();
        schema.remove().await;
    });
}
