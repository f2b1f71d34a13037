//! The root keys: one access key pair and one bearer key for each database. The first process of the API that starts on
//! a fresh database makes them, unless they are preset, and keeps them in its data folder ([`mod@file`]); the others find
//! the pair in the database, and workers need none. The same pair opens the embedded S3 server.

mod file;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tracing::{info, warn};

use self::file::Kept;
use crate::clock::Clock;
use crate::config::{Config, Secret};
use crate::error::{Error, Result};
use crate::store::Db;
use crate::store::keys::{self, Key, KeyKind};
use crate::store::root_keys::{self, Adopted, Proof, Valid};

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
/// pair was revoked, and whoever did so made others.
///
/// # Errors
/// `Validation` when a preset pair contradicts the stored one, or the data folder cannot be written.
pub async fn ensure_root(config: &Config, clock: &Clock, db: &Db) -> Result<Option<RootKeys>> {
    let path = config.data_dir.join("credentials");
    let _alone = file::alone(&config.data_dir).await;
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
    let adopted = adopt(config, clock, db, preset.as_ref(), config.root_bearer_key.as_ref()).await?;
    let valid = root_keys::valid(db).await?;
    let kept = file::read(&path)?;
    let Some((access_key, secret_key)) = in_use(&valid, kept.as_ref()) else {
        warn!("every root key is revoked: `tunesmith keys create` makes other keys, `tunesmith keys rotate` root keys");
        return Ok(None);
    };
    let preset_bearer = config.root_bearer_key.as_ref().filter(|_| adopted.bearer);
    let kept_bearer = kept.as_ref().map(|kept| &kept.bearer_key);
    let bearer_key = preset_bearer.or_else(|| kept_bearer.filter(|bearer| opens(&valid, bearer))).cloned();
    match (&kept, &bearer_key) {
        (None, _) if preset.is_none() => info!(
            "the root keys are not in {}: they lie in the data folder of the process that made them, or `tunesmith keys \
             rotate` draws new ones into it",
            path.display()
        ),
        (Some(kept), Some(bearer_key)) if adopted.pair || adopted.bearer => {
            let (access_key, secret_key) = (access_key.clone(), secret_key.clone());
            let current = Kept { access_key, secret_key, bearer_key: bearer_key.clone() };
            if *kept != current {
                replace(&path, &current)?;
            }
        }
        (Some(kept), _) if kept.access_key != access_key || bearer_key.is_none() => warn!(
            "{} holds root keys that are revoked: `tunesmith keys rotate` draws new ones into it, where none are preset",
            path.display()
        ),
        _ => {}
    }
    let others = others(&valid, &access_key, bearer_key.as_ref());
    if !others.is_empty() {
        warn!(
            "{} other root keys are valid too ({}): `tunesmith keys revoke ID` refuses one of them, `tunesmith keys rotate` \
             draws new ones and refuses all before",
            others.len(),
            others.join(", ")
        );
    }
    Ok(Some(RootKeys { access_key, secret_key, bearer_key, written_to }))
}

/// The pair that this process shows and signs with: the file's where that opens the service, or else the newest.
fn in_use(valid: &Valid, kept: Option<&Kept>) -> Option<(String, Secret)> {
    let of_file = |(id, secret): &&(String, String)| {
        kept.is_some_and(|kept| kept.access_key == *id && kept.secret_key.expose() == secret)
    };
    let (id, secret) = valid.pairs.iter().find(of_file).or(valid.pairs.first())?;
    Some((id.clone(), Secret::new(secret)))
}

/// Whether the bearer key is a root key that is valid.
fn opens(valid: &Valid, bearer: &Secret) -> bool {
    let digest = keys::bearer_digest(bearer.expose());
    valid.bearers.iter().any(|(_, known)| *known == digest)
}

