//! The six rules, one by one. `worlds.rs` plays them all at once.

use std::time::Duration;

use tunesmith::clock::{Clock, DatabaseTime};
use tunesmith::error::Error;
use tunesmith::jobs::job::Stage;
use tunesmith::jobs::queue::STRIKE_LIMIT;
use tunesmith::jobs::{Held, Queue, sweep};
use tunesmith::store::custom_models::Deleted;
use tunesmith::store::jobs::{self, Accepted, JobSpec, Progress, StopRequest};
use tunesmith::store::scratch;
use tunesmith::store::{Db, Status, TaskStatus, custom_models, job_events, tags};

use super::database::on_both;
use super::{ACCOUNT, STRANGER, model_of, spec};

const LEASE: Duration = Duration::from_secs(60);

fn queue(db: &Db) -> (Queue, Clock) {
    let clock = Clock::system();
    (Queue::new(db.clone(), clock.clone(), LEASE), clock)
}

async fn status(db: &Db, n: usize) -> Status {
    jobs::find(db, ACCOUNT, &format!("job-{n}")).await.unwrap().unwrap().status
}

on_both! {
    async fn the_oldest_job_is_claimed_first_and_only_once(db: Db) {
        let (queue, _) = queue(&db);
        assert!(queue.claim("a").await.unwrap().is_none());
        for n in [2, 1, 3] {
            jobs::insert(&db, &spec(n), &[]).await.unwrap();
        }
        let first = queue.claim("a").await.unwrap().unwrap();
        assert_eq!((first.job.spec.name.as_str(), first.attempt()), ("job-1", 1));
        assert_eq!(queue.claim("b").await.unwrap().unwrap().job.spec.name, "job-2");
        assert_eq!(queue.claim("a").await.unwrap().unwrap().job.spec.name, "job-3");
        assert!(queue.claim("b").await.unwrap().is_none());
    }
}

on_both! {
    async fn whoever_sees_an_outage_leaves_jobs_to_their_holders_until_those_had_time_to_renew(db: Db) {
        let clock = Clock::system();
        let lease = Duration::from_secs(4);
        let (holder, idle) = (Queue::new(db.clone(), clock.clone(), lease), Queue::new(db.clone(), clock.clone(), lease));
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let held = holder.claim("holder").await.unwrap().unwrap();
        let begun = clock.monotonic();
        // An outage as long as fifteen leases, of which the idle worker asked until it was over.
        clock.jump_database(Duration::from_secs(60), false);
        idle.heard::<()>(Err(Error::unavailable(anyhow::anyhow!("away")))).unwrap_err();
        assert!(idle.claim("idle").await.unwrap().is_none(), "nobody could renew");
        assert_eq!(sweep::sweep(&db, &clock, idle.time()).await.unwrap(), 0);
        // What was given back is free all the same.
        jobs::insert(&db, &spec(2), &[]).await.unwrap();
        assert_eq!(idle.claim("idle").await.unwrap().unwrap().job.spec.name, "job-2");
        assert!(held.renew().await.unwrap().is_some());
        // A holder that stays away has half a lease; then its job is another's.
        clock.jump_database(Duration::from_secs(60), false);
        let taken = loop {
            if let Some(claim) = idle.claim("idle").await.unwrap() {
                break claim;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(clock.monotonic().duration_since(begun) >= lease / 2);
        assert_eq!((taken.job.spec.name.as_str(), taken.attempt()), ("job-1", 2));
        assert_eq!(held.renew().await.unwrap(), None);
    }
}

on_both! {
    async fn workers_that_claim_at_once_get_different_jobs(db: Db) {
        let (queue, _) = queue(&db);
        for n in 0..16 {
            jobs::insert(&db, &spec(n), &[]).await.unwrap();
        }
        let claims = (0..24).map(|n| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.claim(&format!("worker-{n}")).await.unwrap().map(|claim| claim.job.spec.id) })
        });
        let mut claimed: Vec<String> =
            futures::future::join_all(claims).await.into_iter().filter_map(Result::unwrap).collect();
        // On Postgres a claimer may look away from a row that another has locked; what is left is left for the next.
        while let Some(claim) = queue.claim("late").await.unwrap() {
            claimed.push(claim.job.spec.id);
        }
        claimed.sort();
        assert_eq!(claimed, (0..16).map(|n| spec(n).id).collect::<Vec<_>>());
    }
}

