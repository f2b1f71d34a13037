//! Every step of a job fails, is killed, is done twice, is stopped and is drained in turn, by the fault points of the
//! program: whatever happens where, the job ends once.

use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::store::jobs::{self, JobSpec};
use tunesmith::store::{Status, custom_models};

use super::points::Points;
use super::process::{ACCOUNT, House, Process, on_each, until, within};
use super::{ADAPTER, METRICS};
use crate::support::promise::{Dice, Promise, full, seed};

const STEPS: usize = 300;
/// A job that is not being drained is free again after this.
const LEASE_SECONDS: u64 = 4;
/// Points that a short run tries, drawn anew each time.
const SOME: usize = 4;

/// A house whose processes take orders, what an uninterrupted job gives, and the points that such a job passes.
struct Scene {
    house: House,
    points: Points,
    process: Option<Process>,
    adapter: Vec<u8>,
    metrics: Vec<u8>,
    all: Vec<String>,
    jobs: usize,
    /// How often the process was started again.
    starts: usize,
}

impl Scene {
    async fn new(mut house: House) -> Option<Self> {
        house.settings.push(("TUNESMITH_LEASE_SECONDS".into(), LEASE_SECONDS.to_string()));
        house.settings.push(("TUNESMITH_GRACE_SECONDS".into(), "10".into()));
        let points = Points::of(&mut house)?;
        let process = house.start(&["serve"]);
        house.upload_data().await;
        let spec = house.create(&house.request("reference", STEPS)).await;
        house.completed(&spec).await;
        let (adapter, metrics) = (house.output(&spec, ADAPTER).await, house.output(&spec, METRICS).await);
        let all = points.reached();
        assert!(all.len() > 10, "a job passes many points: {all:?}");
        println!("{} points: {all:?}", all.len());
        Some(Self { house, points, process: Some(process), adapter, metrics, all, jobs: 0, starts: 0 })
    }

    /// The points to try, `before` and `after` steps or only one of both.
    fn chosen(&self, when: &str, seed: u64) -> Vec<String> {
        let mut chosen: Vec<String> = self.all.iter().filter(|point| point.starts_with(when)).cloned().collect();
        let mut dice = Dice::new(seed);
        while !full() && chosen.len() > SOME {
            chosen.remove(dice.below(chosen.len() as u64) as usize);
        }
        chosen
    }

    fn start(&mut self) {
        self.process = Some(self.house.start(&["serve"]));
    }

    /// Starts the process again when it has aborted.
    fn supervise(&mut self) {
        if !self.process.as_mut().is_some_and(Process::is_alive) {
            self.starts += 1;
            self.start();
        }
    }

