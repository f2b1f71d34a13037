//! Ended jobs whose working objects are to be removed, as the database keeps them.

use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::jobs::{Held, Queue};
use tunesmith::store::scratch::{self, Leftover};
use tunesmith::store::{Db, jobs};

use super::database::on_both;
use super::{ACCOUNT, model_of, spec};

const GRACE: i64 = 15_000;

async fn end(queue: &Queue, db: &Db, n: usize, completed: bool) {
    jobs::insert(db, &spec(n), &[]).await.unwrap();
    let claim = queue.claim("a").await.unwrap().unwrap();
    let held = match completed {
        true => claim.complete(&model_of(&claim.job, claim.job.spec.creation_time)).await.unwrap(),
        false => claim.fail("as a test wants it").await.unwrap(),
    };
    assert_eq!(held, Held::Yes);
}

fn names(due: &[Leftover]) -> Vec<&str> {
    due.iter().map(|leftover| leftover.job.spec.name.as_str()).collect()
}

on_both! {
    async fn a_job_that_cannot_be_cleaned_holds_up_no_other(db: Db) {
        let clock = Clock::system();
        let queue = Queue::new(db.clone(), clock.clone(), Duration::from_secs(60));
        for n in 1..=5 {
            end(&queue, &db, n, true).await;
        }
        let now = clock.now();
        // The first ones fail, over and over: each is due again later, and the others come up.
        let first = scratch::due(&db, now, GRACE, 2).await.unwrap();
        for leftover in &first {
            assert!(scratch::take(&db, leftover, now + 60_000).await.unwrap());
            assert!(!scratch::take(&db, leftover, now + 60_000).await.unwrap(), "another process has it");
        }
        let second = scratch::due(&db, now, GRACE, 9).await.unwrap();
        assert_eq!(second.len(), 3);
        assert!(names(&second).iter().all(|name| !names(&first).contains(name)));
        for leftover in &second {
            assert!(scratch::take(&db, leftover, now + 60_000).await.unwrap());
            scratch::removed(&db, &leftover.job.spec.id, None).await.unwrap();
        }
        assert!(scratch::due(&db, now, GRACE, 9).await.unwrap().is_empty());
        let again = scratch::due(&db, now + 60_000, GRACE, 9).await.unwrap();
        assert_eq!(names(&again), names(&first));
        assert_eq!(again.iter().map(|leftover| leftover.scratch_failures).collect::<Vec<_>>(), [1, 1]);
        scratch::removed(&db, &again[0].job.spec.id, Some(now + 90_000)).await.unwrap();
        let last = scratch::due(&db, now + 90_000, GRACE, 9).await.unwrap();
        let counts: Vec<_> = last.iter().map(|one| (one.scratch_rounds, one.scratch_failures)).collect();
        assert_eq!(counts, [(0, 1), (1, 0)]);
    }
}

on_both! {
    async fn the_checkpoints_of_a_job_that_failed_can_be_asked_for_a_moment(db: Db) {
        let clock = Clock::system();
        let queue = Queue::new(db.clone(), clock.clone(), Duration::from_secs(60));
        end(&queue, &db, 1, false).await;
        end(&queue, &db, 2, true).await;
        let ended = jobs::find(&db, ACCOUNT, "job-1").await.unwrap().unwrap().end_time.unwrap();
        assert_eq!(names(&scratch::due(&db, ended + GRACE - 1, GRACE, 9).await.unwrap()), ["job-2"]);
        assert_eq!(scratch::due(&db, ended + GRACE, GRACE, 9).await.unwrap().len(), 2);
        assert!(scratch::has_checkpoints(&db, &spec(1).id).await.unwrap());
        scratch::removed(&db, &spec(1).id, Some(ended + 60_000)).await.unwrap();
        assert!(!scratch::has_checkpoints(&db, &spec(1).id).await.unwrap());
    }
}