on_both! {
    async fn a_stale_worker_changes_nothing(db: Db) {
        let (queue, clock) = queue(&db);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let stale = queue.claim("a").await.unwrap().unwrap();
        assert!(queue.claim("b").await.unwrap().is_none());
        clock.jump_database(LEASE + Duration::from_secs(1), false);
        let fresh = queue.claim("b").await.unwrap().unwrap();
        assert_eq!(fresh.attempt(), 2);

        let before = jobs::find(&db, ACCOUNT, "job-1").await.unwrap();
        let events = job_events::list(&db, ACCOUNT, &spec(1).id).await.unwrap();
        assert_eq!(stale.renew().await.unwrap(), None);
        assert_eq!(stale.status().await.unwrap(), None);
        assert_eq!(stale.progress(&Progress::default(), true).await.unwrap(), Held::No);
        stale.reach(Stage::Training);
        assert_eq!(stale.record_tasks().await.unwrap(), Held::No);
        assert_eq!(stale.publish(&serde_json::json!({})).await.unwrap(), Held::No);
        assert_eq!(stale.complete(&model_of(&stale.job, 5)).await.unwrap(), Held::No);
        assert_eq!(stale.fail("stale").await.unwrap(), Held::No);
        assert_eq!(stale.stopped().await.unwrap(), Held::No);
        assert_eq!(stale.release("stale").await.unwrap(), Held::No);
        assert_eq!(stale.crashed("stale").await.unwrap(), Held::No);
        assert_eq!(jobs::find(&db, ACCOUNT, "job-1").await.unwrap(), before);
        assert_eq!(job_events::list(&db, ACCOUNT, &spec(1).id).await.unwrap(), events);
        assert!(custom_models::find(&db, ACCOUNT, "model-1").await.unwrap().is_none());

        assert_eq!(fresh.complete(&model_of(&fresh.job, 6)).await.unwrap(), Held::Yes);
        assert_eq!(status(&db, 1).await, Status::Completed);
    }
}

on_both! {
    async fn a_job_and_its_model_appear_together_with_its_tags(db: Db) {
        let (queue, _) = queue(&db);
        let mut wanted = spec(1);
        wanted.model_tags = vec![tags::Tag { key: "team".into(), value: "blue".into() }].into();
        jobs::insert(&db, &wanted, &[]).await.unwrap();
        let claim = queue.claim("a").await.unwrap().unwrap();
        // The trainer reaches a stage, the reporter's clone writes it down, and the end forgets neither.
        let reporters = claim.clone();
        claim.reach(Stage::Training);
        assert_eq!(reporters.record_tasks().await.unwrap(), Held::Yes);
        let begun = jobs::find(&db, ACCOUNT, "job-1").await.unwrap().unwrap().tasks.training.creation_time;
        assert!(begun.is_some() && begun != Some(2_000_000));
        assert_eq!(claim.publish(&serde_json::json!({"files": {}})).await.unwrap(), Held::Yes);
        assert_eq!(claim.publish(&serde_json::json!({})).await.unwrap(), Held::No, "decided once");
        // The answer to the first was lost: the same decision is known again, and made once.
        assert_eq!(claim.publish(&serde_json::json!({"files": {}})).await.unwrap(), Held::Yes);
        let events = job_events::list(&db, ACCOUNT, &wanted.id).await.unwrap();
        assert_eq!(events.iter().filter(|event| event.kind == "Published").count(), 1);
        let model = model_of(&claim.job, 2_000_000);
        assert_eq!(claim.complete(&model).await.unwrap(), Held::Yes);
        assert_eq!(claim.complete(&model).await.unwrap(), Held::No, "ended once");

        let job = jobs::find(&db, ACCOUNT, "job-1").await.unwrap().unwrap();
        assert_eq!(job.output_model_arn.as_deref(), Some(model.arn.as_str()));
        assert_eq!((job.end_time, job.training_loss), (Some(2_000_000), Some(0.25)));
        assert_eq!(job.tasks.training.status, TaskStatus::Completed);
        assert_eq!((job.tasks.training.creation_time, job.tasks.training.last_modified_time), (begun, Some(2_000_000)));
        assert_eq!((job.worker, job.lease_until), (None, None));
        assert_eq!(custom_models::find(&db, ACCOUNT, &model.arn).await.unwrap().unwrap(), model);
        assert_eq!(tags::list(&db, ACCOUNT, &model.arn).await.unwrap().unwrap(), wanted.model_tags.0);
        let listed = custom_models::list(&db, ACCOUNT, &Default::default(), &Default::default()).await.unwrap();
        assert_eq!(listed.items, std::slice::from_ref(&model));

        // The name is taken while the model lives, and free once it is deleted.
        let mut next = spec(2);
        next.output_model_name = model.name.clone();
        assert_eq!(jobs::insert(&db, &next, &[]).await.unwrap(), Accepted::ModelNameTaken);
        assert_eq!(custom_models::delete(&db, STRANGER, &model.name).await.unwrap(), Deleted::NotFound);
        let gone = Deleted::Done(Box::new(model.clone()));
        assert_eq!(custom_models::delete(&db, ACCOUNT, &model.name).await.unwrap(), gone);
        assert_eq!(custom_models::delete(&db, ACCOUNT, &model.name).await.unwrap(), Deleted::NotFound);
        assert_eq!(jobs::insert(&db, &next, &[]).await.unwrap(), Accepted::Inserted);
        assert_eq!(status(&db, 1).await, Status::Completed);
    }
}