    /// Waits for the death that was ordered, which may come when the job has ended already, and starts anew.
    async fn aborted(&mut self, starts: usize) {
        for _ in 0..600 {
            self.supervise();
            if self.starts > starts {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the process was to abort");
    }

    /// A job by its request alone. A process that dies by order may take its answer with it: then the request is sent
    /// again, with the same token, to the next one.
    async fn job(&mut self) -> JobSpec {
        self.jobs += 1;
        let request = self.house.request(&format!("job-{}", self.jobs), STEPS);
        let client = self.house.client();
        for _ in 0..1200 {
            match client.try_call("POST", "/model-customization-jobs", Some(&request)).await {
                Some(reply) if reply.status != 503 => {
                    assert_eq!(reply.status, 201, "{}", reply.text());
                    let arn = reply.json()["jobArn"].as_str().unwrap().to_string();
                    return jobs::find(&self.house.db, ACCOUNT, &arn).await.unwrap().expect("it was accepted").spec;
                }
                _ => self.supervise(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no job was accepted");
    }

    /// Waits for the end, starting the process again as often as it dies.
    async fn end(&mut self, spec: &JobSpec) -> Status {
        for _ in 0..1200 {
            let job = self.house.job(spec).await;
            if job.status.is_end() {
                return job.status;
            }
            self.supervise();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the job did not end: {:?}", self.house.job(spec).await);
    }

    /// One end event, and a model exactly if it is completed; completed, the bits are those of the reference.
    async fn ended_once(&self, spec: &JobSpec, place: &str) {
        let job = self.house.job(spec).await;
        let events = self.house.events(spec).await;
        let ends: Vec<_> =
            events.iter().filter(|kind| matches!(kind.as_str(), "Completed" | "Failed" | "Stopped")).collect();
        assert_eq!(ends, [&job.status.to_string()], "{place}: {events:?} {:?}", job.failure_message);
        let model = custom_models::find(&self.house.db, ACCOUNT, &spec.output_model_name).await.unwrap();
        assert_eq!(model.is_some(), job.status == Status::Completed, "{place}");
        if job.status == Status::Completed {
            assert!(self.house.output(spec, ADAPTER).await == self.adapter, "{place}: the adapter's bits differ");
            assert!(self.house.output(spec, METRICS).await == self.metrics, "{place}: the metrics differ");
        }
    }
}

on_each! {
    async fn a_job_ends_once_whichever_of_its_steps_fails_or_is_killed(house: House) {
        let Some(mut scene) = Scene::new(house).await else { return };
        let seed = seed();
        let mut promise = Promise::new(1, "fail_at_every_step", scene.house.on_what()).seeded(seed);
        let (mut tried, mut points) = (0, Vec::new());
        for action in ["error", "abort"] {
            for point in scene.chosen("", seed) {
                let place = format!("{action} {point}");
                println!("{place}");
                scene.supervise();
                scene.points.order(action, &point);
                let starts = scene.starts;
                let spec = scene.job().await;
                assert_eq!(scene.end(&spec).await, Status::Completed, "{place}");
                if action == "abort" {
                    scene.aborted(starts).await;
                }
                scene.ended_once(&spec, &place).await;
                assert!(!scene.points.take_back(action, &point), "{place} was not reached");
                tried += 1;
                points.push(point);
            }
        }
        points.sort();
        points.dedup();
        promise.tried(format!("an error and an abort at each of {} points: {}", points.len(), points.join(", ")));
        promise.found(format!("{tried} of {tried} jobs completed once, with equal bits"));
        promise.held();
    }
}

on_each! {
    async fn a_job_whose_every_step_is_done_twice_ends_once_with_the_same_bits(house: House) {
        let Some(mut scene) = Scene::new(house).await else { return };
        let mut promise = Promise::new(1, "every_step_twice", scene.house.on_what());
        let twice: Vec<String> = scene.all.iter().filter(|point| point.starts_with("after.")).cloned().collect();
        for point in &twice {
            scene.points.order("error", point);
        }
        let spec = scene.job().await;
        assert_eq!(scene.end(&spec).await, Status::Completed);
        scene.ended_once(&spec, "every step twice").await;
        for point in &twice {
            assert!(!scene.points.take_back("error", point), "{point} was not reached");
        }
        promise.tried(format!("one job, each of its {} steps done, its answer lost, and done again", twice.len()));
        promise.found("completed once, with equal bits");
        promise.held();
    }
}

on_each! {
    async fn a_stop_at_any_step_is_one_end_within_seconds(house: House) {
        let Some(mut scene) = Scene::new(house).await else { return };
        let seed = seed();
        let mut promise = Promise::new(12, "stop_at_every_step", scene.house.on_what()).seeded(seed);
        let clock = Clock::system();
        let (mut slowest, mut stopped, mut completed) = (Duration::ZERO, 0, 0);
        let chosen = scene.chosen("", seed);
        for point in &chosen {
            println!("stop {point}");
            scene.points.order("wait", point);
            let spec = scene.job().await;
            scene.points.held(point).await;
            let path = format!("/model-customization-jobs/{}/stop", spec.name);
            let reply = scene.house.client().call("POST", &path, None).await;
            let asked = clock.monotonic();
            if reply.status >= 300 {
                // Its end is written already: what is held is the answer.
                assert_eq!(point, "after.completing-the-job", "{} {}", reply.status, reply.text());
            }
            let mut late = false;
            let status = within(Duration::from_secs(30), &format!("the job stopped {point} ends"), async || {
                // A step that does not look at requests to stop would hold for ever.
                if clock.monotonic().duration_since(asked) > Duration::from_secs(5) && !late {
                    late = true;
                    println!("{point} does not look at the request to stop while it waits");
                    scene.points.take_back("wait", point);
                }
                Some(scene.house.job(&spec).await.status).filter(|status| status.is_end())
            })
            .await;
            let took = clock.monotonic().duration_since(asked);
            println!("{status} after {took:?}");
            slowest = slowest.max(took);
            stopped += usize::from(status == Status::Stopped);
            completed += usize::from(status == Status::Completed);
            scene.points.take_back("wait", point);
            scene.ended_once(&spec, &format!("stop {point}")).await;
        }
        promise.tried(format!("a stop while the job is held at each of {} points", chosen.len()));
        promise.found(format!(
            "{stopped} Stopped, {completed} Completed, never both; slowest {:.1} s", slowest.as_secs_f64()
        ));
        // Two seconds and a step; a claim that is held is ended by the next sweep. A busy machine may be later.
        assert!(!full() || slowest < Duration::from_secs(5), "{slowest:?}");
        promise.held();
    }
}

on_each! {
    async fn sigterm_at_any_step_is_clean_and_the_next_process_goes_on_at_once(house: House) {
        let Some(mut scene) = Scene::new(house).await else { return };
        let seed = seed();
        let mut promise = Promise::new(13, "sigterm_at_every_step", scene.house.on_what()).seeded(seed);
        let clock = Clock::system();
        let (mut slowest, mut taken) = (Duration::ZERO, Duration::ZERO);
        let chosen = scene.chosen("", seed);
        for point in &chosen {
            println!("SIGTERM {point}");
            scene.points.order("wait", point);
            let spec = scene.job().await;
            scene.points.held(point).await;
            let asked = clock.monotonic();
            let process = scene.process.take().unwrap();
            let ending = process.terminate();
            let release = async {
                // What is held goes on a moment after the signal, as a slow dependency would.
                tokio::time::sleep(Duration::from_millis(300)).await;
                scene.points.take_back("wait", point);
            };
            let (ended, ()) = tokio::join!(ending, release);
            slowest = slowest.max(clock.monotonic().duration_since(asked));
            assert_eq!(ended.code(), Some(0), "SIGTERM {point}");
            let attempts = scene.house.job(&spec).await.attempt;
            let open = scene.house.job(&spec).await;
            assert_eq!((open.worker.clone(), open.lease_until), (None, None), "the lease is given back: {point}");
            scene.start();
            if !open.status.is_end() {
                until("the next process answers", async || {
                    scene.house.client().try_call("GET", "/custom-models", None).await
                })
                .await;
                let up = clock.monotonic();
                until("the next process has the job", async || {
                    (scene.house.job(&spec).await.attempt > attempts).then_some(())
                })
                .await;
                taken = taken.max(clock.monotonic().duration_since(up));
            }
            assert_eq!(scene.end(&spec).await, Status::Completed, "SIGTERM {point}");
            scene.ended_once(&spec, &format!("SIGTERM {point}")).await;
        }
        promise.tried(format!("SIGTERM while the job is held at each of {} points", chosen.len()));
        promise.found(format!(
            "exit 0 each time, slowest {:.1} s; the next process has the job {:.1} s after it answers",
            slowest.as_secs_f64(),
            taken.as_secs_f64()
        ));
        assert!(!full() || slowest < Duration::from_secs(10), "the grace period is 10 s: {slowest:?}");
        assert!(!full() || taken < Duration::from_secs(2), "{taken:?}");
        promise.held();
    }
}
