//! Checkpoints in S3: addressed by attempt and step, whole when their listing is there. A new attempt
//! goes on from the newest whose digests hold, whichever attempt wrote it.

use std::collections::BTreeSet;
use std::path::Path;

use tracing::{info, warn};

use super::halt::Halt;
use super::retry::retry_unavailable;
use super::transfer;
use crate::app::layout::{CheckpointPlace, Layout};
use crate::error::Result;
use crate::objects::{Objects, Uri};

/// How many checkpoints of one attempt are kept: the newest, and one to fall back on.
const KEPT: usize = 2;

/// Where one attempt keeps its checkpoints.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    pub(crate) objects: Objects,
    pub(crate) layout: Layout,
    pub(crate) attempt: i64,
    pub(crate) halt: Halt,
}

impl Checkpoints {
    /// Uploads the checkpoint in `folder`, then removes this attempt's oldest.
    pub(crate) async fn upload(&self, folder: &Path, step: u64) -> Result<()> {
        let listing = transfer::folder(folder).await?;
        let to = self.layout.checkpoint(self.attempt, step);
        transfer::upload(&self.objects, &self.halt, folder, &listing, &to, &self.layout.put()).await?;
        // What this version writes, of this attempt alone: a job may have left thousands of other objects.
        let [own, _] = self.layout.checkpoints(self.attempt);
        for old in self.list(&[own]).await?.iter().rev().skip(KEPT) {
            let prefix = old.folder.folder();
            retry_unavailable(&self.halt, "removing an old checkpoint", async || {
                self.objects.delete_prefix(&prefix).await
            })
            .await?;
        }
        Ok(())
    }

    /// Brings the newest whole checkpoint into `folder/step-<step>`; returns its step.
    pub(crate) async fn download_newest(&self, folder: &Path) -> Result<Option<u64>> {
        let mut found = self.list(&self.layout.attempts()).await?;
        found.retain(|place| place.attempt < self.attempt);
        // The newest step first; of equal steps, the newest attempt's.
        found.sort_by_key(|place| std::cmp::Reverse((place.step, place.attempt)));
        for CheckpointPlace { attempt, step, folder: from } in found {
            let Some(listing) = transfer::listing(&self.objects, &self.halt, &from).await? else { continue };
            let into = folder.join(format!("step-{step:08}"));
            if transfer::download(&self.objects, &self.halt, &from, &listing, &into).await? {
                info!(checkpoint.step = step, checkpoint.attempt = attempt, "going on from a checkpoint");
                return Ok(Some(step));
            }
            warn!(checkpoint.step = step, checkpoint.attempt = attempt, "a checkpoint does not match its digests");
            std::fs::remove_dir_all(&into)?;
        }
        Ok(None)
    }

    /// Every checkpoint under `prefixes` that has any object, by attempt and step.
    async fn list(&self, prefixes: &[Uri]) -> Result<Vec<CheckpointPlace>> {
        let mut found = BTreeSet::new();
        for prefix in prefixes {
            let list = async || self.objects.list(prefix).all().await;
            let keys = retry_unavailable(&self.halt, "listing checkpoints", list).await?;
            found.extend(keys.iter().filter_map(|object| CheckpointPlace::of(&object.uri)));
        }
        Ok(found.into_iter().collect())
    }
}
