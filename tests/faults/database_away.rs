//! The database falls silent for a worker that trains: training goes on, and the job ends in the same attempt.

use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::objects::{Put, Uri};
use tunesmith::store::jobs::{self, Accepted};
use tunesmith::store::{Db, job_events};

use super::tiny;
use crate::jobs::database::{Schema, block_on, postgres};
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
        let mut service = Service::start(&folder.path().join("data"), &models, Some(&schema.url));
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
