//! The first keys. A first start draws an access key pair and a bearer key, unless they are preset, and
//! keeps them in the data folder in the form of an AWS credentials file that only its owner can read:
//! `AWS_SHARED_CREDENTIALS_FILE=data/credentials` makes every SDK use them. The same pair opens the
//! embedded S3 server.

use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::clock::Clock;
use crate::config::{Config, Secret};
use crate::error::{Error, Result};
use crate::store::Db;
use crate::store::keys::{self, Key, KeyKind};

/// The keys that open everything.
#[derive(Debug, Clone)]
pub struct RootKeys {
    /// `AKIA…`
    pub access_key: String,
    /// Signs requests.
    pub secret_key: Secret,
    /// Sent as `Authorization: Bearer …`.
    pub bearer_key: Secret,
    /// The file they were written to just now; `None` when they were there before or preset.
    pub written_to: Option<PathBuf>,
}

/// A fresh access key id and its secret.
pub fn draw_pair(clock: &Clock) -> (String, Secret) {
    let id = hex::encode_upper(clock.random::<8>());
    let secret = URL_SAFE_NO_PAD.encode(clock.random::<30>());
    (format!("AKIA{id}"), Secret::new(secret))
}

/// A fresh temporary access key id, its secret and its session token.
pub fn draw_temporary(clock: &Clock) -> (String, Secret, Secret) {
    let (id, secret) = draw_pair(clock);
    (id.replacen("AKIA", "ASIA", 1), secret, Secret::new(URL_SAFE_NO_PAD.encode(clock.random::<48>())))
}

/// A fresh bearer key: 256 random bits.
pub fn draw_bearer(clock: &Clock) -> Secret {
    Secret::new(format!("tunesmith-{}", URL_SAFE_NO_PAD.encode(clock.random::<32>())))
}

/// Finds or makes the root keys and makes sure that the database knows them.
///
/// # Errors
/// `Validation` when a preset pair contradicts the stored one, or the data folder cannot be written.
pub async fn ensure_root(config: &Config, clock: &Clock, db: &Db) -> Result<RootKeys> {
    let path = config.data_dir.join("credentials");
    let mut keys = preset_or_kept(config, clock, &path)?;
    let root = |id: &str, kind, note: &str| Key {
        id: id.to_string(),
        account_id: config.account_id.clone(),
        kind,
        note: note.to_string(),
        created_at: clock.now(),
        expires_at: None,
        revoked_at: None,
        policy: None,
    };

    let signing = root(&keys.access_key, KeyKind::SigV4, "root");
    if !keys::insert_signing(db, &signing, keys.secret_key.expose()).await? {
        let known = keys::signing(db, &keys.access_key).await?;
        if known.is_none_or(|known| known.secret != keys.secret_key.expose()) {
            return Err(Error::validation(format!(
                "Access key {} is already known with another secret: give the secret it was made with, or choose \
                 another TUNESMITH_ROOT_ACCESS_KEY",
                keys.access_key
            )));
        }
    }
    // Taken means that this very key is known already: its id is drawn from it.
    let digest = keys::bearer_digest(keys.bearer_key.expose());
    let bearer = root(&format!("bearer-{}", &digest[..12]), KeyKind::Bearer, "root");
    keys::insert_bearer(db, &bearer, keys.bearer_key.expose()).await?;

    if keys.written_to.is_some() {
        write(&path, &keys)?;
        keys.written_to = Some(path);
    }
    Ok(keys)
}

fn preset_or_kept(config: &Config, clock: &Clock, path: &Path) -> Result<RootKeys> {
    let kept = match std::fs::read_to_string(path) {
        Ok(text) => Some(parse(&text).ok_or_else(|| {
            Error::validation(format!("{} cannot be read: mend it, or remove it to get new keys", path.display()))
        })?),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => None,
        Err(cause) => return Err(Error::validation(format!("{}: {cause}", path.display()))),
    };
    let preset = config.root_access_key.clone().zip(config.root_secret_key.clone());
    let fresh = kept.is_none() && (preset.is_none() || config.root_bearer_key.is_none());
    let kept_pair = kept.clone().map(|(access, secret, _)| (access, secret));
    let (access_key, secret_key) = preset.or(kept_pair).unwrap_or_else(|| draw_pair(clock));
    let kept_bearer = kept.map(|(_, _, bearer)| bearer);
    let bearer_key = config.root_bearer_key.clone().or(kept_bearer).unwrap_or_else(|| draw_bearer(clock));
    Ok(RootKeys { access_key, secret_key, bearer_key, written_to: fresh.then(|| path.to_path_buf()) })
}

fn parse(text: &str) -> Option<(String, Secret, Secret)> {
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_string())
    };
    Some((value("aws_access_key_id")?, Secret::new(value("aws_secret_access_key")?), Secret::new(value("bearer_key")?)))
}

fn write(path: &Path, keys: &RootKeys) -> Result<()> {
    let failed = |cause: std::io::Error| Error::validation(format!("Cannot write {}: {cause}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(failed)?;
    let text = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n# AWS_BEARER_TOKEN_BEDROCK\nbearer_key = {}\n",
        keys.access_key,
        keys.secret_key.expose(),
        keys.bearer_key.expose()
    );
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
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

    fn config(folder: &Path, more: &[&str]) -> Config {
        let folder = folder.display().to_string();
        let line = ["test", "--data-dir", &folder].into_iter().chain(more.iter().copied());
        Line::parse_from(line).config
    }

    async fn memory() -> Db {
        let db = Db::connect("sqlite::memory:").await.unwrap();
        db.migrate().await.unwrap();
        db
    }

    #[tokio::test]
    async fn a_second_start_finds_the_keys_of_the_first() {
        let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
        let config = config(folder.path(), &[]);
        let first = ensure_root(&config, &clock, &db).await.unwrap();
        let second = ensure_root(&config, &clock, &db).await.unwrap();
        assert_eq!(first.access_key, second.access_key);
        assert_eq!(first.bearer_key, second.bearer_key);
        assert!(first.written_to.is_some() && second.written_to.is_none());
        assert!(keys::bearer(&db, first.bearer_key.expose()).await.unwrap().is_some());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn only_its_owner_can_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
        let keys = ensure_root(&config(folder.path(), &[]), &clock, &db).await.unwrap();
        let mode = std::fs::metadata(keys.written_to.unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn preset_keys_are_used_and_a_contradiction_is_refused() {
        let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
        let preset = ["--root-access-key", "AKIDTEST", "--root-secret-key", "s", "--root-bearer-key", "b"];
        let keys = ensure_root(&config(folder.path(), &preset), &clock, &db).await.unwrap();
        assert_eq!((keys.access_key.as_str(), keys.secret_key.expose()), ("AKIDTEST", "s"));
        assert!(keys.written_to.is_none());

        let other = ["--root-access-key", "AKIDTEST", "--root-secret-key", "t", "--root-bearer-key", "b"];
        let refusal = ensure_root(&config(folder.path(), &other), &clock, &db).await.unwrap_err();
        assert!(refusal.message().contains("AKIDTEST"), "{refusal}");
    }
}
