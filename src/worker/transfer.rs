//! Folders to S3 and back. A folder travels with a listing of its files' digests, written last: where
//! the listing lies, the folder is whole, and what does not match it is not used.

use std::collections::BTreeMap;
use std::path::Path;

use super::halt::Halt;
use super::retry::retry_unavailable;
use crate::durable::{self, Digest};
use crate::error::{Error, Kind, Result};
use crate::objects::{Entry, FOLDER_LISTING, Folder, Objects, Put, Uri};

/// Every file under `path`.
pub(crate) async fn folder(path: &Path) -> Result<Folder> {
    let folder = path.to_path_buf();
    blocking(move || {
        let mut files = BTreeMap::new();
        walk(&folder, &folder, &mut files)?;
        Ok(Folder { files })
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

fn walk(root: &Path, folder: &Path, files: &mut BTreeMap<String, Entry>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(root, &path, files)?;
            continue;
        }
        let name: Vec<_> = path
            .strip_prefix(root)
            .map_err(Error::internal)?
            .components()
            .map(|part| part.as_os_str().to_string_lossy())
            .collect();
        let Digest { size, sha256 } = durable::digest(&path)?;
        files.insert(name.join("/"), Entry { size, sha256 });
    }
    Ok(())
}

/// Uploads the listed files of `folder` under `to`, the listing last.
pub(crate) async fn upload(
    objects: &Objects,
    halt: &Halt,
    folder: &Path,
    listing: &Folder,
    to: &Uri,
    put: &Put<'_>,
) -> Result<()> {
    for name in listing.files.keys() {
        let (path, uri) = (Folder::place(folder, name)?, to.join(name));
        retry_unavailable(halt, "uploading a file", async || objects.put_file(&uri, &path, put).await).await?;
    }
    let uri = to.join(FOLDER_LISTING);
    let bytes = serde_json::to_vec_pretty(listing)?;
    retry_unavailable(halt, "uploading a listing", async || objects.put_bytes(&uri, bytes.clone(), put).await).await
}

/// The listing under `from`, or `None` when the folder was never completed.
pub(crate) async fn listing(objects: &Objects, halt: &Halt, from: &Uri) -> Result<Option<Folder>> {
    retry_unavailable(halt, "reading a listing", async || objects.folder(from).await).await
}

/// Downloads the listed files into `folder`; `false` when one is missing or does not match its digest.
pub(crate) async fn download(
    objects: &Objects,
    halt: &Halt,
    from: &Uri,
    listing: &Folder,
    folder: &Path,
) -> Result<bool> {
    for (name, entry) in &listing.files {
        let (path, uri) = (Folder::place(folder, name)?, from.join(name));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match retry_unavailable(halt, "downloading a file", async || objects.get_to_file(&uri, &path).await).await {
            Ok(fetched) if fetched.sha256 == entry.sha256 => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == Kind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listing_tells_every_file_by_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("adapter")).unwrap();
        std::fs::write(folder.path().join("adapter/a.bin"), b"abc").unwrap();
        std::fs::write(folder.path().join("b"), b"").unwrap();
        let listing = super::folder(folder.path()).await.unwrap();
        assert_eq!(listing.files.keys().collect::<Vec<_>>(), ["adapter/a.bin", "b"]);
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(listing.files["adapter/a.bin"], Entry { size: 3, sha256: abc.into() });
    }
}
