//! A stale worker changes nothing: frozen past its lease while another finishes its job, then thawed.

use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::store::Status;
use tunesmith::store::jobs::{Job, JobSpec};

use super::process::{Backend, House, Process, on_each, until, within};
use super::{ADAPTER, tiny};
use crate::jobs::database::block_on;
use crate::support::promise::{Dice, Promise, seed, times};

/// Short jobs and a short lease: a round takes some seconds.
const STEPS: usize = 300;
const LEASE_SECONDS: u64 = 4;

#[test]
fn a_worker_that_was_frozen_past_its_lease_changes_nothing() {
    block_on(async {
        let house = House::new().await;
        let _api = house.start(&["serve", "--role", "api"]);
        house.upload_data().await;
        let spec = tiny::job(1);
        house.submit(&spec).await;

        let frozen = house.start(&["worker"]);
        house.at_step(&spec, 20).await;
        frozen.freeze();
        let second = house.start(&["worker"]);
        let before = house.completed(&spec).await;
        // More, when the machine is so busy that the second one lost its lease too; never the frozen one.
        assert!(before.attempt >= 2, "the frozen worker completed the job");
        let (visible, events) = (house.visible(&spec).await, house.events(&spec).await);

        frozen.thaw();
        until("the stale worker sees that the job is not its own", async || {
            frozen.log().contains("attempt abandoned").then_some(())
        })
        .await;
        assert_eq!(house.job(&spec).await, before);
        assert_eq!(house.events(&spec).await, events);
        assert_eq!(house.visible(&spec).await, visible);

        // It is a good worker again.
        second.kill();
        let next = tiny::job(2);
        house.submit(&next).await;
        house.completed(&next).await;
    });
}

on_each! {
    async fn a_worker_frozen_anywhere_in_its_job_changes_nothing_when_it_is_thawed(house: House) {
        let rounds = times(2, 100);
        let seed = seed();
        let mut dice = Dice::new(seed);
        let mut promise = Promise::new(3, "a_worker_frozen_anywhere_changes_nothing", house.on_what()).seeded(seed);
        let mut house = house;
        house.settings.push(("TUNESMITH_LEASE_SECONDS".into(), LEASE_SECONDS.to_string()));
        let _api = house.start(&["serve", "--role", "api"]);
        house.upload_data().await;
        let workers = [house.start_in("log-a", &["worker"]), house.start_in("log-b", &["worker"])];
        let clock = Clock::system();
        let begun = clock.monotonic();
        let reference = house.create(&house.request("reference", STEPS)).await;
        house.completed(&reference).await;
        let length = clock.monotonic().duration_since(begun).as_millis() as u64;
        let adapter = house.output(&reference, ADAPTER).await;

        let (mut counted, mut round, mut locked, mut phases) = (0, 0, 0, std::collections::BTreeMap::<String, usize>::new());
        while counted < rounds {
            round += 1;
            assert!(round < rounds * 4 + 10, "only {counted} of {round} freezes met a running job");
            let spec = house.create(&house.request(&format!("job-{round}"), STEPS)).await;
            let name = within(Duration::from_secs(60), "a worker has the job", async || house.job(&spec).await.worker).await;
            let holder = workers.iter().find(|worker| worker.log().contains(&name)).expect("one of the two has it");
            let abandoned = count(holder);
            tokio::time::sleep(Duration::from_millis(dice.below(length))).await;
            holder.freeze();
            let frozen = house.job(&spec).await;
            if frozen.status != Status::InProgress {
                holder.thaw();
                continue;
            }
            let phase = frozen.progress.map_or_else(|| "before the first report".into(), |progress| progress.0.phase);
            let Some(before) = finished_by_the_other(&house, &spec).await else {
                // It froze inside a write transaction: nobody can take SQLite's lock from a process that lives.
                locked += 1;
                holder.thaw();
                house.completed(&spec).await;
                continue;
            };
            if before.attempt == 1 {
                // Its last statement was on its way already.
                holder.thaw();
                continue;
            }
            let seen = snapshot(&house, &spec).await;
            holder.thaw();
            // It may have been frozen before it knew of the job, or after it had let go of it.
            for _ in 0..200 {
                if count(holder) > abandoned {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(snapshot(&house, &spec).await, seen, "frozen {phase:?} of {}", spec.id);
            assert!(house.output(&spec, ADAPTER).await == adapter, "the adapter's bits differ");
            *phases.entry(phase).or_default() += 1;
            counted += 1;
            if counted % 10 == 0 {
                println!("{counted} rounds");
            }
        }
        promise.tried(format!("{counted} rounds of SIGSTOP at a random moment, past a lease of {LEASE_SECONDS} s, SIGCONT"));
        promise.found(format!("{counted} of {counted}: no row, event or visible object changed; frozen in {phases:?}"));
        if locked > 0 {
            promise.found(format!(
                "in {locked} more rounds the frozen process held SQLite's one write lock, and everybody waited for it"
            ));
        }
        promise.held();
    }
}

/// The job once another worker has completed it; `None` when all wait for the frozen one's lock on the database file.
async fn finished_by_the_other(house: &House, spec: &JobSpec) -> Option<Job> {
    if house.backend() == Backend::Separate {
        return Some(house.completed(spec).await);
    }
    for _ in 0..300 {
        let job = house.job(spec).await;
        if job.status.is_end() {
            assert_eq!(job.status, Status::Completed, "{:?}", job.failure_message);
            return Some(job);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

fn count(worker: &Process) -> usize {
    worker.log().matches("attempt abandoned").count()
}

/// The row, the events, and every visible object with its ETag.
async fn snapshot(house: &House, spec: &JobSpec) -> (Job, Vec<String>, Vec<(String, String)>) {
    (house.job(spec).await, house.events(spec).await, house.visible(spec).await)
}
