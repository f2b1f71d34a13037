//! A folder for what a command needs only while it runs.

use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::error::Result;

/// An empty folder among the system's temporary ones, removed with all that lies in it, also when the command fails.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// For the command of this name.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(super) fn new(command: &str, clock: &Clock) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("tunesmith-{command}-{}-{}", std::process::id(), clock.id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays there is small, and the next start of the machine clears it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
