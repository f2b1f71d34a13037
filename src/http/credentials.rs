//! The root keys: one access key pair and one bearer key for each database. The first process of the API that starts on
//! a fresh database makes them, unless they are preset, and keeps them in its data folder ([`mod@file`]); the others find
//! the pair in the database, and workers need none. The same pair opens the embedded S3 server.

mod file;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tracing::warn;

use self::file::Kept;
use crate::clock::Clock;
use crate::config::{Config, Secret};
use crate::error::{Error, Result};
use crate::store::Db;
use crate::store::keys::{self, Key, KeyKind};
use crate::store::root_keys::{self, Adopted, Proof};

/// The keys that open everything.
#[derive(Debug, Clone)]
pub struct RootKeys {
    /// `AKIA…`
    pub access_key: String,
    /// Signs requests.
    pub secret_key: Secret,
    /// Sent as `Authorization: Bearer …`. Only its digest is in the database, so a process knows it where it is preset
    /// or in the file.
    pub bearer_key: Option<Secret>,
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

/// Finds or makes the root keys. Preset keys that are new to the database revoke those before them. `None`: every root
/// key was revoked, and whoever did so made others.
///
/// # Errors
/// `Validation` when a preset pair contradicts the stored one, or the data folder cannot be written.
pub async fn ensure_root(config: &Config, clock: &Clock, db: &Db) -> Result<Option<RootKeys>> {
    let path = config.data_dir.join("credentials");
    take_up_staged(&path, db).await?;
    let kept = file::read(&path)?;
    let preset = config.root_access_key.clone().zip(config.root_secret_key.clone());
    let mut written_to = None;
    if !root_keys::made(db).await? {
        let kept = kept.as_ref();
        let pair = preset.clone().or_else(|| kept.map(|kept| (kept.access_key.clone(), kept.secret_key.clone())));
        let (access_key, secret_key) = pair.unwrap_or_else(|| draw_pair(clock));
        let bearer_key = config.root_bearer_key.clone().or_else(|| kept.map(|kept| kept.bearer_key.clone()));
        let drawn = Kept { access_key, secret_key, bearer_key: bearer_key.unwrap_or_else(|| draw_bearer(clock)) };
        let fresh = kept.is_none() && (preset.is_none() || config.root_bearer_key.is_none());
        if make(config, clock, db, &drawn, fresh.then_some(path.as_path())).await? {
            written_to = fresh.then(|| path.clone());
        }
    }
    let mut rotated = false;
    if let Some((id, secret)) = &preset {
        rotated |= adopt(config, clock, db, id, Proof::Secret(secret.expose())).await?;
    }
    if let Some(bearer) = &config.root_bearer_key {
        rotated |= adopt(config, clock, db, &bearer_id(bearer), Proof::Bearer(bearer.expose())).await?;
    }
    let Some((access_key, secret)) = root_keys::pair(db).await? else {
        warn!("every root key is revoked: `tunesmith keys create` makes other keys, `tunesmith keys rotate` root keys");
        return Ok(None);
    };
    let kept = file::read(&path)?;
    let bearer_key = config.root_bearer_key.clone().or_else(|| kept.as_ref().map(|kept| kept.bearer_key.clone()));
    let secret_key = Secret::new(secret);
    if let Some(kept) = &kept
        && kept.access_key != access_key
    {
        match (&bearer_key, rotated) {
            (Some(bearer_key), true) => {
                let (access_key, secret_key) = (access_key.clone(), secret_key.clone());
                replace(&path, &Kept { access_key, secret_key, bearer_key: bearer_key.clone() })?;
            }
            _ => warn!("{} holds other root keys than the database: they open nothing", path.display()),
        }
    }
    Ok(Some(RootKeys { access_key, secret_key, bearer_key, written_to }))
}

/// Draws new root keys, revokes those before them and keeps them in the data folder's file, whose path is the answer.
///
/// # Errors
/// `Validation` when the file cannot be written.
pub async fn rotate(config: &Config, clock: &Clock, db: &Db) -> Result<PathBuf> {
    let path = config.data_dir.join("credentials");
    let (access_key, secret_key) = draw_pair(clock);
    let drawn = Kept { access_key, secret_key, bearer_key: draw_bearer(clock) };
    file::write(&file::staged(&path), &drawn)?;
    if !make(config, clock, db, &drawn, None).await? {
        let bearer = &drawn.bearer_key;
        adopt(config, clock, db, &bearer_id(bearer), Proof::Bearer(bearer.expose())).await?;
        // Last: where the database knows the pair of a staged file, it knows all of it.
        adopt(config, clock, db, &drawn.access_key, Proof::Secret(drawn.secret_key.expose())).await?;
    }
    file::keep(&path)?;
    Ok(path)
}

/// Makes the first keys of the database; `false` when another process was faster.
async fn make(config: &Config, clock: &Clock, db: &Db, drawn: &Kept, path: Option<&Path>) -> Result<bool> {
    if let Some(path) = path {
        file::write(&file::staged(path), drawn)?;
    }
    let pair = root(config, clock, &drawn.access_key, KeyKind::SigV4);
    let bearer = root(config, clock, &bearer_id(&drawn.bearer_key), KeyKind::Bearer);
    let keys = ((&pair, drawn.secret_key.expose()), (&bearer, drawn.bearer_key.expose()));
    let made = root_keys::make(db, keys.0, keys.1, clock.now()).await?;
    match path {
        Some(path) if made => file::keep(path)?,
        // Nobody else writes here: the folder is this process's.
        Some(path) => drop(std::fs::remove_file(file::staged(path))),
        None => {}
    }
    Ok(made)
}

/// Finishes what a crash interrupted: keys that the database knows and that never came into their place.
async fn take_up_staged(path: &Path, db: &Db) -> Result<()> {
    let staged = file::staged(path);
    if !staged.exists() {
        return Ok(());
    }
    let known = match file::read(&staged) {
        Ok(Some(kept)) => root_keys::pair(db).await?.is_some_and(|(id, _)| id == kept.access_key),
        // Half a file was never made known.
        _ => false,
    };
    if known {
        return file::keep(path);
    }
    std::fs::remove_file(&staged)
        .map_err(|cause| Error::validation(format!("Cannot remove {}: {cause}", staged.display())))
}

/// Makes a preset key the one root key of its kind; `false` when it was revoked before.
async fn adopt(config: &Config, clock: &Clock, db: &Db, id: &str, proof: Proof<'_>) -> Result<bool> {
    let kind = match proof {
        Proof::Secret(_) => KeyKind::SigV4,
        Proof::Bearer(_) => KeyKind::Bearer,
    };
    match root_keys::adopt(db, &root(config, clock, id, kind), proof, clock.now()).await? {
        Adopted::Yes => Ok(true),
        Adopted::Revoked => {
            warn!("the preset root key {id} is revoked: set another one to rotate");
            Ok(false)
        }
        Adopted::OtherSecret => Err(Error::validation(format!(
            "Access key {id} is already known with another secret: give the secret it was made with, or choose another \
             TUNESMITH_ROOT_ACCESS_KEY too, which revokes it"
        ))),
    }
}

fn replace(path: &Path, keys: &Kept) -> Result<()> {
    file::write(&file::staged(path), keys)?;
    file::keep(path)
}

fn root(config: &Config, clock: &Clock, id: &str, kind: KeyKind) -> Key {
    Key {
        id: id.to_string(),
        account_id: config.account_id.clone(),
        kind,
        note: "root".to_string(),
        created_at: clock.now(),
        expires_at: None,
        revoked_at: None,
        policy: None,
    }
}

/// A bearer key's id, drawn from the key itself: the same key has the same id.
fn bearer_id(bearer: &Secret) -> String {
    format!("bearer-{}", &keys::bearer_digest(bearer.expose())[..12])
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
        let first = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
        let second = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
        assert_eq!(first.access_key, second.access_key);
        assert_eq!(first.bearer_key, second.bearer_key);
        assert!(first.written_to.is_some() && second.written_to.is_none());
        assert!(keys::bearer(&db, first.bearer_key.unwrap().expose()).await.unwrap().is_some());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn only_its_owner_can_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
        let keys = ensure_root(&config(folder.path(), &[]), &clock, &db).await.unwrap().unwrap();
        let mode = std::fs::metadata(keys.written_to.unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn preset_keys_are_used_and_a_contradiction_is_refused() {
        let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
        let preset = ["--root-access-key", "AKIDTEST", "--root-secret-key", "s", "--root-bearer-key", "b"];
        let keys = ensure_root(&config(folder.path(), &preset), &clock, &db).await.unwrap().unwrap();
        assert_eq!((keys.access_key.as_str(), keys.secret_key.expose()), ("AKIDTEST", "s"));
        assert!(keys.written_to.is_none());

        let other = ["--root-access-key", "AKIDTEST", "--root-secret-key", "t", "--root-bearer-key", "b"];
        let refusal = ensure_root(&config(folder.path(), &other), &clock, &db).await.unwrap_err();
        assert!(refusal.message().contains("AKIDTEST"), "{refusal}");
    }

    #[tokio::test]
    async fn a_database_has_one_root_pair_however_many_processes_start_at_once() {
        let (clock, db) = (Clock::system(), memory().await);
        let folders: Vec<_> = (0..8).map(|_| tempfile::tempdir().unwrap()).collect();
        let configs: Vec<_> = folders.iter().map(|folder| config(folder.path(), &[])).collect();
        let starts = configs.iter().map(|config| ensure_root(config, &clock, &db));
        let keys: Vec<_> =
            futures::future::join_all(starts).await.into_iter().map(|keys| keys.unwrap().unwrap()).collect();
        assert!(keys.iter().all(|one| one.access_key == keys[0].access_key && one.secret_key == keys[0].secret_key));
        assert_eq!(keys.iter().filter(|one| one.written_to.is_some()).count(), 1, "one process made them");
        let pairs = keys::list(&db, "000000000000").await.unwrap();
        assert_eq!(pairs.iter().filter(|key| key.kind == KeyKind::SigV4).count(), 1);
        let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder.path()).unwrap()).count();
        assert_eq!(files, 1, "the others leave no file");
    }

