//! Room for what is to be fetched. What the disk has no room for is refused before anything is removed for it: otherwise
//! one model that is too large would cost everybody theirs, each time that somebody asks for it.

use std::path::Path;

use tracing::info;

use super::{Entry, ModelCache, Wanted, entries, folders};
use crate::config::ByteSize;
use crate::durable::{self, Idle};
use crate::error::{Error, Kind, Result};

/// Part of its size that a fetched folder takes beside its files: the last block of each, a listing.
const BESIDE: u64 = 50;

impl ModelCache {
    /// Removes what was not used for longest until no more than `bound` bytes are left.
    pub(super) async fn evict(&self, bound: u64) -> Result<()> {
        let root = self.root.clone();
        tokio::task::spawn_blocking(move || bring_within(&root, bound)).await.map_err(Error::internal)?
    }

    /// Makes room where so many bytes are free: what was not used for longest goes first, and no more than is needed.
    /// Where all that nobody uses would not be enough, everything stays.
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

/// Removes what was not used for longest until no more than `bound` bytes are left. A folder that is larger alone goes as
/// soon as nobody uses it, and takes the place of no other until then.
fn bring_within(root: &Path, bound: u64) -> Result<()> {
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

/// Removes folders of at least so many bytes that nobody uses; nothing when there are not as many. How many there are.
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

/// Bytes that may still be written on the disk that `folder` is on, or will be made on; no bound where the system does
/// not say.
pub(super) fn free(folder: &Path) -> u64 {
    let there = folder.ancestors().chain([Path::new(".")]).find(|place| place.exists());
    let facts = there.and_then(|place| rustix::fs::statvfs(place).ok());
    facts.map_or(u64::MAX, |facts| facts.f_bavail.saturating_mul(facts.f_frsize))
}
