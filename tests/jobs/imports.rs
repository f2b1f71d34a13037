//! The queue of models to bring in: one worker at a time, and no word from one that lost its claim.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tunesmith::clock::{Clock, DatabaseTime};
use tunesmith::store::imported_models::{self, ImportedModel};
use tunesmith::store::imports::{self, Accepted, Import};
use tunesmith::store::{Db, Filter, ImportKind, ImportStatus, Json};

use super::ACCOUNT;
use super::database::on_both;

const LEASE_MS: i64 = 60_000;
const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn import(n: i64) -> Import {
    Import {
        id: format!("job{n}"),
        account_id: ACCOUNT.into(),
        kind: ImportKind::ImportedModel,
        arn: Some(format!("arn:job/{n}")),
        name: Some(format!("job-{n}")),
        model_id: format!("model{n}"),
        model_arn: format!("arn:model/{n}"),
        model_name: format!("model-{n}"),
        role_arn: Some("arn:role".into()),
        kms_key_arn: None,
        source: json!({ "s3DataSource": { "s3Uri": "s3://bucket/model" } }).into(),
        vpc_config: None,
        model_tags: Vec::new().into(),
        request_token: Some(format!("token-{n}")),
        request_digest: format!("digest-{n}"),
        status: ImportStatus::InProgress,
        failure_message: None,
        creation_time: 1000 + n,
        last_modified_time: 1000 + n,
        end_time: None,
        attempt: 0,
        strikes: 0,
    }
}

fn model(import: &Import) -> ImportedModel {
    ImportedModel {
        id: import.model_id.clone(),
        account_id: import.account_id.clone(),
        arn: import.model_arn.clone(),
        name: import.model_name.clone(),
        job_arn: import.arn.clone().unwrap(),
        job_name: import.name.clone().unwrap(),
        source: import.source.clone(),
        kms_key_arn: None,
        architecture: "llama".into(),
        instruct_supported: true,
        artifact_uri: "s3://bucket/model".into(),
        artifact_digests: Json(BTreeMap::from([("config.json".into(), "00".into())])),
        creation_time: 2000,
    }
}

on_both! {
    async fn the_oldest_is_taken_once_and_only_its_holder_may_end_it(db: Db) {
        for n in [2, 1] {
            assert_eq!(imports::insert_job(&db, &import(n), &[]).await.unwrap(), Accepted::Inserted);
        }
        let clock = Clock::system();
        let claim = async |worker: &str| imports::claim(&db, worker, LEASE_MS, clock.database()).await.unwrap();
        let renew = async |import: &Import| imports::renew(&db, import, LEASE_MS, clock.database()).await.unwrap();
        let first = claim("a").await.unwrap();
        assert_eq!((first.id.as_str(), first.attempt, first.strikes), ("job1", 1, 0));
        let second = claim("b").await.unwrap();
        assert_eq!(second.id, "job2");
        // A wall clock that is ahead gives nothing away.
        clock.jump(HOUR, false);
        assert_eq!(claim("c").await, None);

        // The lease of the first runs out; another worker takes it, and the first may write nothing more.
        clock.jump_database(HOUR, false);
        assert!(renew(&second).await, "renewed by its attempt, although its lease ran out: nobody else has it");
        let taken = claim("c").await.unwrap();
        assert_eq!((taken.id.as_str(), taken.attempt, taken.strikes), ("job1", 2, 1));
        assert_eq!(claim("d").await, None, "the lease of the second is there again");
        assert!(!renew(&first).await);
        assert!(!imports::begin_check(&db, &first).await.unwrap());
        assert!(!imports::release(&db, &first).await.unwrap());
        assert!(!imports::fail(&db, &first, "no", 7000).await.unwrap());
        assert!(!imports::complete_job(&db, &first, &model(&first)).await.unwrap());
        assert_eq!(imported_models::find(&db, ACCOUNT, "model-1").await.unwrap(), None);

        // Given back, it costs no strike; a worker that is gone frees what it held.
        assert!(imports::release(&db, &taken).await.unwrap());
        let again = claim("d").await.unwrap();
        assert_eq!((again.attempt, again.strikes), (3, 1));
        // Lost in the middle of the check, it counts for more.
        assert!(imports::begin_check(&db, &again).await.unwrap());
        assert_eq!(imports::bury(&db, "d", clock.database()).await.unwrap(), 1);
        let last = claim("e").await.unwrap();
        assert_eq!((last.attempt, last.strikes), (4, 5));
        assert!(imports::complete_job(&db, &last, &model(&last)).await.unwrap());
        assert!(!imports::complete_job(&db, &last, &model(&last)).await.unwrap(), "it ends once");
        assert_eq!(imported_models::find(&db, ACCOUNT, "model-1").await.unwrap(), Some(model(&last)));
        assert!(imports::fail(&db, &second, "why", 7000).await.unwrap());
        let failed = imports::find_job(&db, ACCOUNT, "job-2").await.unwrap().unwrap();
        assert_eq!((failed.status, failed.failure_message.as_deref()), (ImportStatus::Failed, Some("why")));
        assert_eq!(failed.end_time, Some(7000));
    }
}

