//! Many kills of the one process while many jobs wait: every accepted job ends once, with the same bits, and
//! nothing is left over.

use std::collections::BTreeSet;
use std::time::Duration;

use tunesmith::objects::Uri;
use tunesmith::store::jobs::JobSpec;
use tunesmith::store::{Status, custom_models};

use super::process::{ACCOUNT, House, on_each, until, within};
use super::{ADAPTER, METRICS};
use crate::support::promise::{Dice, Promise, seed, times};

/// Steps of a job: some seconds of training when it is left alone.
const STEPS: usize = 1200;
/// A kill comes so long after the service answers, and up to so much later. Workers that never live for two seconds
/// make no progress; what becomes of those is the other test's.
const LIFE_MS: (u64, u64) = (2000, 2000);

on_each! {
    async fn every_accepted_job_ends_once_with_the_same_bits_whatever_is_killed(house: House) {
        let (kills, count) = (times(6, 200), times(6, 200).div_ceil(4));
        let seed = seed();
        let mut dice = Dice::new(seed);
        let mut once = Promise::new(1, "every_accepted_job_ends_once", house.on_what()).seeded(seed);
        let mut same = Promise::new(2, "a_killed_run_learns_the_same", house.on_what()).seeded(seed);
        let mut house = house;
        // What a job leaves is swept when a lease has passed since its end.
        house.settings.push(("TUNESMITH_LEASE_SECONDS".into(), "5".into()));
        let mut process = house.start(&["serve"]);
        house.upload_data().await;
        let reference = house.create(&house.request("reference", STEPS)).await;
        house.completed(&reference).await;
        let (adapter, metrics) = (house.output(&reference, ADAPTER).await, house.output(&reference, METRICS).await);

        // All are accepted before the first kill; that accepting survives kills is another promise's test.
        let mut specs = Vec::new();
        for n in 0..count {
            specs.push(house.create(&house.request(&format!("job-{n}"), STEPS)).await);
        }
        for done in 1..=kills {
            // A quick machine needs more jobs, for there is always one to kill.
            if ended(&house, &specs).await == specs.len() {
                specs.push(house.create(&house.request(&format!("job-{}", specs.len()), STEPS)).await);
            }
            answering(&house).await;
            tokio::time::sleep(Duration::from_millis(LIFE_MS.0 + dice.below(LIFE_MS.1))).await;
            process.kill();
            process = house.start(&["serve"]);
            if done % 10 == 0 {
                println!("{done} kills, {} of {count} jobs ended", ended(&house, &specs).await);
            }
        }
        let count = specs.len();
        once.tried(format!("{kills} SIGKILLs of the one process, 2 to 4 s after it answers, over {count} jobs"));
        same.tried(format!("{kills} SIGKILLs over {count} equal jobs of {STEPS} steps"));
        let patience = Duration::from_secs(120 + 20 * count as u64);
        within(patience, "every job has ended", async || (ended(&house, &specs).await == count).then_some(())).await;

        let (mut differing, mut attempts) = (0, 0);
        for spec in &specs {
            let job = house.job(spec).await;
            assert_eq!(job.status, Status::Completed, "{}: {:?}", spec.name, job.failure_message);
            attempts += job.attempt;
            let events = house.events(spec).await;
            let ends = events.iter().filter(|kind| matches!(kind.as_str(), "Completed" | "Failed" | "Stopped")).count();
            assert_eq!(ends, 1, "{}: {events:?}", spec.name);
            let equal = house.output(spec, ADAPTER).await == adapter && house.output(spec, METRICS).await == metrics;
            differing += usize::from(!equal);
        }
        let models = custom_models::list(&house.db, ACCOUNT, &Default::default(), &Default::default()).await.unwrap();
        let models: BTreeSet<_> = models.items.iter().filter_map(|model| model.job_id.clone()).collect();
        assert!(specs.iter().all(|spec| models.contains(&spec.id)) || count > 50, "a job has no model");
        for spec in &specs {
            let model = custom_models::find(&house.db, ACCOUNT, &spec.output_model_name).await.unwrap();
            assert_eq!(model.and_then(|model| model.job_id).as_ref(), Some(&spec.id), "its one model");
        }
        once.found(format!("{count} of {count} ended, with one end event and one model each, in {attempts} attempts"));
        same.found(format!("{differing} of {count} adapters and metrics differ from the uninterrupted run's"));
        assert_eq!(differing, 0, "bits differ");
        same.held();

        let strays = strays(&house, &specs).await;
        once.found(format!("{} strays after the sweep", strays.len()));
        assert!(strays.is_empty(), "{strays:?}");
        assert_eq!(process.terminate().await.code(), Some(0));
        once.held();
    }
}

on_each! {
    async fn ten_kills_within_a_second_of_each_other_leave_a_job_that_completes(house: House) {
        let seed = seed();
        let mut dice = Dice::new(seed);
        let mut promise = Promise::new(1, "ten_kills_within_a_second_of_each_other", house.on_what()).seeded(seed);
        let mut process = house.start(&["serve"]);
        house.upload_data().await;
        let reference = house.create(&house.request("reference", STEPS)).await;
        house.completed(&reference).await;
        let adapter = house.output(&reference, ADAPTER).await;
        let rounds = times(1, 5);
        for round in 0..rounds {
            let spec = house.create(&house.request(&format!("job-{round}"), STEPS)).await;
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(dice.below(1000))).await;
                process.kill();
                process = house.start(&["serve"]);
            }
            let job = house.completed(&spec).await;
            println!("round {round}: attempt {}, strikes {}", job.attempt, job.strikes);
            assert!(house.output(&spec, ADAPTER).await == adapter, "the adapter's bits differ");
        }
        promise.tried(format!("{rounds} times ten SIGKILLs, each less than a second after the start"));
        promise.found(format!("{rounds} of {rounds} jobs completed with equal bits"));
        assert_eq!(process.terminate().await.code(), Some(0));
        promise.held();
    }
}

/// Waits until the service answers.
async fn answering(house: &House) {
    until("the service answers", async || house.client().try_call("GET", "/custom-models", None).await).await;
}

async fn ended(house: &House, specs: &[JobSpec]) -> usize {
    let mut count = 0;
    for spec in specs {
        count += usize::from(house.job(spec).await.status.is_end());
    }
    count
}

/// What lies under the output prefix and is no output of a completed job, and uploads that nobody will complete,
/// once working objects have had their time to be swept.
pub(super) async fn strays(house: &House, specs: &[JobSpec]) -> Vec<String> {
    let mut left = Vec::new();
    // Working objects go when a lease has passed since the end.
    for _ in 0..45 {
        left.clear();
        let folder = Uri::new(&house.bucket, "out/");
        for object in house.objects.list(&folder).all().await.unwrap() {
            let key = object.uri.key();
            let (owner, name) = key.trim_start_matches("out/").split_once('/').unwrap_or((key, ""));
            let known = specs.iter().any(|spec| owner.ends_with(&spec.id)) || owner.ends_with(&reference(house).await);
            if !known || name.starts_with("attempt-") || name.starts_with('.') {
                left.push(key.to_string());
            }
        }
        left.extend(house.uploads().await);
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    left
}

/// The id of the job that the others are compared with.
async fn reference(house: &House) -> String {
    let job = tunesmith::store::jobs::find(&house.db, ACCOUNT, "reference").await.unwrap();
    job.map_or_else(|| "-".into(), |job| job.spec.id)
}
