//! Random worlds: jobs are accepted, claimed, stopped, finished and dropped by workers that die, come
//! back from the dead and keep acting, while time passes and every machine's wall clock jumps as it likes. After
//! each event the store agrees with a model of a dozen lines: above all, a lease is taken from nobody before it has
//! run out by the database's clock. In the end each job has ended exactly once. proptest prints the world that
//! fails, shrunk, and keeps its seed.

use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tunesmith::clock::Clock;
use tunesmith::jobs::queue::{STRIKE_LIMIT, STRIKES_PER_CRASH};
use tunesmith::jobs::{Claim, Held, Queue, sweep};
use tunesmith::store::jobs::{self, Progress, StopRequest};
use tunesmith::store::{Db, Status, custom_models, job_events};

use super::database::on_postgres;
use super::{ACCOUNT, model_of, spec};

const LEASE: Duration = Duration::from_secs(60);

/// One event. Numbers pick among what there is, modulo.
#[derive(Debug, Clone)]
enum Event {
    Accept,
    Claim,
    /// A worker, alive or taken for dead, acts on a claim it made some time.
    Act(usize, Act),
    Stop(usize),
    /// A machine's wall clock jumps, forwards or backwards, by so many milliseconds: nothing may follow from it.
    Jump(u64, bool),
    /// So many quarters of a lease pass.
    Pass(u32),
    /// The next process of the first worker finds it dead.
    Bury,
    Sweep,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Renew,
    Checkpoint,
    Complete,
    Fail,
    Stopped,
    Release,
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    let act = prop_oneof![
        4 => Just(Act::Renew),
        2 => Just(Act::Checkpoint),
        2 => Just(Act::Complete),
        1 => Just(Act::Fail),
        2 => Just(Act::Stopped),
        1 => Just(Act::Release),
        1 => Just(Act::Crash),
    ];
    prop_oneof![
        2 => Just(Event::Accept),
        4 => Just(Event::Claim),
        8 => (any::<usize>(), act).prop_map(|(claim, act)| Event::Act(claim, act)),
        1 => any::<usize>().prop_map(Event::Stop),
        2 => (0u64..7_200_000, any::<bool>()).prop_map(|(by, back)| Event::Jump(by, back)),
        3 => (1u32..7).prop_map(Event::Pass),
        1 => Just(Event::Bury),
        1 => Just(Event::Sweep),
    ]
}

/// What the model knows of a job: which attempt holds it, until when, and where it stands.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    status: Status,
    attempt: i64,
    held: bool,
    /// By the database's clock as the world moves it; real time passes too, but less than a quarter of a lease.
    until: Duration,
    strikes: i64,
    /// The attempt has kept a checkpoint.
    progressed: bool,
}

impl Known {
    /// What the loss of the lease costs.
    fn loss(&self) -> i64 {
        i64::from(self.held && !self.progressed)
    }
}

struct World {
    db: Db,
    clock: Clock,
    queue: Queue,
    /// How far the database's clock was moved.
    passed: Duration,
    known: Vec<Known>,
    claims: Vec<(usize, Claim)>,
}

impl World {
    fn new(db: Db) -> Self {
        let clock = Clock::system();
        Self {
            queue: Queue::new(db.clone(), clock.clone(), LEASE),
            db,
            clock,
            passed: Duration::ZERO,
            known: Vec::new(),
            claims: Vec::new(),
        }
    }

    /// Whether a lease that ran until `until` has run out. Time passes in quarters of a lease, so that what really
    /// passes meanwhile decides nothing but what is due to the moment.
    fn is_over(&self, until: Duration) -> bool {
        until <= self.passed
    }