/// The ids of valid root keys beside those in use. Where the bearer key in use is not known, no other is told from it.
fn others(valid: &Valid, access_key: &str, bearer: Option<&Secret>) -> Vec<String> {
    let pairs = valid.pairs.iter().filter(|(id, _)| id != access_key);
    let digest = bearer.map(|bearer| keys::bearer_digest(bearer.expose()));
    let bearers = valid.bearers.iter().filter(|(_, known)| digest.as_ref().is_some_and(|ours| ours != known));
    pairs.chain(bearers).map(|(id, _)| id.clone()).collect()
}

/// Draws new root keys, revokes those before them and keeps them in the data folder's file, whose path is the answer.
///
/// # Errors
/// `Validation` when the file cannot be written.
pub async fn rotate(config: &Config, clock: &Clock, db: &Db) -> Result<PathBuf> {
    let path = config.data_dir.join("credentials");
    let _alone = file::alone(&config.data_dir).await;
    let (access_key, secret_key) = draw_pair(clock);
    let drawn = Kept { access_key, secret_key, bearer_key: draw_bearer(clock) };
    file::write(&file::staged(&path), &drawn)?;
    if !make(config, clock, db, &drawn, None).await? {
        let pair = (drawn.access_key.clone(), drawn.secret_key.clone());
        adopt(config, clock, db, Some(&pair), Some(&drawn.bearer_key)).await?;
    }
    keep(&path, &drawn)?;
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
        Some(path) if made => keep(path, drawn)?,
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
        Ok(Some(kept)) => root_keys::valid(db).await?.pairs.iter().any(|(id, _)| *id == kept.access_key),
        // Half a file was never made known.
        _ => false,
    };
    if known {
        return file::keep(path);
    }
    std::fs::remove_file(&staged)
        .map_err(|cause| Error::validation(format!("Cannot remove {}: {cause}", staged.display())))
}

/// Which of the given keys are root keys now.
struct Taken {
    pair: bool,
    bearer: bool,
}

/// Makes the given keys the one root key of their kind, all of them or none; one that was revoked before stays so.
async fn adopt(
    config: &Config,
    clock: &Clock,
    db: &Db,
    pair: Option<&(String, Secret)>,
    bearer: Option<&Secret>,
) -> Result<Taken> {
    let pair = pair.map(|(id, secret)| (root(config, clock, id, KeyKind::SigV4), Proof::Secret(secret.expose())));
    let bearer =
        bearer.map(|bearer| (root(config, clock, &bearer_id(bearer), KeyKind::Bearer), Proof::Bearer(bearer.expose())));
    let keys: Vec<_> = pair.iter().chain(&bearer).map(|(key, proof)| (key, *proof)).collect();
    if keys.is_empty() {
        return Ok(Taken { pair: false, bearer: false });
    }
    let mut adopted = match root_keys::adopt(db, &keys, clock.now()).await? {
        Adopted::Done(adopted) => adopted.into_iter(),
        Adopted::OtherSecret(id) => {
            return Err(Error::validation(format!(
                "Access key {id} is already known with another secret: give the secret it was made with, or choose \
                 another TUNESMITH_ROOT_ACCESS_KEY too, which revokes it"
            )));
        }
    };
    let mut taken = |key: Option<&(Key, Proof<'_>)>| {
        let taken = key.is_some() && adopted.next().unwrap_or_default();
        if let Some((key, _)) = key.filter(|_| !taken) {
            warn!("the preset root key {} is revoked: set another one to rotate", key.id);
        }
        taken
    };
    Ok(Taken { pair: taken(pair.as_ref()), bearer: taken(bearer.as_ref()) })
}

/// Puts staged keys, which the database knows by now, in their place. Where the staged file is gone or holds others, they
/// are written anew: nobody else has them.
fn keep(path: &Path, keys: &Kept) -> Result<()> {
    match file::read(&file::staged(path)) {
        Ok(Some(staged)) if staged == *keys => file::keep(path),
        _ => replace(path, keys),
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
mod tests;
