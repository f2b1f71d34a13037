//! Supervision: a part of the process (a slot, the importer, housekeeping, deployments, periodic tasks) that panics or
//! ends early is logged, counted, and started again after a pause that doubles. Until then `/readyz` names it.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::error;

use crate::error::panic_message;

/// Pause before the first restart.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between restarts. A part that ran longer than this begins with the first pause again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The supervised parts of this process; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Parts(Arc<Mutex<Vec<Part>>>);

/// One supervised part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name in the log and in `/readyz`.
    pub name: String,
    /// Whether it runs; `false` while it waits for its restart.
    pub running: bool,
    /// Restarts since the process began.
    pub restarts: u64,
}

impl Parts {
    /// The parts as they are now.
    pub fn list(&self) -> Vec<Part> {
        self.lock().clone()
    }

    /// Runs `work` until the process is told to stop. Work that panics or returns before that is started again.
    pub async fn supervise<F: Future<Output = ()>>(
        &self,
        name: &str,
        mut stopping: watch::Receiver<bool>,
        work: impl Fn() -> F,
    ) {
        let entry = self.enter(name);
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let ended = AssertUnwindSafe(async { work().await }).catch_unwind().await;
            // A dropped sender means that the process is going away.
            if *stopping.borrow() || stopping.has_changed().is_err() {
                return entry.leave();
            }
            if begun.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            let cause = ended.map_or_else(|panic| panic_message(&*panic), |()| "it returned early".to_string());
            error!(part = name, pause_s = pause.as_secs(), "a part of the process ended and is started again: {cause}");
            entry.set(false);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stopping.wait_for(|stop| *stop) => return entry.leave(),
            }
            entry.restarted();
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn enter(&self, name: &str) -> Entry {
        let mut parts = self.lock();
        parts.retain(|part| part.name != name);
        parts.push(Part { name: name.to_string(), running: true, restarts: 0 });
        Entry { parts: self.clone(), name: name.to_string() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Part>> {
        // Nothing under the lock can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part's line in the list. Dropped without [`Entry::leave`], the part is listed as not running.
struct Entry {
    parts: Parts,
    name: String,
}

impl Entry {
    fn update(&self, change: impl FnOnce(&mut Part)) {
        if let Some(part) = self.parts.lock().iter_mut().find(|part| part.name == self.name) {
            change(part);
        }
    }

    fn set(&self, running: bool) {
        self.update(|part| part.running = running);
    }

    fn restarted(&self) {
        self.update(|part| {
            part.running = true;
            part.restarts += 1;
        });
    }

    /// The part ended in order.
    fn leave(self) {
        self.parts.lock().retain(|part| part.name != self.name);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_panics_or_returns_is_named_counted_and_started_again() {
        let (parts, runs) = (Parts::default(), Arc::new(AtomicUsize::new(0)));
        let (stop, stopping) = watch::channel(false);
        let watched = tokio::spawn({
            let (parts, runs) = (parts.clone(), Arc::clone(&runs));
            async move {
                let work = || {
                    let run = runs.fetch_add(1, Ordering::SeqCst);
                    let mut stopping = stopping.clone();
                    async move {
                        match run {
                            0 => panic!("a row that nobody expected"),
                            1 => {}
                            _ => drop(stopping.wait_for(|stop| *stop).await),
                        }
                    }
                };
                parts.supervise("slot cpu", stopping.clone(), work).await;
            }
        });
        let looked = async |want: &dyn Fn(&Part) -> bool| {
            while !parts.list().first().is_some_and(want) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let begun = Instant::now();
        looked(&|part| !part.running && part.restarts == 0).await;
        looked(&|part| !part.running && part.restarts == 1).await;
        looked(&|part| part.running && part.restarts == 2).await;
        let waited = begun.elapsed();
        assert_eq!(waited.as_secs(), 3, "pauses double: {waited:?}");
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        stop.send(true).unwrap();
        watched.await.unwrap();
        assert!(parts.list().is_empty(), "a part that ended in order is missed by nobody");
    }

    #[tokio::test]
    async fn a_part_whose_task_is_gone_is_not_running() {
        let (parts, (_stop, stopping)) = (Parts::default(), watch::channel(false));
        let task = tokio::spawn({
            let parts = parts.clone();
            async move { parts.supervise("imports", stopping, std::future::pending).await }
        });
        while parts.list().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(parts.list()[0].running);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(!parts.list()[0].running);
    }
}
