//! Disk of a folder: whether it can be written, its size, and its free space.

use std::io;
use std::path::Path;

use crate::clock::Clock;

/// Size of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// All of it.
    pub(crate) total: u64,
    /// What the service's user may still write.
    pub(crate) free: u64,
}

/// Space of the file system that `folder` is on, or will be made on.
///
/// # Errors
/// When the system does not tell.
pub(crate) fn space(folder: &Path) -> io::Result<Space> {
    let existing = folder.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."));
    let facts = rustix::fs::statvfs(existing)?;
    let bytes = |blocks: u64| blocks.saturating_mul(facts.f_frsize);
    Ok(Space { total: bytes(facts.f_blocks), free: bytes(facts.f_bavail) })
}

/// Write probe: a file is written in the folder, made durable, and removed. The folder is made when it is missing.
pub(crate) fn probe(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!(".probe-{}", Clock::system().id()));
    let written = super::write(&path, [0; 4096]);
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_and_left_as_it_was() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("new");
        let before = space(&folder).unwrap();
        assert!(before.free > 0 && before.free <= before.total, "{before:?}");
        assert!(!folder.exists());
        probe(&folder).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        std::fs::write(parent.path().join("file"), "").unwrap();
        assert!(probe(&parent.path().join("file/below")).is_err());
    }
}
