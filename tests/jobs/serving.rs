//! What serves models, in the store: a deployment waits for its model to be made ready, and provisioned throughput
//! keeps units.

use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::jobs::{Held, Queue};
use tunesmith::store::custom_models::{self, CustomModel};
use tunesmith::store::deployments::{self, Attempt, Deleted, Deployment, Outcome};
use tunesmith::store::serving::{self, Placed};
use tunesmith::store::throughputs::{self, Throughput};
use tunesmith::store::{Db, DeploymentStatus, ThroughputStatus, UpdateStatus, jobs};

use super::database::on_both;
use super::{ACCOUNT, STRANGER, model_of, spec};

/// A model that job `n` made.
async fn model(db: &Db, n: usize) -> CustomModel {
    jobs::insert(db, &spec(n), &[]).await.unwrap();
    let claim = Queue::new(db.clone(), Clock::system(), Duration::from_secs(60)).claim("test").await.unwrap().unwrap();
    let model = model_of(&claim.job, 5);
    assert_eq!(claim.complete(&model).await.unwrap(), Held::Yes);
    model
}

fn deployment(model: &CustomModel) -> Deployment {
    Deployment {
        id: "deploy000001".into(),
        account_id: ACCOUNT.into(),
        arn: format!("arn:aws:bedrock:us-east-1:{ACCOUNT}:custom-model-deployment/deploy000001"),
        name: "chat".into(),
        request_token: None,
        request_digest: "digest".into(),
        description: None,
        model_arn: model.arn.clone(),
        status: DeploymentStatus::Creating,
        update_model_arn: None,
        update_status: None,
        failure_message: None,
        creation_time: 10,
        last_updated_time: 10,
    }
}

fn throughput(n: usize, units: i64) -> Throughput {
    let base = spec(0).foundation_model_arn;
    Throughput {
        id: format!("through{n:05}"),
        account_id: ACCOUNT.into(),
        arn: format!("arn:aws:bedrock:us-east-1:{ACCOUNT}:provisioned-model/through{n:05}"),
        name: format!("through-{n}"),
        request_token: None,
        request_digest: "digest".into(),
        model_units: units,
        model_arn: base.clone(),
        foundation_model_arn: base,
        status: ThroughputStatus::InService,
        failure_message: None,
        commitment: None,
        commitment_expiration_time: None,
        creation_time: 10,
        last_modified_time: 10,
    }
}

on_both! {
    async fn an_attempt_to_load_a_deployment_is_counted_before_it_begins_and_forgiven_when_it_decides_nothing(db: Db) {
        let (first, second) = (model(&db, 1).await, model(&db, 2).await);
        let made = deployment(&first);
        deployments::insert(&db, &made, &[]).await.unwrap();
        let clock = Clock::system();
        let strikes = async || deployments::strikes(&db, &made, clock.database()).await.unwrap();
        let begin = async |seen: &Deployment| deployments::begin(&db, seen, 60_000, clock.database()).await.unwrap();
        let renew = async |attempt: &Attempt| {
            deployments::renew(&db, &made, attempt, 60_000, clock.database()).await.unwrap()
        };

        // The process dies: nobody else is at it until its time is over, and the attempt stays counted.
        let dead = begin(&made).await.unwrap();
        assert_eq!((dead.strikes, dead.failing_since), (1, None));
        assert_eq!((begin(&made).await, strikes().await), (None, 0), "an attempt under way is held against nobody");
        clock.jump_database(Duration::from_secs(61), false);
        assert_eq!(strikes().await, 1);
        let next = begin(&made).await.unwrap();
        assert_eq!(next.strikes, 2);
        assert!(!renew(&dead).await, "it is another's");
        assert!(!deployments::give_back(&db, &made, &dead, None).await.unwrap());
        clock.jump_database(Duration::from_secs(61), false);
        assert!(renew(&next).await, "nobody else has begun one");

        // A drain costs nothing, and an outage is remembered from its beginning.
        assert!(deployments::give_back(&db, &made, &next, None).await.unwrap());
        for (now, since) in [(500, None), (600, Some(500)), (700, Some(500))] {
            let attempt = begin(&made).await.unwrap();
            assert_eq!((attempt.strikes, attempt.failing_since), (2, since));
            assert!(deployments::give_back(&db, &made, &attempt, Some(now)).await.unwrap());
        }
        assert_eq!(strikes().await, 1);

        // What is decided, or newly wished, begins from nothing.
        begin(&made).await.unwrap();
        assert!(deployments::settle(&db, &made, &Outcome::Ready, 810).await.unwrap());
        assert_eq!((strikes().await, begin(&made).await), (0, None));
        let Placed::Done(seen) = deployments::update(&db, ACCOUNT, "chat", &second.arn, 1000).await.unwrap() else {
            panic!("not updated")
        };
        begin(&seen).await.unwrap();
        let Placed::Done(again) = deployments::update(&db, ACCOUNT, "chat", &first.arn, 1010).await.unwrap() else {
            panic!("not updated")
        };
        let attempt = begin(&again).await.unwrap();
        assert_eq!((attempt.strikes, attempt.failing_since), (1, None));
    }
}

