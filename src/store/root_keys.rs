//! The operator's own keys among `access_keys`: one pair and one bearer key per database, made once by whichever process
//! comes first, and replaced as a whole.

use super::db::{Db, run, transaction};
use super::keys::{Key, KeyKind, bearer_digest};
use crate::clock::Millis;
use crate::error::Result;

/// The row of `service_secrets` that says that root keys were made.
const MADE: &str = "root-keys-made";

/// What a root key proves itself with.
#[derive(Clone, Copy)]
pub enum Proof<'a> {
    /// The secret of a pair.
    Secret(&'a str),
    /// A bearer key itself; its digest is kept.
    Bearer(&'a str),
}

/// What became of keys that were to be adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adopted {
    /// For each key, whether it is the one root key of its kind now, and every other revoked. One that was revoked
    /// before stays so, and changes nothing.
    Done(Vec<bool>),
    /// This id is known with another secret; nothing was changed.
    OtherSecret(String),
}

/// The root keys that open the service now, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Valid {
    /// Id and secret of each pair.
    pub pairs: Vec<(String, String)>,
    /// Id and digest of each bearer key.
    pub bearers: Vec<(String, String)>,
}

const INSERT: &str = "INSERT INTO access_keys
        (id, account_id, kind, secret, digest, note, created_at, root)
    VALUES ($1, $2, $3, $4, $5, $6, $7, 1) ON CONFLICT DO NOTHING";

macro_rules! insert {
    ($tx:ident, $key:expr, $proof:expr) => {{
        let (secret, digest) = match $proof {
            Proof::Secret(secret) => (Some(secret.to_string()), None),
            Proof::Bearer(key) => (None, Some(bearer_digest(key))),
        };
        sqlx::query(INSERT)
            .bind(&$key.id)
            .bind(&$key.account_id)
            .bind($key.kind)
            .bind(&secret)
            .bind(&digest)
            .bind(&$key.note)
            .bind($key.created_at)
            .execute(&mut *$tx)
            .await?;
        (secret, digest)
    }};
}

/// Makes the database's first root keys. `false`: another process was faster, or did so long ago.
pub async fn make(db: &Db, pair: (&Key, &str), bearer: (&Key, &str), now: Millis) -> Result<bool> {
    const MARK: &str =
        "INSERT INTO service_secrets (name, secret, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    Ok(transaction!(db, |tx| {
        let marked = sqlx::query(MARK).bind(MADE).bind(&pair.0.id).bind(now).execute(&mut *tx).await?;
        if marked.rows_affected() == 0 {
            return Ok(false);
        }
        insert!(tx, pair.0, Proof::Secret(pair.1));
        insert!(tx, bearer.0, Proof::Bearer(bearer.1));
        true
    }))
}

/// Whether root keys were made in this database, be they revoked or not.
pub async fn made(db: &Db) -> Result<bool> {
    Ok(super::service_secrets::find(db, MADE).await?.is_some())
}

/// Makes each of the keys the one root key of its kind and revokes the others, all in one transaction. Keys that are so
/// already are not written again.
pub async fn adopt(db: &Db, keys: &[(&Key, Proof<'_>)], now: Millis) -> Result<Adopted> {
    const FOUND: &str = "SELECT id, secret, revoked_at FROM access_keys WHERE id = $1 OR digest = $2";
    const MARK: &str = "UPDATE access_keys SET root = 1 WHERE id = $1 AND root <> 1";
    const REVOKE: &str = "UPDATE access_keys SET revoked_at = $3
        WHERE root = 1 AND kind = $2 AND id <> $1 AND revoked_at IS NULL";
    Ok(transaction!(db, |tx| {
        let mut adopted = Vec::new();
        for (key, proof) in keys {
            let (secret, digest) = insert!(tx, key, *proof);
            let (id, known, revoked): (String, Option<String>, Option<Millis>) =
                sqlx::query_as(FOUND).bind(&key.id).bind(&digest).fetch_one(&mut *tx).await?;
            if known != secret {
                return Ok(Adopted::OtherSecret(id));
            }
            adopted.push(revoked.is_none());
            if revoked.is_none() {
                sqlx::query(MARK).bind(&id).execute(&mut *tx).await?;
                sqlx::query(REVOKE).bind(&id).bind(key.kind).bind(now).execute(&mut *tx).await?;
            }
        }
        Adopted::Done(adopted)
    }))
}

/// The root keys that open the service now. A release before accounts may have left several of a kind.
pub async fn valid(db: &Db) -> Result<Valid> {
    const SQL: &str = "SELECT id, COALESCE(secret, digest) FROM access_keys
        WHERE root = 1 AND kind = $1 AND revoked_at IS NULL ORDER BY created_at DESC, id";
    let of = async |kind: KeyKind| -> Result<Vec<(String, String)>, sqlx::Error> {
        run!(db, |on| sqlx::query_as(SQL).bind(kind).fetch_all(on).await)
    };
    Ok(Valid { pairs: of(KeyKind::SigV4).await?, bearers: of(KeyKind::Bearer).await? })
}
