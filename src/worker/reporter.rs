//! Shows a running attempt to its owner: progress and sub-tasks in the database each second, the growing
//! metrics file in S3 each few seconds. Nothing here can fail the job; what could not be written is
//! written the next time.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use super::halt::Halt;
use super::observer::News;
use crate::app::layout::{Layout, TRAINING_METRICS, TRAJECTORIES};
use crate::error::Result;
use crate::jobs::Claim;
use crate::objects::Objects;

const ROWS: Duration = Duration::from_secs(1);
const FILES: Duration = Duration::from_secs(3);
/// What is shown while it grows.
const GROWING: [&str; 2] = [TRAINING_METRICS, TRAJECTORIES];

/// Writes news until the sender is gone.
pub(crate) async fn progress(claim: Claim, mut news: watch::Receiver<News>) {
    let mut stage = None;
    while news.changed().await.is_ok() {
        let latest = news.borrow_and_update().clone();
        if latest.stage != stage {
            match claim.record_tasks().await {
                Ok(_) => stage = latest.stage,
                Err(error) => warn!(job.id = claim.job.spec.id, "a stage was not recorded: {}", error.log()),
            }
        }
        if let Err(error) = claim.progress(&latest.progress, false).await {
            warn!(job.id = claim.job.spec.id, "progress was not recorded: {}", error.log());
        }
        tokio::time::sleep(ROWS).await;
    }
}

/// Uploads the training metrics, and what a policy says, whenever they have grown, until dropped.
pub(crate) async fn metrics(claim: &Claim, objects: &Objects, layout: &Layout, output: &Path, halt: &Halt) {
    let mut uploaded = GROWING.map(|_| 0);
    loop {
        tokio::time::sleep(FILES).await;
        for (name, uploaded) in GROWING.into_iter().zip(&mut uploaded) {
            let path = output.join(name);
            let size = std::fs::metadata(&path).map_or(0, |file| file.len());
            if size == *uploaded || halt.reason().is_some() {
                continue;
            }
            match upload(claim, objects, layout, (name, &path)).await {
                Ok(()) => *uploaded = size,
                Err(error) => warn!(job.id = claim.job.spec.id, "{name} was not uploaded: {}", error.log()),
            }
        }
    }
}

async fn upload(claim: &Claim, objects: &Objects, layout: &Layout, (name, path): (&str, &Path)) -> Result<()> {
    // Read whole, and cut after the last full line: the trainer is writing meanwhile.
    let mut bytes = std::fs::read(path)?;
    bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
    if claim.status().await?.is_some() {
        objects.put_bytes(&layout.output(name), bytes, &layout.put()).await?;
    }
    Ok(())
}
