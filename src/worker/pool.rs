//! The slots of this process: each device works on one job at a time, on a thread of its own. A slot
//! claims by asking the database every half second, or at once when the API of the same process accepts
//! a job.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use super::Worker;
use super::halt::{Halt, Reason};
use super::imports;
use super::presence::{self, Presence};
use super::run;
use super::scratch;
use crate::app::supervision::Parts;
use crate::app::{App, heap};
use crate::error::{Error, Kind, Result};
use crate::fault_points;
use crate::jobs::{Claim, Queue, sweep};
use crate::store;
use crate::train::TrainingDevice;

/// How often a free slot asks for a job.
const POLL: Duration = Duration::from_millis(500);
/// How often jobs are ended that no worker will end, and leftovers of ended ones looked for.
const SWEEP: Duration = Duration::from_secs(2);
/// How long giving a job back may take when the process has no more time.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// The running slots.
#[derive(Debug)]
pub struct Pool {
    /// Each resolves when its thread has ended.
    threads: Vec<oneshot::Receiver<()>>,
    draining: watch::Sender<bool>,
    leaving: watch::Sender<bool>,
}

/// What a slot hears about the end of the process.
#[derive(Debug, Clone)]
struct Ending {
    /// No more jobs; the running one keeps a checkpoint and is given back.
    draining: watch::Receiver<bool>,
    /// The running job is given back as it is.
    leaving: watch::Receiver<bool>,
}

impl Pool {
    /// Starts one slot per configured device, after freeing the jobs of workers of this data folder that
    /// were killed.
    ///
    /// # Errors
    /// `Validation` for a device this build does not have; `Unavailable` when the database is away.
    pub async fn start(app: Arc<App>) -> Result<Self> {
        let devices = TrainingDevice::parse(&app.config.devices)?;
        let queue = Queue::new(app.db.clone(), app.clock.clone(), app.config.lease());
        for dead in presence::dead(&app.config.data_dir)? {
            let freed = async {
                let imports = store::imports::bury(&app.db, &dead.worker, app.clock.database()).await?;
                Ok::<_, Error>(queue.bury(&dead.worker).await? + imports)
            };
            match freed.await {
                Ok(jobs) => info!(worker = dead.worker, jobs, "a worker of this folder was killed: its jobs are free"),
                // Of a database whose disk is full, too: then the service is there, so that space can be made.
                Err(error) if error.kind() == Kind::Unavailable => {
                    warn!(
                        worker = dead.worker,
                        "jobs of a worker that was killed wait for their leases: {}",
                        error.log()
                    );
                    continue;
                }
                Err(error) => return Err(error),
            }
            dead.remove()?;
        }
        let presence = Presence::announce(&app.config.data_dir, format!("worker-{}", app.clock.id()))?;
        let worker = Arc::new(Worker { app, queue, presence });

        let ((draining, drained), (leaving, left)) = (watch::channel(false), watch::channel(false));
        let ending = Ending { draining: drained.clone(), leaving: left };
        let mut threads = Vec::new();
        for (n, device) in devices.iter().copied().enumerate() {
            info!(worker = worker.presence.worker, %device, "slot open");
            let work = slot_of(&worker, device, &ending);
            // Slots that share a device have names of their own: each is supervised and shown by its name.
            let name = match devices.iter().take(n).filter(|other| **other == device).count() {
                0 => format!("slot {device}"),
                before => format!("slot {device} #{}", before + 1),
            };
            threads.push(thread(&worker.app.parts, name, drained.clone(), work)?);
        }
        let (importer, watching) = (worker.clone(), drained.clone());
        let imports = move || {
            let (importer, watching) = (importer.clone(), watching.clone());
            async move { imports::bring_in(&importer, watching).await }
        };
        threads.push(thread(&worker.app.parts, "imports".into(), drained.clone(), imports)?);
        let (cleaner, watching) = (worker.clone(), drained.clone());
        let scratch = move || {
            let (cleaner, watching) = (cleaner.clone(), watching.clone());
            async move { clean(&cleaner, watching).await }
        };
        threads.push(thread(&worker.app.parts, "scratch".into(), drained.clone(), scratch)?);
        let (keeper, watching) = (worker.clone(), drained.clone());
        let housekeeping = move || {
            let (keeper, watching) = (keeper.clone(), watching.clone());
            async move { housekeeping(&keeper, watching).await }
        };
        threads.push(thread(&worker.app.parts, "housekeeping".into(), drained, housekeeping)?);
        Ok(Self { threads, draining, leaving })
    }

    /// Takes no more jobs, lets running ones write a checkpoint and gives them back.
    pub async fn drain(self) {
        // Nobody listening means that nothing runs.
        let _ = self.draining.send(true);
        for ended in self.threads {
            // An error means that the thread panicked: it has ended too.
            let _ = ended.await;
        }
    }

