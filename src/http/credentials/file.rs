//! The file of the root keys, in the form of an AWS credentials file that only its owner can read:
//! `AWS_SHARED_CREDENTIALS_FILE=data/credentials` makes every SDK use it.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::config::Secret;
use crate::durable;
use crate::error::{Error, Result};

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) access_key: String,
    pub(super) secret_key: Secret,
    pub(super) bearer_key: Secret,
}

/// Reads the file; `None` when it is not there.
///
/// # Errors
/// `Validation` when it cannot be read.
pub(super) fn read(path: &Path) -> Result<Option<Kept>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map(Some).ok_or_else(|| {
            Error::validation(format!(
                "{} cannot be read as root keys: mend it, or remove it and run `tunesmith keys rotate`",
                path.display()
            ))
        }),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::validation(format!("{}: {cause}", path.display()))),
    }
}

fn parse(text: &str) -> Option<Kept> {
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_string())
    };
    Some(Kept {
        access_key: value("aws_access_key_id")?,
        secret_key: Secret::new(value("aws_secret_access_key")?),
        bearer_key: Secret::new(value("bearer_key")?),
    })
}

/// Keeps other processes from changing the root keys of the data folder as long as this is there. Where the system does
/// not lock folders, they are not kept from it.
pub(super) async fn alone(folder: &Path) -> Option<std::fs::File> {
    let folder = folder.to_path_buf();
    // Another process may be at it for a moment.
    let locked = tokio::task::spawn_blocking(move || {
        let folder = std::fs::File::open(folder)?;
        folder.lock()?;
        Ok::<_, std::io::Error>(folder)
    });
    locked.await.ok()?.ok()
}

/// Where keys lie until the database knows them: they are on the disk before they open anything, so a crash in between
/// loses none.
pub(super) fn staged(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Writes the keys for the owner only and makes them durable.
pub(super) fn write(path: &Path, keys: &Kept) -> Result<()> {
    let failed = |cause: std::io::Error| Error::validation(format!("Cannot write {}: {cause}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let text = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n# AWS_BEARER_TOKEN_BEDROCK\nbearer_key = {}\n",
        keys.access_key,
        keys.secret_key.expose(),
        keys.bearer_key.expose()
    );
    // What an earlier start left half written is of no use.
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(failed(cause)),
        _ => {}
    }
    let mut file = durable::Writer::create_private(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.finish()).map_err(failed)
}

/// Puts the staged file in its place.
pub(super) fn keep(path: &Path) -> Result<()> {
    let failed = |cause: std::io::Error| Error::validation(format!("Cannot write {}: {cause}", path.display()));
    durable::rename(&staged(path), path).map_err(failed)
}