    async fn play(&mut self, event: Event) {
        match event {
            Event::Accept => {
                jobs::insert(&self.db, &spec(self.known.len()), &[]).await.unwrap();
                self.known.push(Known {
                    status: Status::InProgress,
                    attempt: 0,
                    held: false,
                    until: Duration::ZERO,
                    strikes: 0,
                    progressed: false,
                });
            }
            Event::Claim => self.claim().await,
            Event::Act(pick, act) if !self.claims.is_empty() => {
                let (n, claim) = self.claims[pick % self.claims.len()].clone();
                self.act(n, &claim, act).await;
            }
            Event::Stop(pick) if !self.known.is_empty() => {
                let n = pick % self.known.len();
                let (now, at) = (self.clock.now(), self.clock.database());
                let answer = jobs::request_stop(&self.db, ACCOUNT, &spec(n).name, now, at).await.unwrap();
                match self.known[n].status {
                    Status::InProgress => {
                        assert_eq!(answer, StopRequest::Accepted);
                        // With a worker to say so it is stopping, else stopped at once.
                        let alive = self.known[n].held && !self.is_over(self.known[n].until);
                        let job = jobs::find(&self.db, ACCOUNT, &spec(n).name).await.unwrap().unwrap();
                        assert_eq!(job.status, if alive { Status::Stopping } else { Status::Stopped });
                    }
                    Status::Stopping => assert_eq!(answer, StopRequest::AlreadyStopping),
                    ended => assert_eq!(answer, StopRequest::Ended(ended)),
                }
            }
            Event::Jump(by, back) => self.clock.jump(Duration::from_millis(by), back),
            Event::Pass(quarters) => {
                self.passed += LEASE / 4 * quarters;
                self.clock.jump_database(LEASE / 4 * quarters, false);
            }
            Event::Bury => {
                self.queue.bury("first").await.unwrap();
                let passed = self.passed;
                let of_first = |claim: &Claim| claim.job.worker.as_deref() == Some("first");
                for (n, claim) in self.claims.iter().filter(|(_, claim)| of_first(claim)) {
                    let known = &mut self.known[*n];
                    if known.held && known.attempt == claim.attempt() {
                        known.until = known.until.min(passed);
                    }
                }
            }
            Event::Sweep => {
                let before = self.known.clone();
                sweep::sweep(&self.db, &self.clock, self.clock.database()).await.unwrap();
                for (n, known) in before.iter().enumerate().filter(|(_, known)| !known.status.is_end()) {
                    let job = jobs::find(&self.db, ACCOUNT, &spec(n).name).await.unwrap().unwrap();
                    let free = !known.held || self.is_over(known.until);
                    let expected = match known.status {
                        Status::Stopping if free => Status::Stopped,
                        Status::InProgress if free && known.strikes + known.loss() >= STRIKE_LIMIT => Status::Failed,
                        status => status,
                    };
                    assert_eq!(job.status, expected, "{known:?} after {:?}", self.passed);
                }
            }
            Event::Act(..) | Event::Stop(_) => {}
        }
        self.look().await;
    }

    async fn claim(&mut self) {
        let is_free = |known: &Known| {
            known.status == Status::InProgress
                && (!known.held || self.is_over(known.until))
                && known.strikes + known.loss() < STRIKE_LIMIT
        };
        // The oldest that nobody holds, and nothing else.
        let expected = self.known.iter().position(is_free);
        let worker = if self.claims.len().is_multiple_of(2) { "first" } else { "second" };
        let claim = self.queue.claim(worker).await.unwrap();
        let found = claim.as_ref().map(|claim| (0..self.known.len()).find(|&n| spec(n).id == claim.job.spec.id));
        assert_eq!(found, expected.map(Some), "{:?} after {:?}", self.known, self.passed);
        let (Some(n), Some(claim)) = (expected, claim) else { return };
        let known = &mut self.known[n];
        assert_eq!(claim.attempt(), known.attempt + 1, "attempts are counted without gaps");
        let strikes = known.strikes + known.loss();
        assert_eq!(claim.job.strikes, strikes);
        let (attempt, until) = (claim.attempt(), self.passed + LEASE);
        *known = Known { status: Status::InProgress, attempt, held: true, until, strikes, progressed: false };
        self.claims.push((n, claim));
    }