on_both! {
    async fn many_workers_at_once_take_each_request_once(db: Db) {
        for n in 0..6 {
            imports::insert_job(&db, &import(n), &[]).await.unwrap();
        }
        let claims = (0..12).map(|n| {
            let db = db.clone();
            tokio::spawn(async move {
                let mut ids = Vec::new();
                while let Some(import) = imports::claim(&db, &format!("worker-{n}"), LEASE_MS, DatabaseTime::default()).await.unwrap() {
                    ids.push(import.id);
                }
                ids
            })
        });
        let mut ids = Vec::new();
        for claimed in claims.collect::<Vec<_>>() {
            ids.extend(claimed.await.unwrap());
        }
        // A claimer that met a rival sees nothing and leaves; what it left, one more round takes.
        while let Some(import) = imports::claim(&db, "last", LEASE_MS, DatabaseTime::default()).await.unwrap() {
            ids.push(import.id);
        }
        ids.sort();
        assert_eq!(ids, ["job0", "job1", "job2", "job3", "job4", "job5"]);
    }
}

on_both! {
    async fn a_token_names_its_request_and_a_name_its_job(db: Db) {
        imports::insert_job(&db, &import(1), &[]).await.unwrap();
        let insert = async |import: Import| imports::insert_job(&db, &import, &[]).await.unwrap();
        assert!(matches!(insert(import(1)).await, Accepted::Already(_)));
        let token = Some("token-1".to_string());
        assert_eq!(insert(Import { request_token: token, ..import(2) }).await, Accepted::TokenConflict);
        assert_eq!(insert(Import { name: Some("job-1".into()), ..import(2) }).await, Accepted::NameTaken);
        assert_eq!(insert(Import { model_name: "model-1".into(), ..import(2) }).await, Accepted::ModelNameTaken);
        let claimed = imports::claim(&db, "a", LEASE_MS, DatabaseTime::default()).await.unwrap().unwrap();
        assert!(imports::complete_job(&db, &claimed, &model(&claimed)).await.unwrap());
        assert_eq!(insert(Import { model_name: "model-1".into(), ..import(2) }).await, Accepted::ModelNameTaken);
        assert!(imported_models::delete(&db, ACCOUNT, "model-1").await.unwrap().is_some());
        assert_eq!(insert(Import { model_name: "model-1".into(), ..import(2) }).await, Accepted::Inserted);
        let listed = imports::list_jobs(&db, ACCOUNT, Some(ImportStatus::Completed), &Filter::default()).await.unwrap();
        assert_eq!(listed.items.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["job1"]);
        assert!(imported_models::list(&db, ACCOUNT, &Filter::default()).await.unwrap().items.is_empty());
    }
}
