//! The data folder: database, objects, caches and keys lie in it, so it is its owner's alone.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::Config;
use crate::error::{Error, Result};

/// Read, write and search for the owner; nothing for anybody else.
const OWNER_ONLY: u32 = 0o700;

impl Config {
    /// Makes the data folder, or closes an existing one to everybody but its owner.
    ///
    /// # Errors
    /// `Validation` when it cannot be made. A folder of another owner keeps its mode, with a warning.
    pub fn open_data_dir(&self) -> Result<()> {
        let folder = self.data_dir.as_path();
        std::fs::DirBuilder::new().recursive(true).mode(OWNER_ONLY).create(folder).map_err(|cause| {
            Error::validation(format!(
                "Cannot make the data folder {}: {cause}. Set TUNESMITH_DATA_DIR to a folder that can be written",
                folder.display()
            ))
        })?;
        if let Err(cause) = close(folder) {
            tracing::warn!("the data folder {} stays open to others: {cause}", folder.display());
        }
        Ok(())
    }
}

fn close(folder: &Path) -> std::io::Result<()> {
    let mut mode = std::fs::metadata(folder)?.permissions();
    if mode.mode() & 0o777 == OWNER_ONLY {
        return Ok(());
    }
    mode.set_mode(OWNER_ONLY);
    std::fs::set_permissions(folder, mode)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn the_data_folder_is_for_its_owner_only_also_where_an_earlier_release_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (new, old) = (folder.path().join("a/new"), folder.path().join("old"));
        std::fs::create_dir(&old).unwrap();
        std::fs::set_permissions(&old, PermissionsExt::from_mode(0o755)).unwrap();
        for data in [&new, &old] {
            let config = Line::parse_from(["test", "--data-dir", data.to_str().unwrap()]).config;
            config.open_data_dir().unwrap();
            assert_eq!(mode(data), OWNER_ONLY, "{}", data.display());
        }
    }
}
