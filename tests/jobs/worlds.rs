//! Random worlds: jobs are accepted, claimed, stopped, finished and dropped by workers that die, come
//! back from the dead and keep acting, while the clock jumps. After each event the store agrees with a
//! model of a dozen lines; in the end each job has ended exactly once. proptest prints the world that
//! fails, shrunk, and keeps its seed.

use std::time::Duration;

use proptest::prelude::*;
use tunesmith::clock::Clock;
use tunesmith::jobs::{Claim, Held, Queue, sweep};
use tunesmith::store::jobs::{self, Progress, StopRequest};
use tunesmith::store::{Db, Status, custom_models, job_events};

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
    /// Milliseconds, forwards or backwards.
    Jump(u64, bool),
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
        2 => (0u64..120_000, prop::bool::weighted(0.2)).prop_map(|(by, back)| Event::Jump(by, back)),
        1 => Just(Event::Sweep),
    ]
}

/// What the model knows of a job: which attempt holds it, and where it stands.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    status: Status,
    attempt: i64,
    held: bool,
}

struct World {
    db: Db,
    clock: Clock,
    queue: Queue,
    known: Vec<Known>,
    claims: Vec<(usize, Claim)>,
}

impl World {
    async fn new() -> Self {
        let db = Db::connect("sqlite::memory:").await.unwrap();
        db.migrate().await.unwrap();
        let clock = Clock::system();
        Self { queue: Queue::new(db.clone(), clock.clone(), LEASE), db, clock, known: Vec::new(), claims: Vec::new() }
    }

    async fn play(&mut self, event: Event) {
        match event {
            Event::Accept => {
                jobs::insert(&self.db, &spec(self.known.len()), &[]).await.unwrap();
                self.known.push(Known { status: Status::InProgress, attempt: 0, held: false });
            }
            Event::Claim => self.claim().await,
            Event::Act(pick, act) if !self.claims.is_empty() => {
                let (n, claim) = self.claims[pick % self.claims.len()].clone();
                self.act(n, &claim, act).await;
            }
            Event::Stop(pick) if !self.known.is_empty() => {
                let n = pick % self.known.len();
                let answer = jobs::request_stop(&self.db, ACCOUNT, &spec(n).name, self.clock.now()).await.unwrap();
                match self.known[n].status {
                    Status::InProgress => assert_eq!(answer, StopRequest::Accepted),
                    Status::Stopping => assert_eq!(answer, StopRequest::AlreadyStopping),
                    ended => assert_eq!(answer, StopRequest::Ended(ended)),
                }
            }
            Event::Jump(by, back) => self.clock.jump(Duration::from_millis(by), back),
            Event::Sweep => drop(sweep::sweep(&self.db, &self.clock).await.unwrap()),
            Event::Act(..) | Event::Stop(_) => {}
        }
        self.look().await;
    }

    async fn claim(&mut self) {
        let Some(claim) = self.queue.claim("worker").await.unwrap() else { return };
        let n = (0..self.known.len()).find(|&n| spec(n).id == claim.job.spec.id).unwrap();
        let known = &mut self.known[n];
        assert_eq!(known.status, Status::InProgress, "only a running job is handed out");
        assert_eq!(claim.attempt(), known.attempt + 1, "attempts are counted without gaps");
        *known = Known { status: Status::InProgress, attempt: claim.attempt(), held: true };
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
                return;
            }
            Act::Checkpoint => (claim.progress(&Progress::default(), true).await.unwrap(), ours, known.clone()),
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
            Act::Crash => (claim.crashed("panic").await.unwrap(), running, Known { held: false, ..known }),
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
            assert_eq!(job.attempt, known.attempt);
            assert_eq!(job.status.is_end(), job.end_time.is_some());
            let model = custom_models::find(&self.db, ACCOUNT, &spec(n).output_model_name).await.unwrap();
            assert_eq!(model.is_some(), job.status == Status::Completed);
            let events = job_events::list(&self.db, ACCOUNT, &spec(n).id).await.unwrap();
            let ends: Vec<_> =
                events.iter().filter_map(|e| Status::parse(&e.kind)).filter(|status| status.is_end()).collect();
            assert_eq!(ends, if job.status.is_end() { vec![job.status] } else { vec![] });
        }
    }

    /// The faults stop: one good worker is left. Everything must come to its end.
    async fn settle(&mut self) {
        // Longer than all backward jumps together.
        self.clock.jump(LEASE * 200, false);
        sweep::sweep(&self.db, &self.clock).await.unwrap();
        self.look().await;
        while let Some(claim) = self.queue.claim("good").await.unwrap() {
            assert_eq!(claim.complete(&model_of(&claim.job, self.clock.now())).await.unwrap(), Held::Yes);
            let n = (0..self.known.len()).find(|&n| spec(n).id == claim.job.spec.id).unwrap();
            self.known[n] = Known { status: Status::Completed, attempt: claim.attempt(), held: false };
        }
        self.look().await;
        assert!(self.known.iter().all(|known| known.status.is_end()), "{:?}", self.known);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_every_world_each_job_ends_exactly_once(events in prop::collection::vec(event(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut world = World::new().await;
            for event in events {
                world.play(event).await;
            }
            world.settle().await;
        });
    }
}
