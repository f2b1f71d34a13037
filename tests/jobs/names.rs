//! One name, one model: many who want the same name at once, as the model of a job or brought in as it is. One gets
//! it, the others are told at once, and nobody learns of it when hours of work are done.

use serde_json::json;
use tunesmith::clock::Clock;
use tunesmith::jobs::{Held, Queue};
use tunesmith::store::imports::{self, Import};
use tunesmith::store::jobs::{self, JobSpec};
use tunesmith::store::{CustomizationType, Db, ImportKind, ImportStatus, ModelStatus, custom_models};

use super::database::on_both;
use super::{ACCOUNT, model_of, spec};

/// A CreateCustomModel, with the model that it makes.
fn brought(n: usize, name: &str, job: &jobs::Job) -> (Import, custom_models::CustomModel) {
    let model = custom_models::CustomModel {
        id: format!("mod{n:09}"),
        arn: format!("arn:aws:bedrock:us-east-1:{ACCOUNT}:custom-model/imported/mod{n:09}"),
        name: name.into(),
        job_id: None,
        job_arn: None,
        job_name: None,
        customization_type: CustomizationType::Imported,
        status: ModelStatus::Creating,
        ..model_of(job, 5)
    };
    let import = Import {
        id: model.id.clone(),
        account_id: ACCOUNT.into(),
        kind: ImportKind::CustomModel,
        arn: None,
        name: None,
        model_id: model.id.clone(),
        model_arn: model.arn.clone(),
        model_name: name.into(),
        role_arn: None,
        kms_key_arn: None,
        source: json!({ "s3DataSource": { "s3Uri": "s3://bucket/model" } }).into(),
        vpc_config: None,
        model_tags: Vec::new().into(),
        request_token: Some(format!("import-{n}")),
        request_digest: format!("digest-{n}"),
        status: ImportStatus::InProgress,
        failure_message: None,
        creation_time: 5,
        last_modified_time: 5,
        end_time: None,
        attempt: 0,
        strikes: 0,
    };
    (import, model)
}

on_both! {
    async fn of_many_who_want_one_model_name_at_once_one_gets_it_and_completes(db: Db) {
        let queue = Queue::new(db.clone(), Clock::system(), std::time::Duration::from_secs(60));
        jobs::insert(&db, &spec(0), &[]).await.unwrap();
        let template = queue.claim("test").await.unwrap().unwrap();
        for round in 0..12 {
            let name = format!("wanted-{round}");
            let wanting = (0..16).map(|n| {
                let (db, name, n) = (db.clone(), name.clone(), 1 + round * 16 + n);
                let (import, model) = brought(n, &name, &template.job);
                tokio::spawn(async move {
                    if n.is_multiple_of(2) {
                        let job = JobSpec { output_model_name: name, ..spec(n) };
                        jobs::insert(&db, &job, &[]).await.unwrap() == jobs::Accepted::Inserted
                    } else {
                        imports::insert_model(&db, &import, &model).await.unwrap() == imports::Accepted::Inserted
                    }
                })
            });
            let won = futures::future::join_all(wanting.collect::<Vec<_>>()).await;
            assert_eq!(won.into_iter().filter(|won| *won.as_ref().unwrap()).count(), 1, "{name}");
            // Whoever it was comes to its end.
            if let Some(claim) = queue.claim("test").await.unwrap() {
                assert_eq!(claim.job.spec.output_model_name, name);
                assert_eq!(claim.complete(&model_of(&claim.job, 5)).await.unwrap(), Held::Yes);
            }
            assert!(custom_models::find(&db, ACCOUNT, &name).await.unwrap().is_some());
        }
    }
}