on_both! {
    async fn a_stop_is_seen_at_the_next_renewal_and_no_model_comes_out(db: Db) {
        let (queue, _) = queue(&db);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let claim = queue.claim("a").await.unwrap().unwrap();
        assert_eq!(claim.renew().await.unwrap(), Some(Status::InProgress));
        assert_eq!(claim.stopped().await.unwrap(), Held::No, "nobody asked");
        assert_eq!(jobs::request_stop(&db, ACCOUNT, "job-1", 9, DatabaseTime::default()).await.unwrap(), StopRequest::Accepted);
        assert_eq!(status(&db, 1).await, Status::Stopping);
        assert_eq!(jobs::request_stop(&db, ACCOUNT, "job-1", 9, DatabaseTime::default()).await.unwrap(), StopRequest::AlreadyStopping);
        assert_eq!(claim.renew().await.unwrap(), Some(Status::Stopping));

        assert_eq!(claim.publish(&serde_json::json!({})).await.unwrap(), Held::No);
        assert_eq!(claim.complete(&model_of(&claim.job, 10)).await.unwrap(), Held::No);
        assert_eq!(claim.fail("too late").await.unwrap(), Held::No);
        assert_eq!(claim.stopped().await.unwrap(), Held::Yes);
        assert_eq!(status(&db, 1).await, Status::Stopped);
        assert!(custom_models::find(&db, ACCOUNT, "model-1").await.unwrap().is_none());
    }
}

on_both! {
    async fn a_stopping_job_whose_worker_died_is_stopped_by_the_sweep(db: Db) {
        let (queue, clock) = queue(&db);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let claim = queue.claim("a").await.unwrap().unwrap();
        jobs::request_stop(&db, ACCOUNT, "job-1", 9, DatabaseTime::default()).await.unwrap();
        assert_eq!(sweep::sweep(&db, &clock, clock.database()).await.unwrap(), 0, "its worker may still confirm");
        clock.jump_database(LEASE + Duration::from_secs(1), false);
        assert!(queue.claim("b").await.unwrap().is_none(), "nobody takes up a job that is being stopped");
        assert_eq!(sweep::sweep(&db, &clock, clock.database()).await.unwrap(), 1);
        assert_eq!(status(&db, 1).await, Status::Stopped);
        assert_eq!(claim.stopped().await.unwrap(), Held::No);
    }
}

on_both! {
    async fn a_released_job_is_taken_at_once_and_a_buried_workers_jobs_too(db: Db) {
        let (queue, _) = queue(&db);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let first = queue.claim("a").await.unwrap().unwrap();
        assert_eq!(first.release("drain").await.unwrap(), Held::Yes);
        let second = queue.claim("b").await.unwrap().unwrap();
        assert_eq!((second.attempt(), second.job.strikes), (2, 0));
        assert_eq!(queue.bury("a").await.unwrap(), 0);
        assert_eq!(queue.bury("b").await.unwrap(), 1);
        let third = queue.claim("c").await.unwrap().unwrap();
        assert_eq!((third.attempt(), third.job.strikes), (3, 1));
        assert_eq!(second.status().await.unwrap(), None);
    }
}

