//! Folders in use. Whoever uses a folder that others may remove holds it: a shared lock of the operating system, which
//! ends with the process however that dies, and which processes of one data folder see of each other. Only a folder that
//! nobody holds can be removed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Keeps a folder where it is while this, or a clone, is there.
#[derive(Debug, Clone)]
pub struct Hold {
    /// The lock ends when the last clone closes it.
    _lock: Arc<File>,
}

/// Holds the folder at `path`; `None` when none is there, or it is just being removed.
///
/// # Errors
/// When the system cannot lock.
pub fn hold(path: &Path) -> io::Result<Option<Hold>> {
    let Some(folder) = open(path)? else { return Ok(None) };
    match folder.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(cause)) => return Err(cause),
    }
    // It may have been removed, and another put in its place, before the lock was there.
    Ok(is_at(&folder, path).then(|| Hold { _lock: Arc::new(folder) }))
}

/// A folder that nobody uses, and that nobody can begin to use while this is there.
#[derive(Debug)]
pub struct Idle {
    path: PathBuf,
    /// The lock ends with it.
    _lock: File,
}

impl Idle {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }
}

/// Takes the folder at `path` for this caller alone; `None` when none is there, or somebody holds it.
///
/// # Errors
/// When the system cannot lock.
pub fn claim(path: &Path) -> io::Result<Option<Idle>> {
    let Some(folder) = open(path)? else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(cause)) => return Err(cause),
    }
    Ok(is_at(&folder, path).then(|| Idle { path: path.to_path_buf(), _lock: folder }))
}

/// Removes the folder at `path` unless somebody holds it; whether it is gone.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_idle(path: &Path) -> io::Result<bool> {
    match claim(path)? {
        Some(idle) => idle.remove().map(|()| true),
        None => Ok(open(path)?.is_none()),
    }
}

/// Notes that the folder was used now, for those who remove what was not used for longest.
pub fn touch(path: &Path, now: SystemTime) {
    // Where the system does not let us, it goes a little early.
    let _ = File::open(path).and_then(|folder| folder.set_modified(now));
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(folder) => Ok(Some(folder)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// Whether `path` still leads to this very folder.
fn is_at(folder: &File, path: &Path) -> bool {
    let (Ok(held), Ok(there)) = (folder.metadata(), fs::metadata(path)) else { return false };
    (held.dev(), held.ino()) == (there.dev(), there.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_in_use_until_the_last_who_holds_it_has_let_go() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a");
        assert!(hold(&folder).unwrap().is_none(), "nothing is there");
        assert!(remove_idle(&folder).unwrap());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "content").unwrap();
        let first = hold(&folder).unwrap().unwrap();
        let (second, clone) = (hold(&folder).unwrap().unwrap(), first.clone());
        drop(first);
        assert!(!remove_idle(&folder).unwrap());
        drop(clone);
        assert!(!remove_idle(&folder).unwrap());
        assert!(folder.join("file").exists());
        drop(second);
        assert!(remove_idle(&folder).unwrap() && !folder.exists());
    }

    #[test]
    fn who_came_too_late_holds_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a");
        fs::create_dir(&folder).unwrap();
        let removing = File::open(&folder).unwrap();
        removing.lock().unwrap();
        assert!(hold(&folder).unwrap().is_none(), "it is being removed");
        fs::remove_dir(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert!(!is_at(&removing, &folder), "another is in its place");
        assert!(hold(&folder).unwrap().is_some());
    }
}
