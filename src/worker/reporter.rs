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
use crate::error::{Error, Result};
use crate::jobs::Claim;
use crate::jobs::job::Stage;
use crate::objects::Objects;

const ROWS: Duration = Duration::from_secs(1);
const FILES: Duration = Duration::from_secs(3);
/// What is shown while it grows.
const GROWING: [&str; 2] = [TRAINING_METRICS, TRAJECTORIES];

/// Writes news until dropped; what could not be written is written when the database is there again.
pub(crate) async fn progress(claim: &Claim, news: &watch::Sender<News>) {
    let mut heard = news.subscribe();
    let mut stage = None;
    let mut told = false;
    while heard.changed().await.is_ok() {
        while let Err(error) = write(claim, news, &mut heard, &mut stage).await {
            if !told {
                warn!(job.id = claim.job.spec.id, "progress is not recorded for now: {}", error.log());
            }
            told = true;
            tokio::time::sleep(ROWS).await;
        }
        told = false;
        tokio::time::sleep(ROWS).await;
    }
}

/// Writes what is still to be written when the trainer has ended: its last events, if they can be.
pub(crate) async fn last_words(claim: &Claim, news: &watch::Sender<News>) {
    let mut heard = news.subscribe();
    let mut stage = heard.borrow().stage;
    let writing = write(claim, news, &mut heard, &mut stage);
    if let Err(error) = tokio::time::timeout(ROWS * 3, writing).await.map_err(Error::unavailable).flatten() {
        warn!(job.id = claim.job.spec.id, "the last progress was not recorded: {}", error.log());
    }
}

async fn write(
    claim: &Claim,
    news: &watch::Sender<News>,
    heard: &mut watch::Receiver<News>,
    stage: &mut Option<Stage>,
) -> Result<()> {
    // Whether the row is still ours the lease finds out.
    let latest = heard.borrow_and_update().clone();
    if latest.stage != *stage {
        _ = claim.record_tasks().await?;
        *stage = latest.stage;
    }
    for (kind, detail) in &latest.events {
        _ = claim.tell(kind, detail).await?;
        news.send_if_modified(|news| {
            news.events.remove(0);
            false
        });
    }
    _ = claim.progress(&latest.progress, latest.kept > latest.recorded).await?;
    news.send_if_modified(|news| {
        news.recorded = news.recorded.max(latest.kept);
        false
    });
    Ok(())
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