    /// As [`Pool::drain`]. What has not come to an end after `patience` (a download, a model that is read) is given
    /// back as it is; its attempt can write nothing any more.
    pub async fn drain_within(self, patience: Duration) {
        let leaving = self.leaving.clone();
        let drained = self.drain();
        tokio::pin!(drained);
        if tokio::time::timeout(patience, &mut drained).await.is_err() {
            warn!(patience_s = patience.as_secs(), "jobs that are still under way are given back as they are");
            let _ = leaving.send(true);
            drained.await;
        }
    }
}

/// Runs `work` supervised on a thread of its own, with the drivers of this runtime.
fn thread<F: Future<Output = ()>>(
    parts: &Parts,
    name: String,
    draining: watch::Receiver<bool>,
    work: impl Fn() -> F + Send + 'static,
) -> Result<oneshot::Receiver<()>> {
    let (runtime, parts) = (Handle::current(), parts.clone());
    let (ended, receiver) = oneshot::channel();
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        runtime.block_on(parts.supervise(&name, draining, work));
        // Nobody waits when the pool was dropped.
        let _ = ended.send(());
    })?;
    Ok(receiver)
}

/// The work of one slot, for as often as it has to be started.
fn slot_of(
    worker: &Arc<Worker>,
    device: TrainingDevice,
    ending: &Ending,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = ()>>> + Send + use<> {
    let (worker, ending) = (Arc::clone(worker), ending.clone());
    move || {
        let (worker, ending) = (Arc::clone(&worker), ending.clone());
        Box::pin(async move { slot(&worker, device, ending).await })
    }
}

async fn slot(worker: &Worker, device: TrainingDevice, ending: Ending) {
    let Ending { mut draining, mut leaving } = ending;
    while !*draining.borrow() {
        match fault_points::around("claiming a job", worker.queue.claim(&worker.presence.worker)).await {
            Ok(Some(claim)) => {
                let (halt, held) = (Halt::default(), claim.clone());
                let ended = async {
                    // An error means that the pool was dropped: the same as a drain.
                    let _ = draining.wait_for(|draining| *draining).await;
                    halt.raise(Reason::Drain);
                    let _ = leaving.wait_for(|leaving| *leaving).await;
                };
                tokio::select! {
                    () = run::run(worker, device, claim, halt.clone()) => {}
                    () = ended => give_back(&held).await,
                }
                heap::give_back();
                continue;
            }
            Ok(None) => {}
            Err(error) => warn!("no job could be claimed: {}", error.log()),
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = worker.app.job_accepted.notified() => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
    }
}

/// Frees a job whose attempt has no time to come to an end.
async fn give_back(claim: &Claim) {
    match tokio::time::timeout(LAST_WRITE, claim.release("drained")).await {
        Ok(Ok(_)) => info!(job.id = claim.job.spec.id, "the job is given back as it is"),
        Ok(Err(error)) => warn!(job.id = claim.job.spec.id, "the job is left to its lease: {}", error.log()),
        Err(_) => warn!(job.id = claim.job.spec.id, "the job is left to its lease: the database does not answer"),
    }
}

/// Ends jobs that no worker will end.
async fn housekeeping(worker: &Worker, mut draining: watch::Receiver<bool>) {
    while !*draining.borrow() {
        match worker.queue.heard(sweep::sweep(&worker.app.db, &worker.app.clock, worker.queue.time()).await) {
            Ok(0) => {}
            Ok(ended) => info!(jobs = ended, "ended jobs that no worker would end"),
            Err(error) => warn!("the sweep failed: {}", error.log()),
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
    }
}

/// Removes what ended jobs left in object storage, apart from the sweep, which must not wait for the store.
async fn clean(worker: &Worker, mut draining: watch::Receiver<bool>) {
    while !*draining.borrow() {
        tokio::select! {
            cleaned = fault_points::around("sweeping leftovers", scratch::remove(worker)) => {
                if let Err(error) = cleaned {
                    warn!("leftovers of ended jobs were not looked for: {}", error.log());
                }
            }
            _ = draining.wait_for(|draining| *draining) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_slot_that_panics_is_opened_again_and_a_drain_ends_it() {
        let (parts, runs) = (Parts::default(), Arc::new(AtomicUsize::new(0)));
        let (drain, draining) = watch::channel(false);
        let (counted, watching) = (Arc::clone(&runs), draining.clone());
        let work = move || {
            let (run, mut watching) = (counted.fetch_add(1, Ordering::SeqCst), watching.clone());
            async move {
                assert!(run > 0, "a job that nobody expected");
                drop(watching.wait_for(|draining| *draining).await);
            }
        };
        let ended = thread(&parts, "slot cpu".into(), draining, work).unwrap();
        while !parts.list().first().is_some_and(|part| part.running && part.restarts == 1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        drain.send(true).unwrap();
        ended.await.unwrap();
    }
}