    async fn act(&mut self, n: usize, claim: &Claim, act: Act) {
        let known = self.known[n].clone();
        let ours = known.held && known.attempt == claim.attempt();
        let running = ours && known.status == Status::InProgress;
        let (done, expected, next) = match act {
            Act::Renew => {
                let seen = claim.renew().await.unwrap();
                assert_eq!(seen, ours.then_some(known.status));
                if ours {
                    self.known[n].until = self.passed + LEASE;
                }
                return;
            }
            Act::Checkpoint => {
                let next = Known { strikes: 0, progressed: true, ..known };
                (claim.progress(&Progress::default(), true).await.unwrap(), ours, next)
            }
            Act::Complete => {
                let model = model_of(&claim.job, self.clock.now());
                let next = Known { status: Status::Completed, held: false, ..known };
                (claim.complete(&model).await.unwrap(), running, next)
            }
            Act::Fail => {
                let next = Known { status: Status::Failed, held: false, ..known };
                (claim.fail("because").await.unwrap(), running, next)
            }
            Act::Stopped => {
                let next = Known { status: Status::Stopped, held: false, ..known };
                (claim.stopped().await.unwrap(), ours && known.status == Status::Stopping, next)
            }
            Act::Release => (claim.release("drain").await.unwrap(), running, Known { held: false, ..known }),
            Act::Crash => {
                let strikes = known.strikes + if known.progressed { 0 } else { STRIKES_PER_CRASH };
                (claim.crashed("panic").await.unwrap(), running, Known { held: false, strikes, ..known })
            }
        };
        assert_eq!(done == Held::Yes, expected, "{act:?} of attempt {} on {:?}", claim.attempt(), self.known[n]);
        if done == Held::Yes {
            self.known[n] = next;
        }
    }

    /// Every job moved only as it may, and what it shows fits together.
    async fn look(&mut self) {
        for (n, known) in self.known.iter_mut().enumerate() {
            let job = jobs::find(&self.db, ACCOUNT, &spec(n).name).await.unwrap().unwrap();
            // Only a stop and the sweep move a job that the model did not move itself.
            assert!(job.status == known.status || known.status.may_become(job.status), "{known:?} -> {}", job.status);
            known.status = job.status;
            known.held = job.lease_until.is_some();
            assert_eq!((job.attempt, job.strikes), (known.attempt, known.strikes));
            assert_eq!(job.status.is_end(), job.end_time.is_some());
            let model = custom_models::find(&self.db, ACCOUNT, &spec(n).output_model_name).await.unwrap();
            assert_eq!(model.is_some(), job.status == Status::Completed);
            let events = job_events::list(&self.db, ACCOUNT, &spec(n).id).await.unwrap();
            let ends: Vec<_> =
                events.iter().filter_map(|e| Status::parse(&e.kind)).filter(|status| status.is_end()).collect();
            assert!(events.is_sorted_by_key(|event| event.at), "events are told in order: {events:?}");
            assert_eq!(ends, if job.status.is_end() { vec![job.status] } else { vec![] });
        }
    }

    /// The faults stop: one good worker is left. Everything must come to its end.
    async fn settle(&mut self) {
        self.passed += LEASE * 2;
        self.clock.jump_database(LEASE * 2, false);
        sweep::sweep(&self.db, &self.clock, self.clock.database()).await.unwrap();
        self.look().await;
        while let Some(claim) = self.queue.claim("good").await.unwrap() {
            assert_eq!(claim.complete(&model_of(&claim.job, self.clock.now())).await.unwrap(), Held::Yes);
            let n = (0..self.known.len()).find(|&n| spec(n).id == claim.job.spec.id).unwrap();
            let known = &mut self.known[n];
            let strikes = known.strikes + known.loss();
            let attempt = claim.attempt();
            *known = Known { status: Status::Completed, attempt, held: false, strikes, ..known.clone() };
        }
        self.look().await;
        assert!(self.known.iter().all(|known| known.status.is_end()), "{:?}", self.known);
    }
}

/// Plays a world in a database that has no jobs.
async fn play(db: Db, events: Vec<Event>) {
    let mut world = World::new(db);
    for event in events {
        world.play(event).await;
    }
    world.settle().await;
}

fn worlds() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(event(), 1..60)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn in_every_world_each_job_ends_exactly_once(events in worlds()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let db = Db::connect("sqlite::memory:").await.unwrap();
            db.migrate().await.unwrap();
            play(db, events).await;
        });
    }
}

/// The same on Postgres, where a world costs more.
#[test]
fn in_every_world_each_job_ends_exactly_once_on_postgres() {
    on_postgres(async |db| {
        let Db::Postgres(pool) = db.clone() else { unreachable!("a Postgres was asked for") };
        let mut runner = TestRunner::new(config(12));
        for _ in 0..12 {
            let world = worlds().new_tree(&mut runner).unwrap().current();
            println!("{world:?}");
            play(db.clone(), world).await;
            sqlx::raw_sql("TRUNCATE customization_jobs, job_events, custom_models, tags").execute(&pool).await.unwrap();
        }
    });
}