on_both! {
    async fn a_deployment_is_asked_once_its_model_is_ready_and_changes_only_when_the_next_one_is(db: Db) {
        let (first, second) = (model(&db, 1).await, model(&db, 2).await);
        let made = deployment(&first);
        assert_eq!(deployments::insert(&db, &made, &[]).await.unwrap(), Placed::Done(made.clone()));
        let behind = async || serving::behind(&db, ACCOUNT, "chat").await.unwrap().map(|behind| behind.model_arn);
        let wish = async |model: &CustomModel| deployments::update(&db, ACCOUNT, "chat", &model.arn, 20).await.unwrap();

        // Being created: it is not asked, changed or deleted, and holds its model.
        let waiting = serving::behind(&db, ACCOUNT, "chat").await.unwrap().unwrap();
        assert_eq!((waiting.name.as_str(), waiting.deployment_status), ("chat", Some(DeploymentStatus::Creating)));
        assert_eq!(wish(&second).await, Placed::DeploymentIs(DeploymentStatus::Creating));
        assert_eq!(deployments::delete(&db, ACCOUNT, "chat").await.unwrap(), Deleted::UnderWay);
        assert_eq!(custom_models::delete(&db, ACCOUNT, &first.arn).await.unwrap(), custom_models::Deleted::InUse);
        assert_eq!(deployments::unready(&db).await.unwrap(), std::slice::from_ref(&made));
        assert!(deployments::settle(&db, &made, &Outcome::Ready, 11).await.unwrap());
        assert!(!deployments::settle(&db, &made, &Outcome::Failed("late".into()), 12).await.unwrap());
        assert_eq!((behind().await, deployments::unready(&db).await.unwrap()), (Some(first.arn.clone()), vec![]));

        // Being updated: the model before answers, both are held, and the last wish counts.
        let Placed::Done(seen) = wish(&second).await else { panic!("not updated") };
        assert_eq!((seen.wanted_model(), seen.model_arn.as_str()), (second.arn.as_str(), first.arn.as_str()));
        assert_eq!((seen.status, seen.update_status), (DeploymentStatus::Active, Some(UpdateStatus::Updating)));
        assert_eq!(behind().await, Some(first.arn.clone()));
        assert_eq!(custom_models::delete(&db, ACCOUNT, &second.arn).await.unwrap(), custom_models::Deleted::InUse);
        assert_eq!(deployments::delete(&db, ACCOUNT, "chat").await.unwrap(), Deleted::UnderWay);
        let Placed::Done(again) = wish(&first).await else { panic!("not updated") };
        assert!(!deployments::settle(&db, &seen, &Outcome::Ready, 21).await.unwrap(), "nobody wants it any more");
        assert!(deployments::settle(&db, &again, &Outcome::Failed("gone".into()), 22).await.unwrap());
        let found = deployments::find(&db, ACCOUNT, "chat").await.unwrap().unwrap();
        assert_eq!((found.update_status, found.failure_message.as_deref()), (Some(UpdateStatus::UpdateFailed), Some("gone")));
        let Placed::Done(seen) = wish(&second).await else { panic!("not updated") };
        assert_eq!(seen.failure_message, None, "why another one failed is no longer of interest");
        assert!(deployments::settle(&db, &seen, &Outcome::Ready, 23).await.unwrap());
        let found = deployments::find(&db, ACCOUNT, "chat").await.unwrap().unwrap();
        assert_eq!((found.model_arn.as_str(), found.failure_message, found.last_updated_time), (second.arn.as_str(), None, 23));
        assert_eq!(behind().await, Some(second.arn.clone()));

        assert!(matches!(
            custom_models::delete(&db, ACCOUNT, &first.arn).await.unwrap(),
            custom_models::Deleted::Done(_)
        ));
        assert_eq!(deployments::delete(&db, STRANGER, "chat").await.unwrap(), Deleted::NotFound);
        assert_eq!(deployments::delete(&db, ACCOUNT, "chat").await.unwrap(), Deleted::Done);
        assert_eq!(deployments::delete(&db, ACCOUNT, "chat").await.unwrap(), Deleted::NotFound);
    }
}

on_both! {
    async fn model_units_are_kept_until_they_are_given_back_and_no_more_than_there_are(db: Db) {
        assert_eq!(throughputs::reserved(&db).await.unwrap(), 0);
        let insert = async |n, units| throughputs::insert(&db, &throughput(n, units), &[], 7).await.unwrap();
        assert!(matches!(insert(1, 4).await, Placed::Done(_)));
        assert_eq!(insert(2, 4).await, Placed::NoUnits { left: 3 });
        let last = Throughput { request_token: Some("again".into()), ..throughput(3, 3) };
        assert_eq!(throughputs::insert(&db, &last, &[], 7).await.unwrap(), Placed::Done(last.clone()));
        assert_eq!(throughputs::insert(&db, &last, &[], 7).await.unwrap(), Placed::Already(last.clone()), "it has its units");
        let other = Throughput { request_digest: "other".into(), ..last };
        assert_eq!(throughputs::insert(&db, &other, &[], 7).await.unwrap(), Placed::TokenConflict);
        assert_eq!(insert(4, 1).await, Placed::NoUnits { left: 0 });
        assert_eq!(throughputs::reserved(&db).await.unwrap(), 7);
        let behind = serving::behind(&db, ACCOUNT, "through-1").await.unwrap().unwrap();
        assert_eq!((behind.throughput.as_deref(), behind.units), (Some("through00001"), 4));
        throughputs::delete(&db, ACCOUNT, "through-1", 20).await.unwrap();
        assert_eq!(throughputs::reserved(&db).await.unwrap(), 3);
        assert!(matches!(insert(4, 1).await, Placed::Done(_)));
    }
}
