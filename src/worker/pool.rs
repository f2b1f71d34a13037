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
use crate::app::App;
use crate::error::Result;
use crate::fault_points;
use crate::jobs::{Queue, sweep};
use crate::store;
use crate::train::TrainingDevice;

/// How often a free slot asks for a job.
const POLL: Duration = Duration::from_millis(500);
/// How often jobs are ended that no worker will end, and leftovers of ended ones looked for.
const SWEEP: Duration = Duration::from_secs(2);

/// The running slots.
#[derive(Debug)]
pub struct Pool {
    /// Each resolves when its thread has ended.
    threads: Vec<oneshot::Receiver<()>>,
    draining: watch::Sender<bool>,
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
            let imports = store::imports::bury(&app.db, &dead.worker, app.clock.database()).await?;
            let freed = queue.bury(&dead.worker).await? + imports;
            info!(worker = dead.worker, jobs = freed, "a worker of this folder was killed: its jobs are free");
            dead.remove()?;
        }
        let presence = Presence::announce(&app.config.data_dir, format!("worker-{}", app.clock.id()))?;
        let worker = Arc::new(Worker { app, queue, presence });

        let (draining, watch) = watch::channel(false);
        let mut threads = Vec::new();
        for device in devices {
            info!(worker = worker.presence.worker, %device, "slot open");
            let (worker, watch) = (worker.clone(), watch.clone());
            threads.push(thread(format!("slot {device}"), async move || slot(&worker, device, watch).await)?);
        }
        let (importer, watching) = (worker.clone(), watch.clone());
        threads.push(thread("imports".into(), async move || imports::bring_in(&importer, watching).await)?);
        let (cleaner, watching) = (worker.clone(), watch.clone());
        threads.push(thread("scratch".into(), async move || clean(&cleaner, watching).await)?);
        threads.push(thread("housekeeping".into(), async move || housekeeping(&worker, watch).await)?);
        Ok(Self { threads, draining })
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
}

/// Runs `work` on a thread of its own, with the drivers of this runtime.
fn thread(name: String, work: impl AsyncFnOnce() + Send + 'static) -> Result<oneshot::Receiver<()>> {
    let runtime = Handle::current();
    let (ended, receiver) = oneshot::channel();
    std::thread::Builder::new().name(name).spawn(move || {
        runtime.block_on(work());
        // Nobody waits when the pool was dropped.
        let _ = ended.send(());
    })?;
    Ok(receiver)
}

async fn slot(worker: &Worker, device: TrainingDevice, mut draining: watch::Receiver<bool>) {
    while !*draining.borrow() {
        match fault_points::around("claiming a job", worker.queue.claim(&worker.presence.worker)).await {
            Ok(Some(claim)) => {
                let halt = Halt::default();
                let drain = async {
                    // An error means that the pool was dropped: the same as a drain.
                    let _ = draining.wait_for(|draining| *draining).await;
                    halt.raise(Reason::Drain);
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = run::run(worker, device, claim, halt.clone()) => {}
                    () = drain => {}
                }
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

/// Ends jobs that no worker will end.
async fn housekeeping(worker: &Worker, mut draining: watch::Receiver<bool>) {
    while !*draining.borrow() {
        match sweep::sweep(&worker.app.db, &worker.app.clock).await {
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
