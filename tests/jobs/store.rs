//! What is accepted, found, tagged, stopped and revoked.

use tunesmith::clock::DatabaseTime;
use tunesmith::store::jobs::{self, Accepted, StopRequest};
use tunesmith::store::keys::{self, Key, KeyKind};
use tunesmith::store::tags::{self, Tag, Tagged};
use tunesmith::store::{Db, Status, custom_models, job_events};

use super::database::on_both;
use super::{ACCOUNT, STRANGER, spec};

fn tag(key: &str, value: &str) -> Tag {
    Tag { key: key.into(), value: value.into() }
}

on_both! {
    async fn a_job_is_found_by_name_and_by_arn_as_it_was_asked_for(db: Db) {
        let mut wanted = spec(1);
        wanted.hyper_parameters.0.insert("learningRate".into(), "1e-5".into());
        wanted.validation_data = Some(serde_json::json!({"validators": [{"s3Uri": "s3://data/v.jsonl"}]}).into());
        wanted.model_tags = vec![tag("team", "a b")].into();
        assert_eq!(jobs::insert(&db, &wanted, &[tag("k", "v")]).await.unwrap(), Accepted::Inserted);

        let by_name = jobs::find(&db, ACCOUNT, "job-1").await.unwrap().unwrap();
        let by_arn = jobs::find(&db, ACCOUNT, &wanted.arn).await.unwrap().unwrap();
        assert_eq!(by_name, by_arn);
        assert_eq!(by_name.spec, wanted);
        assert_eq!(by_name.status, Status::InProgress);
        assert_eq!(by_name.spec.validation_uris(), ["s3://data/v.jsonl"]);
        assert_eq!(by_name.spec.output_prefix().unwrap(), "s3://data/out/model-customization-job-job000000001");
        assert_eq!(tags::list(&db, ACCOUNT, &wanted.arn).await.unwrap().unwrap(), [tag("k", "v")]);
        let events = job_events::list(&db, ACCOUNT, &wanted.id).await.unwrap();
        assert_eq!(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), ["Created"]);
    }
}

on_both! {
    async fn another_account_finds_nothing(db: Db) {
        let mine = spec(1);
        jobs::insert(&db, &mine, &[]).await.unwrap();
        assert_eq!(jobs::find(&db, STRANGER, &mine.arn).await.unwrap(), None);
        assert_eq!(jobs::find(&db, STRANGER, &mine.name).await.unwrap(), None);
        assert_eq!(jobs::request_stop(&db, STRANGER, &mine.name, 2, DatabaseTime::default()).await.unwrap(), StopRequest::NotFound);
        assert_eq!(tags::put(&db, STRANGER, &mine.arn, &[tag("a", "b")]).await.unwrap(), Tagged::NoSuchResource);
        assert_eq!(tags::list(&db, STRANGER, &mine.arn).await.unwrap(), None);
        assert!(!tags::remove(&db, STRANGER, &mine.arn, &["a".into()]).await.unwrap());
        assert!(job_events::list(&db, STRANGER, &mine.id).await.unwrap().is_empty());
        assert!(jobs::list(&db, STRANGER, None, &Default::default()).await.unwrap().items.is_empty());

        // The stranger may use the same names and the same token.
        let mut theirs = spec(2);
        theirs.account_id = STRANGER.into();
        theirs.name = mine.name.clone();
        theirs.request_token = mine.request_token.clone();
        theirs.output_model_name = mine.output_model_name.clone();
        assert_eq!(jobs::insert(&db, &theirs, &[]).await.unwrap(), Accepted::Inserted);
    }
}

