//! The data folder: database, objects, caches and keys lie in it, so it is its owner's alone.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::Config;
use crate::error::{Error, Result};

/// Read, write and search for the owner; nothing for anybody else.
const OWNER_ONLY: u32 = 0o700;
/// What everybody else may.
const OTHERS: u32 = 0o077;
/// What a folder is known by as one of this service's: its database, its embedded store, the model that every start
/// unpacks.
const MARKS: [&str; 3] = ["tunesmith.db", "objects/index.db", "models/tunesmith.starter-v1:0"];

impl Config {
    /// Makes the data folder, or closes an existing one to everybody but its owner.
    ///
    /// # Errors
    /// `Validation` when it cannot be made. A folder of another owner, or with files of others in it, keeps its mode, with
    /// a warning.
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
    if mode.mode() & OTHERS == 0 {
        return Ok(());
    }
    if !is_ours(folder)? {
        return Err(std::io::Error::other(
            "it holds files that are not this service's. Set TUNESMITH_DATA_DIR to a folder of its own, or close this one",
        ));
    }
    // What stands above the rights, such as the group that new files get, stays.
    mode.set_mode(mode.mode() & !0o777 | OWNER_ONLY);
    std::fs::set_permissions(folder, mode)
}

/// Whether the folder is empty (a new volume has `lost+found`), or was a data folder before.
fn is_ours(folder: &Path) -> std::io::Result<bool> {
    if MARKS.iter().any(|mark| folder.join(mark).exists()) {
        return Ok(true);
    }
    for entry in std::fs::read_dir(folder)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_folder_is_for_its_owner_only_also_where_an_earlier_release_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old, empty) = (folder.path().join("a/new"), folder.path().join("old"), folder.path().join("empty"));
        for (existing, mode) in [(&old, 0o755), (&empty, 0o2777)] {
            std::fs::create_dir(existing).unwrap();
            std::fs::set_permissions(existing, PermissionsExt::from_mode(mode)).unwrap();
        }
        std::fs::write(old.join("tunesmith.db"), "").unwrap();
        std::fs::write(old.join("notes.txt"), "").unwrap();
        std::fs::create_dir(empty.join("lost+found")).unwrap();
        for (data, mode) in [(&new, OWNER_ONLY), (&old, OWNER_ONLY), (&empty, 0o2700)] {
            open(data);
            assert_eq!(mode_of(data), mode, "{}", data.display());
        }
    }

    #[test]
    fn a_folder_with_files_of_others_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "").unwrap();
        for mode in [0o755, 0o1777, 0o2775, 0o500] {
            std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(mode)).unwrap();
            open(folder.path());
            assert_eq!(mode_of(folder.path()), mode);
        }
        let warning = std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))
            .and_then(|()| close(folder.path()))
            .unwrap_err();
        assert!(warning.to_string().contains("TUNESMITH_DATA_DIR"), "{warning}");
    }

    fn open(data: &Path) {
        Config::of(&["--data-dir", data.to_str().unwrap()]).open_data_dir().unwrap();
    }

    fn mode_of(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }
}
