//! Removes the working objects of jobs that have ended. Not before a lease has passed since the end:
//! until then a worker that lost the job may still be writing.

use tracing::debug;

use super::Worker;
use crate::app::layout::Layout;
use crate::error::Result;
use crate::store::queue;

/// Jobs cleaned per round.
const ROUND: i64 = 20;

/// One round.
pub(crate) async fn remove(worker: &Worker) -> Result<()> {
    let lease_ms = i64::try_from(worker.queue.lease().as_millis()).unwrap_or(i64::MAX / 2);
    let ended_before = worker.app.clock.now() - lease_ms;
    for job in queue::scratch(&worker.app.db, ended_before, ROUND).await? {
        let layout = Layout::of(&job.spec)?;
        worker.app.objects.delete_prefix(&layout.attempts()).await?;
        queue::scratch_removed(&worker.app.db, &job.spec.id).await?;
        debug!(job.id = job.spec.id, "working objects removed");
    }
    Ok(())
}
