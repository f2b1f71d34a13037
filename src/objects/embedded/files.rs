//! The files that hold objects' bytes. A name is 32 random hexadecimal digits and says nothing
//! about the object, so no key can lead outside the folder or onto another object.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Clock;
use crate::error::{Error, Result};

/// The steps of a put, in order. Tests make one of them fail, as a full disk would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    Write,
    SyncFile,
    SyncFolder,
    Begin,
    Commit,
    Discard,
}

/// The folder of files, held by one process.
pub(super) struct Files {
    folder: PathBuf,
    clock: Clock,
    pins: Mutex<Pins>,
    /// Held as long as the process lives; the operating system frees it even after SIGKILL.
    _lock: File,
    #[cfg(test)]
    pub(super) fail_at: Mutex<Option<Step>>,
}

/// Objects that are being read: their files outlive the object until the last reader is done.
#[derive(Default)]
struct Pins {
    readers: HashMap<String, usize>,
    doomed: HashMap<String, Vec<String>>,
}

impl Files {
    /// Takes hold of `root`, making it when it is missing.
    pub(super) fn open(root: &Path, clock: Clock) -> Result<Self> {
        let unusable = |cause: io::Error| {
            Error::validation(format!("The folder for objects, {}, cannot be used: {cause}", root.display()))
        };
        let folder = root.join("files");
        std::fs::create_dir_all(&folder).map_err(unusable)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(root.join("lock")).map_err(unusable)?;
        lock.try_lock().map_err(|cause| match cause {
            TryLockError::WouldBlock => Error::validation(format!(
                "Another process uses the folder for objects, {}: stop it, or set another TUNESMITH_DATA_DIR",
                root.display()
            )),
            TryLockError::Error(cause) => unusable(cause),
        })?;
        Ok(Self {
            folder,
            clock,
            pins: Mutex::default(),
            _lock: lock,
            #[cfg(test)]
            fail_at: Mutex::default(),
        })
    }

    /// Removes every file that no row knows: what a crash left between a file and its row. Says how many.
    pub(super) fn sweep(&self, known: &HashSet<String>) -> io::Result<usize> {
        let mut swept = 0;
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
                continue;
            }
            match std::fs::remove_file(entry.path()) {
                Ok(()) => swept += 1,
                // Not ours (a folder someone made); it does no harm.
                Err(cause) => tracing::warn!("{} stays behind: {cause}", entry.path().display()),
            }
        }
        Ok(swept)
    }

    /// A new empty file. It is removed again unless [`Fresh::keep`] is called.
    pub(super) fn create(self: &Arc<Self>) -> io::Result<(File, Fresh)> {
        self.pass(Step::Create)?;
        let name = self.name();
        let path = self.folder.join(&name);
        // Never opens what is there, nor follows a link.
        let file = OpenOptions::new().create_new(true).write(true).open(&path)?;
        Ok((file, Fresh { path, name, kept: false }))
    }

    /// A random name: of a file, of an object, of an upload.
    pub(super) fn name(&self) -> String {
        hex::encode(self.clock.random::<16>())
    }

    /// Opens a file for reading.
    pub(super) fn read(&self, name: &str) -> io::Result<File> {
        let path = self.folder.join(name);
        // A link planted in the folder must not lead a reader elsewhere.
        if !std::fs::symlink_metadata(&path)?.is_file() {
            return Err(io::Error::other(format!("{} is not a file", path.display())));
        }
        File::open(path)
    }

    /// Makes the names of new files durable.
    pub(super) fn sync_folder(&self) -> io::Result<()> {
        self.pass(Step::SyncFolder)?;
        File::open(&self.folder)?.sync_all()
    }

    /// Keeps the files of `object` until the pin is dropped. To be called while the index cannot
    /// discard it, see `Index::gate`.
    pub(super) fn pin(self: &Arc<Self>, object: &str) -> Pin {
        *self.pins().readers.entry(object.to_string()).or_default() += 1;
        Pin { files: Arc::clone(self), object: object.to_string() }
    }

    /// Removes the files of an object that no row points at any more, at once or after its last reader.
    pub(super) fn discard(&self, object: &str, names: Vec<String>) {
        let mut pins = self.pins();
        if pins.readers.contains_key(object) {
            pins.doomed.entry(object.to_string()).or_default().extend(names);
            return;
        }
        drop(pins);
        self.remove(&names);
    }

    fn remove(&self, names: &[String]) {
        for name in names {
            let removed = self.pass(Step::Discard).and_then(|()| std::fs::remove_file(self.folder.join(name)));
            if let Err(cause) = removed {
                // It costs space until the next start sweeps it; the object is right either way.
                tracing::warn!("file {name} stays behind: {cause}");
            }
        }
    }

    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a test makes a step fail; nothing otherwise.
    pub(super) fn pass(&self, step: Step) -> io::Result<()> {
        #[cfg(test)]
        if *self.fail_at.lock().unwrap() == Some(step) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let _ = step;
        Ok(())
    }
}

/// A file no row points at yet. Dropped, it is removed: the put failed or its client went away.
pub(super) struct Fresh {
    path: PathBuf,
    pub(super) name: String,
    kept: bool,
}

impl Fresh {
    /// From here on a row may point at it, so it stays whatever happens. If the commit fails after all
    /// the next start sweeps it.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.kept {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// A reader's hold on an object's files.
pub(super) struct Pin {
    files: Arc<Files>,
    object: String,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.files.pins();
        if let Some(readers) = pins.readers.get_mut(&self.object) {
            *readers -= 1;
            if *readers > 0 {
                return;
            }
        }
        pins.readers.remove(&self.object);
        let doomed = pins.doomed.remove(&self.object).unwrap_or_default();
        drop(pins);
        self.files.remove(&doomed);
    }
}