on_both! {
    async fn a_job_that_kills_its_workers_fails_with_advice(db: Db) {
        let (queue, clock) = queue(&db);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let mut attempts = 0;
        while let Some(claim) = queue.claim("a").await.unwrap() {
            attempts += 1;
            assert_eq!(claim.crashed("panicked").await.unwrap(), Held::Yes);
        }
        assert_eq!(attempts, 3);
        assert_eq!(sweep::sweep(&db, &clock, clock.database()).await.unwrap(), 1);
        let job = jobs::find(&db, ACCOUNT, "job-1").await.unwrap().unwrap();
        assert_eq!(job.status, Status::Failed);
        let message = job.failure_message.unwrap();
        assert!(message.contains("crashed 3 times") && message.contains("batchSize"), "{message}");

        // One whose workers vanish is told so.
        jobs::insert(&db, &spec(2), &[]).await.unwrap();
        for _ in 0..STRIKE_LIMIT {
            queue.claim("a").await.unwrap().unwrap();
            assert_eq!(sweep::sweep(&db, &clock, clock.database()).await.unwrap(), 0);
            clock.jump_database(LEASE + Duration::from_secs(1), false);
        }
        assert!(queue.claim("a").await.unwrap().is_none());
        assert_eq!(sweep::sweep(&db, &clock, clock.database()).await.unwrap(), 1);
        let message = jobs::find(&db, ACCOUNT, "job-2").await.unwrap().unwrap().failure_message.unwrap();
        assert!(message.contains("disappeared 12 times") && !message.contains("crashed"), "{message}");
    }
}

on_both! {
    async fn an_attempt_that_got_somewhere_costs_no_strike_however_it_ends(db: Db) {
        let (queue, clock) = queue(&db);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        for n in 0..STRIKE_LIMIT * 3 {
            let claim = queue.claim("a").await.unwrap().unwrap();
            assert_eq!(claim.job.strikes, 0);
            assert_eq!(claim.progress(&Progress::default(), true).await.unwrap(), Held::Yes);
            // A crash of its own, a drain, or the crash of a neighbour that takes the whole process down.
            match n % 3 {
                0 => assert_eq!(claim.crashed("panic").await.unwrap(), Held::Yes),
                1 => assert_eq!(claim.release("drained").await.unwrap(), Held::Yes),
                _ => clock.jump_database(LEASE + Duration::from_secs(1), false),
            }
            assert_eq!(sweep::sweep(&db, &clock, clock.database()).await.unwrap(), 0);
        }
        // What counts is the attempt's own progress, not that of the one before it.
        queue.claim("a").await.unwrap().unwrap();
        clock.jump_database(LEASE + Duration::from_secs(1), false);
        assert_eq!(queue.claim("a").await.unwrap().unwrap().job.strikes, 1);
    }
}

on_both! {
    async fn a_worker_whose_clock_is_an_hour_off_takes_nothing_from_others(db: Db) {
        let (queue, _) = queue(&db);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        jobs::insert(&db, &spec(2), &[]).await.unwrap();
        let running = queue.claim("a").await.unwrap().unwrap();
        let stopping = queue.claim("a").await.unwrap().unwrap();
        let clock = Clock::system();
        let stop = async |name: &str| {
            jobs::request_stop(&db, ACCOUNT, name, clock.now(), clock.database()).await.unwrap()
        };
        assert_eq!(stop("job-2").await, StopRequest::Accepted);
        for (n, by, backwards) in [(3, 3600, false), (4, 7200, true)] {
            clock.jump(Duration::from_secs(by), backwards);
            let other = Queue::new(db.clone(), clock.clone(), LEASE);
            assert!(other.claim("b").await.unwrap().is_none());
            assert_eq!(sweep::sweep(&db, &clock, clock.database()).await.unwrap(), 0);
            // The lease that it sets itself is as long as any.
            jobs::insert(&db, &spec(n), &[]).await.unwrap();
            let claim = other.claim("b").await.unwrap().unwrap();
            assert!(queue.claim("a").await.unwrap().is_none());
            assert_eq!(claim.fail("enough").await.unwrap(), Held::Yes);
            assert_eq!(running.renew().await.unwrap(), Some(Status::InProgress));
            assert_eq!(stopping.renew().await.unwrap(), Some(Status::Stopping));
        }
        assert_eq!(stop("job-1").await, StopRequest::Accepted);
        assert_eq!(status(&db, 1).await, Status::Stopping, "its worker is alive, and confirms the stop itself");

        // Whatever the clocks of those who wrote them, events are told in order.
        for n in 1..=4 {
            let times: Vec<_> =
                job_events::list(&db, ACCOUNT, &spec(n).id).await.unwrap().iter().map(|event| event.at).collect();
            assert!(times.is_sorted(), "{times:?}");
        }
    }
}

