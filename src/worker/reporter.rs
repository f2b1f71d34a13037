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
use crate::error::{Error, Kind, Result};
use crate::jobs::Claim;
use crate::jobs::job::Stage;
use crate::objects::{Objects, Precondition};

const ROWS: Duration = Duration::from_secs(1);
const FILES: Duration = Duration::from_secs(3);
/// How often a report is put over what was seen there, before somebody else is taken to write it.
const TRIES: usize = 5;
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
                warn!(job.id = claim.job.spec.id, "progress was not recorded and is tried again: {}", error.log());
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

/// A growing file and what of it is at its final key.
#[derive(Default)]
struct Shown {
    /// Bytes that the file had when it was uploaded last.
    size: u64,
    /// What is at the key, as far as this attempt saw it while it held the job.
    precondition: Option<Precondition>,
    /// The server knows no conditions: only the end of the job writes the file.
    given_up: bool,
}

/// Uploads the training metrics, and what a policy says, whenever they have grown, until dropped.
pub(crate) async fn metrics(claim: &Claim, objects: &Objects, layout: &Layout, output: &Path, halt: &Halt) {
    let mut shown: [Shown; 2] = Default::default();
    loop {
        tokio::time::sleep(FILES).await;
        for (name, shown) in GROWING.into_iter().zip(&mut shown) {
            let path = output.join(name);
            let size = std::fs::metadata(&path).map_or(0, |file| file.len());
            if size == shown.size || halt.reason().is_some() || shown.given_up {
                continue;
            }
            match upload(claim, objects, layout, (name, &path), &mut shown.precondition).await {
                Ok(true) => shown.size = size,
                // Looked at again the next time.
                Ok(false) => {}
                Err(error) => {
                    shown.given_up = error.kind() == Kind::Internal;
                    warn!(job.id = claim.job.spec.id, "{name} was not uploaded: {}", error.log());
                }
            }
        }
    }
}

/// Uploads a growing file over what this attempt saw there. Between the question whether the job is still the attempt's
/// and the write, another may have finished the job: then something else is there, and stays.
async fn upload(
    claim: &Claim,
    objects: &Objects,
    layout: &Layout,
    (name, path): (&str, &Path),
    precondition: &mut Option<Precondition>,
) -> Result<bool> {
    // Read whole, and cut after the last full line: the trainer is writing meanwhile.
    let mut bytes = std::fs::read(path)?;
    bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
    let uri = layout.output(name);
    let seen = match precondition.take() {
        Some(seen) => seen,
        None => objects.precondition(&uri).await?,
    };
    if claim.status().await?.is_none() {
        return Ok(false);
    }
    let stored = objects.put_bytes_over(&seen, &uri, bytes, &layout.put()).await?;
    let done = stored.is_some();
    *precondition = stored.filter(|etag| !etag.is_empty()).map(Precondition::Etag);
    Ok(done)
}

/// Puts a report of a failed job at its final key, over what the attempt sees there while it holds the job. `false`: the
/// job is no longer the attempt's.
pub(crate) async fn keep(
    claim: &Claim,
    objects: &Objects,
    layout: &Layout,
    (name, path): (&str, &Path),
) -> Result<bool> {
    let uri = layout.output(name);
    for _ in 0..TRIES {
        let seen = objects.precondition(&uri).await?;
        if claim.status().await?.is_none() {
            return Ok(false);
        }
        match objects.put_file_over(&seen, &uri, path, &layout.put()).await {
            Ok(Some(_)) => return Ok(true),
            // What was written meanwhile may be this attempt's own, whose answer was lost, or an older one's.
            Ok(None) => {}
            // The server knows no conditions: better a report than none.
            Err(error) if error.kind() == Kind::Internal => {
                objects.put_file(&uri, path, &layout.put()).await?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(Kind::Conflict, format!("{uri} was changed by someone else again and again")))
}
