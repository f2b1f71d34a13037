//! Table `access_keys`: who may call. A SigV4 key is looked up by its id, and its secret is readable
//! because the signature is recomputed from it; a bearer key is looked up by its SHA-256. A temporary
//! pair also has a session token, kept as a SHA-256 too.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::db::{Db, run};
use super::text::{Json, text_enum};
use crate::clock::Millis;
use crate::error::Result;

text_enum! {
    /// How a key proves itself.
    pub enum KeyKind {
        /// An access key id and a secret that signs each request.
        SigV4 = "SigV4",
        /// A secret sent in the `Authorization` header.
        Bearer = "Bearer",
    }
}

/// What a key may do; what is empty does not limit it. A policy with a member that this version does not
/// know is not read at all, rather than read as if the member were not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Only operations that get or list.
    pub read_only: bool,
    /// Only these operations, by name.
    pub operations: Vec<String>,
    /// Only these parts of object storage may stand in its requests: `s3://bucket/folder`.
    pub buckets: Vec<String>,
}

/// A key as listed: never its secret.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Key {
    /// The access key id; of a bearer key an id that only names it.
    pub id: String,
    /// Whose it is.
    pub account_id: String,
    /// How it proves itself.
    pub kind: KeyKind,
    /// What its owner wrote about it.
    pub note: String,
    /// When it was made.
    pub created_at: Millis,
    /// From when on it is refused, if ever.
    pub expires_at: Option<Millis>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Millis>,
    /// What it may do; everything when absent.
    pub policy: Option<Json<Policy>>,
}

impl Key {
    /// Whether the key opens anything at `now`.
    pub fn is_valid(&self, now: Millis) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// A SigV4 key with what its signatures are checked with. It has no `Debug`, so that it cannot be logged.
#[derive(Clone)]
pub struct SigningKey {
    /// The key.
    pub key: Key,
    /// Its secret.
    pub secret: String,
    /// [`bearer_digest`] of the session token that must come with it, if it is temporary.
    pub token_digest: Option<String>,
}

/// The digest under which a bearer key or a session token is stored: lower-case hex of SHA-256. A fast hash serves,
/// because the keys we make carry 256 random bits.
pub fn bearer_digest(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// A key of a disabled account counts as revoked for as long as the account is disabled.
macro_rules! columns {
    () => {
        "id, account_id, kind, note, created_at, expires_at, policy,
         COALESCE(revoked_at, (SELECT disabled_at FROM accounts WHERE accounts.id = access_keys.account_id)) AS revoked_at"
    };
}

/// What a key proves itself with, as stored.
#[derive(Default)]
struct Proof<'a> {
    secret: Option<&'a str>,
    digest: Option<String>,
    token_digest: Option<String>,
}

/// Adds a SigV4 key. `false` when the id is taken.
pub async fn insert_signing(db: &Db, key: &Key, secret: &str) -> Result<bool> {
    insert(db, key, Proof { secret: Some(secret), ..Proof::default() }).await
}

/// Adds a temporary SigV4 key, which must have an end; of its session token only the digest is kept.
/// `false` when the id is taken.
pub async fn insert_temporary(db: &Db, key: &Key, secret: &str, token: &str) -> Result<bool> {
    let token_digest = Some(bearer_digest(token));
    insert(db, key, Proof { secret: Some(secret), token_digest, ..Proof::default() }).await
}

/// Adds a bearer key; only its digest is kept. `false` when the id or the key is taken.
pub async fn insert_bearer(db: &Db, key: &Key, secret: &str) -> Result<bool> {
    insert(db, key, Proof { digest: Some(bearer_digest(secret)), ..Proof::default() }).await
}

async fn insert(db: &Db, key: &Key, proof: Proof<'_>) -> Result<bool> {
    const SQL: &str = "INSERT INTO access_keys
            (id, account_id, kind, secret, digest, note, created_at, expires_at, revoked_at, token_digest, policy)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING";
    let rows = run!(db, |on| sqlx::query(SQL)
        .bind(&key.id)
        .bind(&key.account_id)
        .bind(key.kind)
        .bind(proof.secret)
        .bind(proof.digest)
        .bind(&key.note)
        .bind(key.created_at)
        .bind(key.expires_at)
        .bind(key.revoked_at)
        .bind(proof.token_digest)
        .bind(&key.policy)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

#[derive(sqlx::FromRow)]
struct Signing {
    #[sqlx(flatten)]
    key: Key,
    secret: String,
    token_digest: Option<String>,
}

/// The SigV4 key of that id, valid or not: ask [`Key::is_valid`]. The one query that names no
/// account, because the key is what tells the account.
pub async fn signing(db: &Db, id: &str) -> Result<Option<SigningKey>> {
    const SQL: &str =
        concat!("SELECT ", columns!(), ", secret, token_digest FROM access_keys WHERE id = $1 AND kind = 'SigV4'");
    let row: Option<Signing> = run!(db, |on| sqlx::query_as(SQL).bind(id).fetch_optional(on).await)?;
    Ok(row.map(|row| SigningKey { key: row.key, secret: row.secret, token_digest: row.token_digest }))
}

/// The bearer key with this secret, valid or not: ask [`Key::is_valid`].
pub async fn bearer(db: &Db, secret: &str) -> Result<Option<Key>> {
    const SQL: &str = concat!("SELECT ", columns!(), " FROM access_keys WHERE digest = $1 AND kind = 'Bearer'");
    let digest = bearer_digest(secret);
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(&digest).fetch_optional(on).await)?)
}

/// The account's keys, oldest first.
pub async fn list(db: &Db, account_id: &str) -> Result<Vec<Key>> {
    const SQL: &str = concat!("SELECT ", columns!(), " FROM access_keys WHERE account_id = $1 ORDER BY created_at, id");
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).fetch_all(on).await)?)
}

/// Revokes a key; `false` when the account has no such key or it was revoked before.
pub async fn revoke(db: &Db, account_id: &str, id: &str, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE access_keys SET revoked_at = $3
        WHERE account_id = $1 AND id = $2 AND revoked_at IS NULL";
    let rows = run!(db, |on| sqlx::query(SQL)
        .bind(account_id)
        .bind(id)
        .bind(now)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}