    #[tokio::test]
    async fn a_new_preset_revokes_the_root_keys_before_it_and_no_other_key() {
        let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
        let first = ensure_root(&config(folder.path(), &[]), &clock, &db).await.unwrap().unwrap();
        let user =
            Key { note: "a user's".into(), ..root(&config(folder.path(), &[]), &clock, "AKIAUSER", KeyKind::SigV4) };
        assert!(keys::insert_signing(&db, &user, "s").await.unwrap());
        let preset = ["--root-access-key", "AKIANEW", "--root-secret-key", "s", "--root-bearer-key", "b"];
        let valid = async |id: &str| keys::signing(&db, id).await.unwrap().unwrap().key.is_valid(clock.now());
        for _ in 0..2 {
            let keys = ensure_root(&config(folder.path(), &preset), &clock, &db).await.unwrap().unwrap();
            assert_eq!(keys.access_key, "AKIANEW");
            assert!(!valid(&first.access_key).await && valid("AKIANEW").await && valid("AKIAUSER").await);
            let bearer = keys::bearer(&db, first.bearer_key.as_ref().unwrap().expose()).await.unwrap().unwrap();
            assert!(!bearer.is_valid(clock.now()));
        }
        let kept = file::read(&folder.path().join("credentials")).unwrap().unwrap();
        assert_eq!((kept.access_key.as_str(), kept.bearer_key.expose()), ("AKIANEW", "b"), "the file follows");

        // A process with the settings of yesterday takes nothing back.
        let old = ["--root-access-key", &first.access_key, "--root-secret-key", first.secret_key.expose()];
        let keys = ensure_root(&config(folder.path(), &old), &clock, &db).await.unwrap().unwrap();
        assert_eq!(keys.access_key, "AKIANEW");
        assert!(!valid(&first.access_key).await && valid("AKIANEW").await);
    }

