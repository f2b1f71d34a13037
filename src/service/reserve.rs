//! A little space that is kept back on the data folder's disk. Even to be opened, and to write down what is removed, a
//! database takes some: a start that finds the disk full lets go of the reserve, so that its owner can remove the rest.

use std::path::Path;

use tracing::{debug, warn};

use crate::durable::{self, disk};
use crate::error::is_full;

const NAME: &str = "reserve";
const BYTES: u64 = 1 << 20;
/// Where less than so much is free, nothing is kept back.
const PLENTY: u64 = 16 * BYTES;

/// Keeps the reserve, or lets go of it where the disk is full.
pub(super) fn tend(folder: &Path) {
    let path = folder.join(NAME);
    let free = disk::space(folder).map_or(0, |space| space.free);
    let full = free < BYTES || disk::probe(folder).is_err_and(|cause| is_full(&cause));
    if full {
        match std::fs::remove_file(&path) {
            Ok(()) => warn!("the disk of {} is full: the reserve is let go", folder.display()),
            Err(cause) => warn!("the disk of {} is full, and there is no reserve: {cause}", folder.display()),
        }
    } else if free >= PLENTY && std::fs::metadata(&path).map_or(0, |facts| facts.len()) < BYTES {
        let zeros = vec![0; usize::try_from(BYTES).unwrap_or_default()];
        if let Err(cause) = durable::replace(&path, zeros) {
            debug!("no space is kept back: {cause}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_gets_what_was_kept_back() {
        let folder = tempfile::tempdir().unwrap();
        let kept = || std::fs::metadata(folder.path().join(NAME)).map(|facts| facts.len()).ok();
        tend(folder.path());
        assert_eq!(kept(), Some(BYTES));
        let full = durable::faults::fail_nth(folder.path(), 1);
        tend(folder.path());
        assert_eq!(kept(), None);
        drop(full);
        tend(folder.path());
        assert_eq!(kept(), Some(BYTES));
    }
}