on_both! {
    async fn the_token_is_looked_at_before_the_names(db: Db) {
        let first = spec(1);
        jobs::insert(&db, &first, &[]).await.unwrap();

        let mut again = first.clone();
        again.id = "job000000999".into();
        again.arn = again.arn.replace(&first.id, &again.id);
        let Accepted::AlreadyAccepted(job) = jobs::insert(&db, &again, &[]).await.unwrap() else { panic!() };
        assert_eq!(job.spec.arn, first.arn);

        again.request_digest = "another".into();
        assert_eq!(jobs::insert(&db, &again, &[]).await.unwrap(), Accepted::TokenConflict);

        again.request_token = None;
        assert_eq!(jobs::insert(&db, &again, &[]).await.unwrap(), Accepted::NameTaken);

        again.name = "free".into();
        assert_eq!(jobs::insert(&db, &again, &[]).await.unwrap(), Accepted::ModelNameTaken);

        again.output_model_name = "free".into();
        assert_eq!(jobs::insert(&db, &again, &[tag("a", "b")]).await.unwrap(), Accepted::Inserted);
        assert_eq!(jobs::find(&db, ACCOUNT, "free").await.unwrap().unwrap().spec.request_token, None);
    }
}

on_both! {
    async fn a_refused_job_leaves_nothing_behind(db: Db) {
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let mut refused = spec(2);
        refused.output_model_name = "model-1".into();
        assert_eq!(jobs::insert(&db, &refused, &[tag("a", "b")]).await.unwrap(), Accepted::ModelNameTaken);
        assert_eq!(jobs::find(&db, ACCOUNT, "job-2").await.unwrap(), None);
        assert!(job_events::list(&db, ACCOUNT, &refused.id).await.unwrap().is_empty());
        // Its token is free for the corrected request.
        refused.output_model_name = "model-2".into();
        assert_eq!(jobs::insert(&db, &refused, &[]).await.unwrap(), Accepted::Inserted);
    }
}

on_both! {
    async fn sixty_four_clients_with_one_token_get_one_job(db: Db) {
        let requests = (0..64).map(|n| {
            let mut request = spec(1);
            request.id = format!("job{n:09}");
            request.arn = request.arn.replace("job000000001", &request.id);
            let db = db.clone();
            tokio::spawn(async move {
                match jobs::insert(&db, &request, &[]).await.unwrap() {
                    Accepted::Inserted => (1, request.arn),
                    Accepted::AlreadyAccepted(job) => (0, job.spec.arn),
                    other => panic!("{other:?}"),
                }
            })
        });
        let answers: Vec<_> = futures::future::join_all(requests).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers.iter().map(|(inserted, _)| inserted).sum::<usize>(), 1);
        assert!(answers.iter().all(|(_, arn)| *arn == answers[0].1));
    }
}

on_both! {
    async fn a_job_that_nobody_holds_stops_at_once(db: Db) {
        let wanted = spec(1);
        jobs::insert(&db, &wanted, &[]).await.unwrap();
        assert_eq!(jobs::request_stop(&db, ACCOUNT, "job-1", 3_000_000, DatabaseTime::default()).await.unwrap(), StopRequest::Accepted);
        let job = jobs::find(&db, ACCOUNT, "job-1").await.unwrap().unwrap();
        assert_eq!((job.status, job.end_time, job.last_modified_time), (Status::Stopped, Some(3_000_000), 3_000_000));
        let again = jobs::request_stop(&db, ACCOUNT, &wanted.arn, 78, DatabaseTime::default()).await.unwrap();
        assert_eq!(again, StopRequest::Ended(Status::Stopped));
        assert_eq!(jobs::request_stop(&db, ACCOUNT, "absent", 78, DatabaseTime::default()).await.unwrap(), StopRequest::NotFound);
        // Its name stays taken, the name of the model that it did not make is free.
        let mut next = spec(2);
        next.output_model_name = wanted.output_model_name;
        assert_eq!(jobs::insert(&db, &next, &[]).await.unwrap(), Accepted::Inserted);
    }
}