on_both! {
    async fn nothing_ends_before_it_was_asked_for_whatever_the_clocks(db: Db) {
        // The API that accepted the jobs is an hour ahead of everybody else.
        let (queue, clock) = queue(&db);
        let ahead = clock.now() + 3_600_000;
        for n in 1..=4 {
            jobs::insert(&db, &JobSpec { creation_time: ahead, ..spec(n) }, &[]).await.unwrap();
        }
        let stop = async |name: &str| {
            jobs::request_stop(&db, ACCOUNT, name, clock.now(), clock.database()).await.unwrap()
        };
        assert_eq!(stop("job-1").await, StopRequest::Accepted);
        let [second, third, fourth] = [(); 3].map(|()| queue.claim("a"));
        let claims = [second.await, third.await, fourth.await].map(|claim| claim.unwrap().unwrap());
        assert_eq!(claims[0].complete(&model_of(&claims[0].job, clock.now())).await.unwrap(), Held::Yes);
        assert_eq!(claims[1].fail("because").await.unwrap(), Held::Yes);
        assert_eq!(stop("job-4").await, StopRequest::Accepted);
        assert_eq!(claims[2].stopped().await.unwrap(), Held::Yes);
        for n in 1..=4 {
            let job = jobs::find(&db, ACCOUNT, &format!("job-{n}")).await.unwrap().unwrap();
            assert!(job.end_time >= Some(ahead) && job.last_modified_time >= ahead, "job {n}: {job:?}");
        }
    }
}

on_both! {
    async fn a_lease_that_ran_out_in_an_outage_is_renewed_unless_another_took_the_job(db: Db) {
        let (queue, clock) = queue(&db);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let claim = queue.claim("a").await.unwrap().unwrap();
        // Ten minutes without the database: nobody else could claim the job either.
        clock.jump_database(Duration::from_secs(600), false);
        assert_eq!(claim.renew().await.unwrap(), Some(Status::InProgress));
        assert!(queue.claim("b").await.unwrap().is_none(), "the lease is there again");
        let job = jobs::find(&db, ACCOUNT, "job-1").await.unwrap().unwrap();
        assert_eq!((job.attempt, job.strikes), (1, 0), "nothing was lost");

        // Another was faster: then, and only then, the job is lost.
        clock.jump_database(Duration::from_secs(600), false);
        let taken = queue.claim("b").await.unwrap().unwrap();
        assert_eq!(claim.renew().await.unwrap(), None);
        // What the loser wrote late is removed when the job has ended.
        assert_eq!(taken.complete(&model_of(&taken.job, 5)).await.unwrap(), Held::Yes);
        scratch::removed(&db, &spec(1).id, None).await.unwrap();
        assert!(scratch::due(&db, clock.now(), 0, 9).await.unwrap().is_empty());
        claim.left_behind().await.unwrap();
        assert_eq!(scratch::due(&db, clock.now(), 0, 9).await.unwrap().len(), 1);
    }
}

on_both! {
    async fn what_happened_in_an_attempt_is_told_by_that_attempt_alone(db: Db) {
        let (queue, clock) = queue(&db);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let stale = queue.claim("a").await.unwrap().unwrap();
        assert_eq!(stale.tell("Resumed", "step 3").await.unwrap(), Held::Yes);
        clock.jump_database(LEASE + Duration::from_secs(1), false);
        let _fresh = queue.claim("b").await.unwrap().unwrap();
        assert_eq!(stale.tell("Resumed", "step 4").await.unwrap(), Held::No);
        let events = job_events::list(&db, ACCOUNT, &spec(1).id).await.unwrap();
        let told: Vec<_> = events.iter().map(|event| (event.kind.as_str(), event.detail.as_str())).collect();
        assert_eq!(told, [("Created", "job-1"), ("Claimed", "a"), ("Resumed", "step 3"), ("Claimed", "b")]);
    }
}