    #[tokio::test]
    async fn a_revoked_root_pair_stays_revoked_at_the_next_start() {
        let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
        let config = config(folder.path(), &[]);
        let first = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
        assert!(keys::revoke(&db, "000000000000", &first.access_key, clock.now()).await.unwrap());
        assert!(ensure_root(&config, &clock, &db).await.unwrap().is_none());
        let path = rotate(&config, &clock, &db).await.unwrap();
        let kept = file::read(&path).unwrap().unwrap();
        let again = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
        assert_eq!((&again.access_key, &again.bearer_key.unwrap()), (&kept.access_key, &kept.bearer_key));
        assert!(!keys::bearer(&db, first.bearer_key.unwrap().expose()).await.unwrap().unwrap().is_valid(clock.now()));
    }

    #[tokio::test]
    async fn a_crash_between_the_file_and_the_database_loses_no_key() {
        let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
        let config = config(folder.path(), &[]);
        let path = folder.path().join("credentials");
        std::fs::write(file::staged(&path), "[default]\naws_access").unwrap();
        let first = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
        std::fs::rename(&path, file::staged(&path)).unwrap();
        let again = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
        assert_eq!((first.access_key, first.bearer_key), (again.access_key, again.bearer_key));
        assert!(path.exists() && !file::staged(&path).exists());
    }
}
