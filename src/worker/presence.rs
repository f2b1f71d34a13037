//! Which worker processes of this data folder are alive. Each holds a lock on a file of its own for as
//! long as it lives; the operating system lets go of the lock however it dies. A process that starts can
//! therefore free the jobs of those that were killed at once, instead of waiting for their leases to end.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::Result;

/// This process among the workers of its data folder; it is present until this is dropped.
#[derive(Debug)]
pub(crate) struct Presence {
    /// The name under which this process claims jobs.
    pub(crate) worker: String,
    /// A folder for this process alone, which whoever works makes, removed with it.
    pub(crate) work_dir: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Presence {
    /// Announces `worker` in `data_dir`.
    pub(crate) fn announce(data_dir: &Path, worker: String) -> Result<Self> {
        let folder = data_dir.join("workers");
        fs::create_dir_all(&folder)?;
        let lock_path = folder.join(format!("{worker}.lock"));
        let lock = File::create(&lock_path)?;
        lock.lock()?;
        let work_dir = folder.join(&worker);
        Ok(Self { worker, work_dir, lock_path, _lock: lock })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // What stays is swept by the next process that starts here.
        let _ = fs::remove_dir_all(&self.work_dir);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// A worker process that is gone.
#[derive(Debug)]
pub(crate) struct Dead {
    /// The name under which it claimed jobs.
    pub(crate) worker: String,
    lock_path: PathBuf,
    work_dir: PathBuf,
    _lock: File,
}

impl Dead {
    /// Removes what it left on disk; to be called when its jobs are freed.
    pub(crate) fn remove(self) -> Result<()> {
        if self.work_dir.is_dir() {
            fs::remove_dir_all(&self.work_dir)?;
        }
        fs::remove_file(&self.lock_path)?;
        Ok(())
    }
}

/// The workers of `data_dir` that are gone. Their locks are held meanwhile, so that two processes that
/// start together do not both bury them.
pub(crate) fn dead(data_dir: &Path) -> Result<Vec<Dead>> {
    let folder = data_dir.join("workers");
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut dead = Vec::new();
    for entry in entries {
        let lock_path = entry?.path();
        let Some(worker) = lock_path.file_name().and_then(|name| name.to_str()?.strip_suffix(".lock")) else {
            continue;
        };
        let Ok(lock) = File::open(&lock_path) else { continue };
        match lock.try_lock() {
            Ok(()) => {
                let worker = worker.to_string();
                dead.push(Dead { work_dir: folder.join(&worker), worker, lock_path, _lock: lock });
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(cause)) => return Err(cause.into()),
        }
    }
    Ok(dead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_are_found_and_nothing_of_them_stays() {
        let folder = tempfile::tempdir().unwrap();
        let alive = Presence::announce(folder.path(), "alive".into()).unwrap();
        let gone = Presence::announce(folder.path(), "gone".into()).unwrap();
        fs::create_dir_all(&gone.work_dir).unwrap();
        fs::write(gone.work_dir.join("left"), "behind").unwrap();
        // Killed: the lock goes, the files stay.
        let Presence { work_dir, _lock, .. } = &gone;
        _lock.unlock().unwrap();
        let work_dir = work_dir.clone();

        let found = dead(folder.path()).unwrap();
        assert_eq!(found.iter().map(|dead| dead.worker.as_str()).collect::<Vec<_>>(), ["gone"]);
        assert!(dead(folder.path()).unwrap().is_empty(), "one undertaker at a time");
        for dead in found {
            dead.remove().unwrap();
        }
        assert!(!work_dir.exists() && alive.lock_path.exists());
        drop(alive);
        drop(gone);
        assert_eq!(fs::read_dir(folder.path().join("workers")).unwrap().count(), 0);
    }
}
