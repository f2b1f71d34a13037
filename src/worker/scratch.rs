//! Removal of what ended jobs left in object storage: working objects, and uploads in parts that never ended. It is done
//! at once, because their owner pays for them, and again later, because a worker that lost the job may write late.

use std::time::Duration;

use futures::{StreamExt, stream};
use tracing::{debug, info, warn};

use super::Worker;
use crate::app::layout::Layout;
use crate::clock::Millis;
use crate::error::{Kind, Result};
use crate::store::scratch::{self, Leftover};

/// Jobs looked at per round.
const ROUND: i64 = 20;
/// Jobs cleaned at a time: a slow store, or one job with much to remove, does not hold up the others.
const AT_ONCE: usize = 4;
/// How long the newest checkpoint of a job that failed or was stopped can still be asked.
const GRACE: Duration = Duration::from_secs(15);
/// Jobs in a row that found the store away before the round is given up.
const AWAY: usize = 3;
/// Pauses between tries for one job.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 60 * 60);
/// Tries without success after which a job's objects are left to its owner: about a month.
const TRIES: i64 = 120;
/// When it is looked for the last time, after the job's end.
const LAST: Duration = Duration::from_secs(24 * 60 * 60);

/// One round.
pub(crate) async fn remove(worker: &Worker) -> Result<()> {
    let due = scratch::due(&worker.app.db, worker.app.clock.now(), millis(GRACE), ROUND).await?;
    side_by_side(due, |leftover| clean(worker, leftover)).await
}

/// Cleans jobs side by side. A store that [`AWAY`] of them in a row find away is left alone until the next round.
async fn side_by_side<J, C>(due: Vec<J>, clean: impl Fn(J) -> C) -> Result<()>
where
    C: Future<Output = Result<Cleaned>>,
{
    let mut cleaned = stream::iter(due).map(clean).buffer_unordered(AT_ONCE);
    let mut away = 0;
    while let Some(outcome) = cleaned.next().await {
        away = if outcome? == Cleaned::Away { away + 1 } else { 0 };
        if away >= AWAY {
            break;
        }
    }
    Ok(())
}

/// What became of a job that was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cleaned {
    /// Removed, postponed to its next turn, or in another process's hands.
    Done,
    /// The store cannot be reached.
    Away,
}

async fn clean(worker: &Worker, leftover: Leftover) -> Result<Cleaned> {
    let db = &worker.app.db;
    let (id, now) = (&leftover.job.spec.id, worker.app.clock.now());
    // Taking it counts as a failure until it has succeeded: a process that dies in between has failed too.
    if !scratch::take(db, &leftover, now + millis(pause(leftover.scratch_failures))).await? {
        return Ok(Cleaned::Done);
    }
    match empty(worker, &leftover).await {
        Ok(removed) => {
            scratch::removed(db, id, again(worker, &leftover)).await?;
            debug!(job.id = id, removed, "working objects removed");
        }
        Err(error) if error.kind() == Kind::NotFound => {
            info!(job.id = id, "the job's bucket is gone, and its working objects with it: {}", error.log());
            scratch::removed(db, id, None).await?;
        }
        Err(error) if leftover.scratch_failures >= TRIES => {
            warn!(job.id = id, "working objects stay where they are, for they cannot be removed: {}", error.log());
            scratch::removed(db, id, None).await?;
        }
        Err(error) => {
            warn!(job.id = id, "working objects were not removed, which is tried again: {}", error.log());
            if error.kind() == Kind::Unavailable {
                return Ok(Cleaned::Away);
            }
        }
    }
    Ok(Cleaned::Done)
}

/// Removes what lies there; how much it was.
async fn empty(worker: &Worker, leftover: &Leftover) -> Result<u64> {
    // A job whose output place cannot be read has nothing there.
    let Ok(layout) = Layout::of(&leftover.job.spec) else { return Ok(0) };
    let objects = &worker.app.objects;
    let mut removed = 0;
    for prefix in layout.attempts() {
        removed += objects.delete_prefix(&prefix).await?;
    }
    match objects.abort_uploads(&layout.root.folder()).await {
        // To list uploads is a right of its own, which the service may lack.
        Err(error) if error.kind() == Kind::AccessDenied => debug!("uploads are not looked for: {}", error.log()),
        Err(error) => return Err(error),
        Ok(aborted) => removed += aborted,
    }
    Ok(removed)
}

/// When to look again after having succeeded: once every lease is over, and once after a day.
fn again(worker: &Worker, leftover: &Leftover) -> Option<Millis> {
    let ended = leftover.job.end_time.unwrap_or_default();
    match leftover.scratch_rounds {
        0 => Some(worker.app.clock.now() + 2 * millis(worker.queue.lease())),
        1 => Some(ended + millis(LAST)),
        _ => None,
    }
}

fn pause(failures: i64) -> Duration {
    let doublings = u32::try_from(failures).unwrap_or(u32::MAX).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

fn millis(duration: Duration) -> Millis {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn four_jobs_are_cleaned_side_by_side_and_a_store_that_is_away_is_left_alone() {
        let (running, most, begun) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let count = async |_: usize, outcome: Cleaned| {
            begun.fetch_add(1, Ordering::SeqCst);
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, crate::error::Error>(outcome)
        };
        side_by_side((0..20).collect(), |job| count(job, Cleaned::Done)).await.unwrap();
        assert_eq!((begun.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (20, 4));

        begun.store(0, Ordering::SeqCst);
        side_by_side((0..20).collect(), |job| count(job, Cleaned::Away)).await.unwrap();
        assert!(begun.load(Ordering::SeqCst) < AWAY + AT_ONCE, "{begun:?}");

        // One job that never ends holds up no other.
        begun.store(0, Ordering::SeqCst);
        let count = &count;
        let all = side_by_side((0..20).collect(), |job| async move {
            let cleaned = count(job, Cleaned::Done).await;
            if job == 0 {
                std::future::pending::<()>().await;
            }
            cleaned
        });
        let others = async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = all => panic!("one has not ended"),
            () = others => assert_eq!(begun.load(Ordering::SeqCst), 20),
        }
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        assert_eq!(pause(0), FIRST_PAUSE);
        assert_eq!(pause(2), FIRST_PAUSE * 4);
        assert_eq!(pause(i64::MAX), LONGEST_PAUSE);
    }
}