on_both! {
    async fn a_resource_carries_at_most_fifty_tags(db: Db) {
        let wanted = spec(1);
        jobs::insert(&db, &wanted, &[]).await.unwrap();
        let fifty: Vec<Tag> = (0..50).map(|n| tag(&format!("k{n:02}"), "v")).collect();
        assert_eq!(tags::put(&db, ACCOUNT, &wanted.arn, &fifty).await.unwrap(), Tagged::Done);
        assert_eq!(tags::put(&db, ACCOUNT, &wanted.arn, &[tag("one-more", "")]).await.unwrap(), Tagged::TooMany);
        assert_eq!(tags::put(&db, ACCOUNT, &wanted.arn, &[tag("k00", "new")]).await.unwrap(), Tagged::Done);
        let listed = tags::list(&db, ACCOUNT, &wanted.arn).await.unwrap().unwrap();
        assert_eq!((listed.len(), &listed[0]), (50, &tag("k00", "new")));
        assert!(tags::remove(&db, ACCOUNT, &wanted.arn, &["k00".into(), "absent".into()]).await.unwrap());
        assert_eq!(tags::list(&db, ACCOUNT, &wanted.arn).await.unwrap().unwrap().len(), 49);
    }
}

on_both! {
    async fn a_temporary_key_keeps_only_a_digest_of_its_token_and_a_policy_comes_back_as_it_was(db: Db) {
        let policy = keys::Policy {
            read_only: true,
            operations: vec!["GetCustomModel".into()],
            buckets: vec!["s3://a/b".into()],
        };
        let mut key = Key {
            id: "ASIA1".into(),
            account_id: ACCOUNT.into(),
            kind: KeyKind::SigV4,
            note: String::new(),
            created_at: 10,
            expires_at: Some(100),
            revoked_at: None,
            policy: Some(policy.clone().into()),
        };
        assert!(keys::insert_temporary(&db, &key, "secret", "token").await.unwrap());
        let found = keys::signing(&db, "ASIA1").await.unwrap().unwrap();
        assert_eq!(found.token_digest, Some(keys::bearer_digest("token")));
        assert_eq!(found.key.policy.as_deref(), Some(&policy));
        // Its token alone opens nothing.
        assert!(keys::bearer(&db, "token").await.unwrap().is_none());
        (key.id, key.expires_at) = ("ASIA2".into(), None);
        assert!(keys::insert_temporary(&db, &key, "secret", "token").await.is_err(), "it must have an end");
    }
}

on_both! {
    async fn a_key_opens_until_it_ends_or_is_revoked(db: Db) {
        let key = |id: &str, kind, expires_at| Key {
            id: id.into(),
            account_id: ACCOUNT.into(),
            kind,
            note: "test".into(),
            created_at: 10,
            expires_at,
            revoked_at: None,
            policy: None,
        };
        assert!(keys::insert_signing(&db, &key("AKIA1", KeyKind::SigV4, Some(100)), "secret").await.unwrap());
        assert!(!keys::insert_signing(&db, &key("AKIA1", KeyKind::SigV4, None), "other").await.unwrap());
        assert!(keys::insert_bearer(&db, &key("bearer1", KeyKind::Bearer, None), "token").await.unwrap());

        let signing = keys::signing(&db, "AKIA1").await.unwrap().unwrap();
        assert_eq!(signing.secret, "secret");
        assert!(signing.key.is_valid(99) && !signing.key.is_valid(100));
        assert!(keys::signing(&db, "bearer1").await.unwrap().is_none());
        assert!(keys::bearer(&db, "secret").await.unwrap().is_none());

        assert!(!keys::revoke(&db, STRANGER, "bearer1", 50).await.unwrap());
        assert!(keys::bearer(&db, "token").await.unwrap().unwrap().is_valid(50));
        assert!(keys::revoke(&db, ACCOUNT, "bearer1", 50).await.unwrap());
        assert!(!keys::revoke(&db, ACCOUNT, "bearer1", 51).await.unwrap());
        assert!(!keys::bearer(&db, "token").await.unwrap().unwrap().is_valid(50));
        assert_eq!(keys::list(&db, ACCOUNT).await.unwrap().len(), 2);
        assert!(keys::list(&db, STRANGER).await.unwrap().is_empty());
    }
}

on_both! {
    async fn a_schema_is_migrated_by_many_processes_at_once(db: Db) {
        let rounds = (0..4).map(|_| db.migrate());
        for done in futures::future::join_all(rounds).await {
            done.unwrap();
        }
        db.ping().await.unwrap();
        assert!(custom_models::find(&db, ACCOUNT, "absent").await.unwrap().is_none());
    }
}
