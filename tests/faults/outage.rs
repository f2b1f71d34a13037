//! No outage of a dependency loses or doubles work: Postgres and the object store refuse, vanish, and are cut at any
//! byte, at every step of a job; the API says 503 meanwhile and is well again soon after.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tunesmith::store::Status;

use super::points::Points;
use super::process::{Backend, House, until, within};
use super::{ADAPTER, METRICS};
use crate::jobs::database::{block_on, variable};
use crate::support::fault_proxy::Fault;
use crate::support::promise::{Promise, full, seed, times};

const STEPS: usize = 600;
/// Of a job that is to be training for a good part of an outage.
const MANY_STEPS: usize = 12_000;
/// Steps of a job before which its dependencies go away, and one of training.
const STAGES: [&str; 8] = [
    "claiming-a-job",
    "downloading-a-data-set",
    "training",
    "uploading-a-file",
    "uploading-a-listing",
    "deciding-the-result",
    "placing-an-output",
    "completing-the-job",
];
/// Houses that are busy at the same time; what is away is waited for by all together.
const BUSY: usize = 2;

/// How one house came through its outage.
#[derive(Debug, Default)]
struct Came {
    /// The longest that the API took for a 503, or for an answer that needs nothing that is away.
    slowest: Duration,
    refusals: usize,
    /// From the mending to a good answer.
    well_again: Duration,
    /// From the mending to the job's end.
    ended: Duration,
    attempts: i64,
    faults: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Away {
    Database,
    Store,
}

#[test]
fn no_outage_at_any_step_loses_or_doubles_a_job() {
    let seconds = variable("TEST_OUTAGE_SECONDS").map_or(if full() { 60 } else { 8 }, |s| s.parse().unwrap());
    let outage = Duration::from_secs(seconds);
    let every: Vec<(Away, Fault, &str)> = [Away::Database, Away::Store]
        .into_iter()
        .flat_map(|away| [Fault::Refuse, Fault::BlackHole].map(|fault| (away, fault)))
        .flat_map(|(away, fault)| STAGES.map(|stage| (away, fault, stage)))
        .collect();
    let short = [
        (Away::Database, Fault::Refuse, "training"),
        (Away::Store, Fault::Refuse, "uploading-a-file"),
        (Away::Store, Fault::BlackHole, "training"),
        (Away::Database, Fault::BlackHole, "deciding-the-result"),
    ];
    let cases = if full() { every } else { short.to_vec() };
    let mut stages: Vec<&str> = cases.iter().map(|case| case.2).collect();
    stages.sort_unstable();
    stages.dedup();
    let mut promise = Promise::new(6, "no_outage_loses_or_doubles_a_job", "");
    let busy = Arc::new(Semaphore::new(BUSY));
    let running: Vec<_> = cases
        .into_iter()
        .map(|(away, fault, stage)| {
            let (busy, case) = (busy.clone(), format!("{away:?} {fault:?} {stage}"));
            // Each house has a thread and a runtime of its own: what is away in one is no concern of another.
            let house = std::thread::spawn(move || block_on(housed(busy, away, fault, stage, outage)));
            (case, house)
        })
        .collect();
    let (mut all, mut faults) = (Vec::new(), Vec::new());
    for (case, house) in running {
        match house.join() {
            Ok(Some((what, came))) => {
                println!("{case}: {came:?}");
                faults.extend(came.faults.iter().map(|fault| format!("{case}: {fault}")));
                all.push(came);
                promise.stands_on(&what);
            }
            Ok(None) => return,
            Err(panic) => faults.push(format!("{case}: {:?}", panic.downcast_ref::<String>())),
        }
    }
    let most = |of: fn(&Came) -> Duration| all.iter().map(of).max().unwrap_or_default().as_secs_f64();
    promise.tried(format!(
        "{seconds} s without Postgres or S3, refused or black-holed: {} cases, each of {} stages ({})",
        all.len(),
        stages.len(),
        stages.join(", ")
    ));
    promise.found(format!(
        "{} of {} jobs completed once with equal bits; {} requests answered 503, slowest {:.1} s; well again {:.1} s \
             after the return; {} attempts in all",
        all.iter().filter(|came| came.faults.is_empty()).count(),
        all.len(),
        all.iter().map(|came| came.refusals).sum::<usize>(),
        most(|came| came.slowest),
        most(|came| came.well_again),
        all.iter().map(|came| came.attempts).sum::<i64>(),
    ));
    for fault in &faults {
        promise.found(fault.clone());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    promise.held();
}

/// One case in a house of its own; gives what that stands on.
async fn housed(
    busy: Arc<Semaphore>,
    away: Away,
    fault: Fault,
    stage: &str,
    outage: Duration,
) -> Option<(String, Came)> {
    let mut house = House::on(Backend::Separate).await?;
    let schema = house.take_schema();
    let on = house.on_what();
    let came = one(house, &busy, away, fault, stage, outage).await;
    if let Some(schema) = schema {
        schema.remove().await;
    }
    came.map(|came| (on, came))
}

async fn one(
    mut house: House,
    busy: &Semaphore,
    away: Away,
    fault: Fault,
    stage: &str,
    outage: Duration,
) -> Option<Came> {
    let place = busy.acquire().await.unwrap();
    let mut came = Came::default();
    let steps = if stage == "training" && full() { MANY_STEPS } else { STEPS };
    // A lease as it is by default.
    house.settings.push(("TUNESMITH_LEASE_SECONDS".into(), "60".into()));
    let points = Points::of(&mut house)?;
    let _process = house.start(&["serve"]);
    house.upload_data().await;
    let reference = house.create(&house.request("reference", steps)).await;
    house.completed(&reference).await;
    let point = format!("before.{stage}");
    let proxy = match away {
        Away::Database => house.database(),
        Away::Store => house.store(),
    };
    // One worker more than there are jobs: an idle one meets the outage too, and must not take the job after it.
    let watched = away == Away::Database && stage == "training";
    let other = watched.then(|| house.start_in("log-other", &["worker"]));
    if let Some(other) = &other {
        until("the other worker is up", async || other.log().contains("slot open").then_some(())).await;
    }
    let spec;
    if stage == "training" {
        spec = house.create(&house.request("job", steps)).await;
        house.at_step(&spec, 50).await;
    } else {
        points.order("wait", &point);
        spec = house.create(&house.request("job", steps)).await;
        points.held(&point).await;
    }
    proxy.set(fault);
    points.take_back("wait", &point);
    drop(place);

    let begun = Instant::now();
    let client = house.client();
    // A list needs the database; a new job both.
    let request = house.request("refused", steps);
    while begun.elapsed() < outage {
        let asked = Instant::now();
        let reply = match away {
            Away::Database => client.try_call("GET", "/model-customization-jobs", None).await,
            Away::Store => client.try_call("POST", "/model-customization-jobs", Some(&request)).await,
        };
        let took = asked.elapsed();
        came.slowest = came.slowest.max(took);
        match reply.map(|reply| reply.status) {
            Some(503) => came.refusals += 1,
            other => came.faults.push(format!("answered {other:?} in {took:?} during the outage")),
        }
        if full() && took > Duration::from_millis(2500) {
            came.faults.push(format!("a 503 took {took:?}"));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    came.faults.dedup();
    came.faults.truncate(4);

    proxy.mend();
    let mended = Instant::now();
    until("the API is well again", async || {
        let reply = client.try_call("GET", "/readyz", None).await;
        reply.filter(|reply| reply.status == 200)
    })
    .await;
    came.well_again = mended.elapsed();
    if full() && came.well_again > Duration::from_secs(5) {
        came.faults.push(format!("well again only after {:?}", came.well_again));
    }
    let _place = busy.acquire().await.unwrap();
    let job = within(Duration::from_secs(400), "the job has ended", async || {
        Some(house.job(&spec).await).filter(|job| job.status.is_end())
    })
    .await;
    came.ended = mended.elapsed();
    came.attempts = job.attempt;
    if watched && job.attempt != 1 {
        came.faults.push(format!("training did not go on: attempt {}", job.attempt));
    }
    if job.status != Status::Completed {
        came.faults.push(format!("{}: {:?}", job.status, job.failure_message));
        return Some(came);
    }
    let events = house.events(&spec).await;
    if events.iter().filter(|kind| *kind == "Completed").count() != 1 {
        came.faults.push(format!("{events:?}"));
    }
    for name in [ADAPTER, METRICS] {
        if house.output(&spec, name).await != house.output(&reference, name).await {
            came.faults.push(format!("{name} differs"));
        }
    }
    Some(came)
}

#[test]
fn connections_cut_at_any_byte_lose_and_double_nothing() {
    block_on(async {
        let Some(house) = House::on(Backend::Separate).await else { return };
        let seed = seed();
        let jobs = times(2, 30);
        let mut promise = Promise::new(6, "connections_cut_at_any_byte", house.on_what()).seeded(seed);
        let _process = house.start(&["serve"]);
        house.upload_data().await;
        let reference = house.create(&house.request("reference", 200)).await;
        house.completed(&reference).await;
        let (adapter, metrics) = (house.output(&reference, ADAPTER).await, house.output(&reference, METRICS).await);
        let before = house.store().connections().1 + house.database().connections().1;
        // Far enough for a request, near enough that few connections see two.
        house.store().set(Fault::CutAnywhere(150_000));
        house.database().set(Fault::CutAnywhere(25_000));
        for n in 0..jobs {
            let spec = house.create(&house.request(&format!("job-{n}"), 200)).await;
            house.completed(&spec).await;
            assert!(house.output(&spec, ADAPTER).await == adapter, "the adapter's bits differ");
            assert!(house.output(&spec, METRICS).await == metrics, "the metrics differ");
            let events = house.events(&spec).await;
            assert_eq!(events.iter().filter(|kind| *kind == "Completed").count(), 1, "{events:?}");
        }
        let cut = house.store().connections().1 + house.database().connections().1 - before;
        // Late, and half-closed: neither is an outage.
        for (name, fault) in [("late", Fault::Delay(Duration::from_millis(100))), ("half-closed", Fault::HalfClose)] {
            let spec = house.create(&house.request(name, 200)).await;
            house.store().set(fault);
            tokio::time::sleep(Duration::from_secs(3)).await;
            house.store().mend();
            house.completed(&spec).await;
            assert!(house.output(&spec, ADAPTER).await == adapter, "{fault:?}: the adapter's bits differ");
        }
        promise.tried(format!("{jobs} jobs while {cut} connections to Postgres and S3 were cut at a random byte"));
        promise.found(format!("{jobs} of {jobs} completed once with equal bits"));
        assert!(cut > jobs as u64, "only {cut} connections were cut");
        promise.held();
    });
}
