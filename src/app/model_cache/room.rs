//! Room for a download. One that the disk has no room for is refused before anything is evicted for it: otherwise one
//! model that is too large would cost everybody theirs, each time that somebody asks for it.

use std::path::Path;

use tracing::info;

use super::{Entry, ModelCache, Wanted, entries, folders};
use crate::config::ByteSize;
use crate::durable::{self, Idle, disk};
use crate::error::{Error, Kind, Result};

/// Part of its size that a fetched folder takes beside its files: the last block of each, a listing.
const BESIDE: u64 = 50;

impl ModelCache {
    /// Eviction of the least recently used folders, until the cache is within `bound` bytes.
    pub(super) async fn evict(&self, bound: u64) -> Result<()> {
        let root = self.root.clone();
        tokio::task::spawn_blocking(move || evict_least_recently_used(&root, bound)).await.map_err(Error::internal)?
    }

    /// Room for a download, of which so many bytes are free already: the least recently used folders go, and no more of
    /// them than are needed. Nothing is evicted where all idle folders together are not enough.
    ///
    /// # Errors
    /// `Unavailable`, with the name of what is wanted, when there is no room for it.
    pub(super) async fn make_room(&self, wanted: &Wanted, free: u64) -> Result<()> {
        let needed = wanted.bytes.saturating_add(wanted.bytes / BESIDE);
        let Some(missing) = needed.checked_sub(free).filter(|missing| *missing > 0) else { return Ok(()) };
        let root = self.root.clone();
        let room = tokio::task::spawn_blocking(move || clear(&root, missing)).await.map_err(Error::internal)??;
        if room >= missing {
            return Ok(());
        }
        let message = format!(
            "There is no space left for {}: it takes {}, and this machine has room for {}. Free space on its disk",
            wanted.what,
            ByteSize(needed),
            ByteSize(free.saturating_add(room))
        );
        Err(Error::new(Kind::Unavailable, message).because(std::io::Error::from(rustix::io::Errno::NOSPC)))
    }
}

/// Eviction of the least recently used folders, until the cache is within `bound` bytes. A folder that is larger than the
/// bound goes as soon as nobody uses it, and takes the place of no other until then.
fn evict_least_recently_used(root: &Path, bound: u64) -> Result<()> {
    let mut all = Vec::new();
    for folder in folders(root)? {
        all.extend(entries(&folder)?);
    }
    let (large, mut usual): (Vec<_>, Vec<_>) = all.into_iter().partition(|entry| entry.bytes > bound);
    usual.sort_by_key(|entry| entry.used);
    let mut bytes: u64 = usual.iter().map(|entry| entry.bytes).sum();
    for entry in large.into_iter().filter(|entry| entry.whole) {
        evict(&entry)?;
    }
    for entry in usual.into_iter().filter(|entry| entry.whole) {
        if bytes <= bound {
            break;
        }
        if evict(&entry)? {
            bytes -= entry.bytes;
        }
    }
    Ok(())
}

fn evict(entry: &Entry) -> Result<bool> {
    let gone = durable::remove_idle(&entry.path)?;
    if gone {
        info!(bytes = entry.bytes, "evicted {} from the cache", entry.path.display());
    }
    Ok(gone)
}

/// Eviction of idle folders of at least so many bytes together, or of none where there are not as many. Gives the bytes
/// that were found.
fn clear(root: &Path, missing: u64) -> Result<u64> {
    let mut all = Vec::new();
    for folder in folders(root)? {
        all.extend(entries(&folder)?.into_iter().filter(|entry| entry.whole));
    }
    all.sort_by_key(|entry| entry.used);
    let (mut room, mut idle): (u64, Vec<(Idle, u64)>) = (0, Vec::new());
    for entry in all {
        if room >= missing {
            break;
        }
        if let Some(claimed) = durable::claim(&entry.path)? {
            room += entry.bytes;
            idle.push((claimed, entry.bytes));
        }
    }
    if room >= missing {
        for (folder, bytes) in idle {
            info!(bytes, "evicted {} from the cache", folder.path().display());
            folder.remove()?;
        }
    }
    Ok(room)
}

/// Free bytes on the disk of a folder; no bound where the system does not tell.
pub(super) fn free(folder: &Path) -> u64 {
    disk::space(folder).map_or(u64::MAX, |space| space.free)
}
