//! A folder of objects with a listing of its files' digests, written last: where the listing lies, the folder is
//! whole, and what does not match it is not used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Objects, Uri};
use crate::error::{Error, Kind, Result};

/// The object that makes a folder whole.
pub const FOLDER_LISTING: &str = "listing.json";
/// More than any listing we write: a few hundred files at most.
const LISTING_CAP: u64 = 4 << 20;

/// What a folder holds: path relative to it, with `/`, to digest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// Every file.
    pub files: BTreeMap<String, Entry>,
}

/// One file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
}

impl Folder {
    /// What a listing says; `None` when it is none: what it names is used as part of names here, so a digest has to be
    /// one.
    fn parse(listing: &[u8]) -> Option<Self> {
        let folder: Self = serde_json::from_slice(listing).ok()?;
        let is_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_digest = |entry: &Entry| entry.sha256.len() == 64 && entry.sha256.bytes().all(is_hex);
        folder.files.values().all(is_digest).then_some(folder)
    }

    /// Where a listed file belongs below `folder`; a listing from a store may not name files outside of it.
    ///
    /// # Errors
    /// When it does.
    pub fn place(folder: &Path, name: &str) -> Result<PathBuf> {
        let inside = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if !inside {
            return Err(Error::internal(anyhow::anyhow!("a listing names {name:?}")));
        }
        Ok(folder.join(name))
    }
}

impl Objects {
    /// What the folder under `from` holds, or `None` when it was never completed.
    ///
    /// # Errors
    /// When the store is away or refuses.
    pub async fn folder(&self, from: &Uri) -> Result<Option<Folder>> {
        match self.get_bytes(&from.join(FOLDER_LISTING), LISTING_CAP).await {
            Ok(bytes) => Ok(Folder::parse(&bytes)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_cannot_reach_outside_its_folder() {
        for name in ["../x", "a/../../x", "/etc/passwd", "a//b", "."] {
            assert!(Folder::place(Path::new("/work"), name).is_err(), "{name}");
        }
        assert!(Folder::place(Path::new("/work"), "a/b").is_ok());
    }

    #[test]
    fn a_listing_without_whole_digests_is_none() {
        let listing = |sha256: &str| format!(r#"{{"files": {{"a": {{"size": 1, "sha256": "{sha256}"}}}}}}"#);
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(Folder::parse(listing(&good).as_bytes()).unwrap().files["a"].sha256, good);
        for bad in ["", "../../x", &good[1..], &good.to_uppercase(), &format!("/{}", &good[1..])] {
            assert_eq!(Folder::parse(listing(bad).as_bytes()), None, "{bad}");
        }
        assert_eq!(Folder::parse(b"not json"), None);
    }
}
