//! The index: which object, upload or part lies in which files. A commit that returned survives a crash.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use s3s::dto::{ETag, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqlitePool;
use sqlx::{Row, Sqlite, Transaction};
use tokio::sync::RwLock;

use super::digest::Checksums;
use super::expiry::LastExpiry;
use super::files::{Files, Pin, Step};
use super::tags::Tags;
use crate::clock::{Clock, Millis};
use crate::error::{Error, Result, is_full};

/// Keys are blobs: S3 lists them in the order of their bytes. `pieces.owner` is an object's id or an
/// upload's; completing an upload makes an object of the same id, so its pieces stay where they are.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS buckets (
    name TEXT PRIMARY KEY,
    created INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS objects (
    id TEXT PRIMARY KEY,
    bucket TEXT NOT NULL REFERENCES buckets (name),
    key BLOB NOT NULL,
    size INTEGER NOT NULL,
    etag TEXT NOT NULL,
    modified INTEGER NOT NULL,
    described TEXT NOT NULL,
    UNIQUE (bucket, key)
) STRICT;
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY,
    bucket TEXT NOT NULL REFERENCES buckets (name),
    key BLOB NOT NULL,
    initiated INTEGER NOT NULL,
    described TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS uploads_by_key ON uploads (bucket, key);
CREATE TABLE IF NOT EXISTS pieces (
    file TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    number INTEGER NOT NULL,
    size INTEGER NOT NULL,
    md5 TEXT NOT NULL,
    modified INTEGER NOT NULL,
    checksums TEXT NOT NULL,
    UNIQUE (owner, number)
) STRICT;
CREATE TABLE IF NOT EXISTS bucket_settings (
    bucket TEXT NOT NULL REFERENCES buckets (name) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (bucket, kind)
) STRICT;
";

/// The store: the index, the files, and what time it is.
#[derive(Clone)]
pub(super) struct Index {
    pub(super) pool: SqlitePool,
    pub(super) files: Arc<Files>,
    pub(super) clock: Clock,
    /// Readers look an object up and pin it under the shared side; files are discarded under the other,
    /// so a reader never holds an object whose files have just gone.
    pub(super) gate: Arc<RwLock<()>>,
    /// When expired uploads were last looked for.
    pub(super) last_expiry: Arc<LastExpiry>,
}

/// What a writer says about an object and a reader hears again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Described {
    pub(super) content_type: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) content_language: Option<String>,
    pub(super) content_disposition: Option<String>,
    pub(super) cache_control: Option<String>,
    /// `Expires`, as an HTTP date.
    pub(super) expires: Option<String>,
    /// `x-amz-meta-*`.
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) checksums: Checksums,
    /// Whether the checksums are of the whole object or of its parts' checksums.
    pub(super) checksum_type: Option<String>,
    /// What an upload in parts was begun with.
    pub(super) checksum_algorithm: Option<String>,
    pub(super) tags: Tags,
}

/// An object's row.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) id: String,
    pub(super) size: u64,
    pub(super) etag: String,
    pub(super) modified: Millis,
    pub(super) described: Described,
}

/// A stretch of an object's bytes, or a part of an upload.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) file: String,
    pub(super) number: i32,
    pub(super) size: u64,
    pub(super) md5: String,
    pub(super) modified: Millis,
    pub(super) checksums: Checksums,
}

/// An object that can be read whatever happens to its row meanwhile.
pub(super) struct Held {
    pub(super) object: Object,
    pub(super) pieces: Vec<Piece>,
    pub(super) pin: Pin,
}

impl Index {
    /// Opens the store in `root` and sweeps what a crash left behind.
    /// Buckets of releases that knew no owners become `account`'s.
    pub(super) async fn open(root: &Path, account: &str, clock: Clock) -> Result<Self> {
        let files = Arc::new(Files::open(root, clock.clone())?);
        let pool = crate::sqlite::open(&root.join("index.db")).await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        give_owners(&pool, account).await?;
        let known: HashSet<String> =
            sqlx::query_scalar("SELECT file FROM pieces").fetch_all(&pool).await?.into_iter().collect();
        let swept = files.sweep(&known).map_err(Error::internal)?;
        if swept > 0 {
            tracing::info!(swept, "removed files that a crash left without an object");
        }
        let index = Self { pool, files, clock, gate: Arc::default(), last_expiry: Arc::default() };
        index.expire_at_start().await;
        Ok(index)
    }

    /// A transaction that will write.
    pub(super) async fn begin(&self) -> S3Result<Transaction<'static, Sqlite>> {
        self.files.pass(Step::Begin).map_err(fault)?;
        self.expire_when_due();
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(fault)
    }

    /// Commits, then discards the files of objects that the transaction replaced or removed.
    pub(super) async fn commit(
        &self,
        tx: Transaction<'static, Sqlite>,
        gone: Vec<(String, Vec<String>)>,
    ) -> S3Result<()> {
        self.files.pass(Step::Commit).map_err(fault)?;
        tx.commit().await.map_err(fault)?;
        if !gone.is_empty() {
            let alone = self.gate.write().await;
            let files = Arc::clone(&self.files);
            let discarded = tokio::task::spawn_blocking(move || {
                for (object, names) in gone {
                    files.discard(&object, names);
                }
            });
            drop(discarded.await);
            drop(alone);
        }
        Ok(())
    }

    /// Finds an object and holds it.
    ///
    /// # Errors
    /// `NoSuchBucket`, `NoSuchKey`.
    pub(super) async fn hold(&self, bucket: &str, key: &str) -> S3Result<Held> {
        let shared = self.gate.read().await;
        let mut tx = self.pool.begin().await.map_err(fault)?;
        expect_bucket(&mut tx, bucket).await?;
        let object = find(&mut tx, bucket, key).await?.ok_or_else(no_such_key)?;
        let pieces = pieces(&mut tx, &object.id).await?;
        let pin = self.files.pin(&object.id);
        drop(shared);
        Ok(Held { object, pieces, pin })
    }
}

/// Adds the column of owners where a former release made the table, and fills what has none: also what that release
/// made when it was run once more.
async fn give_owners(pool: &SqlitePool, account: &str) -> Result<()> {
    let columns: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info('buckets')").fetch_all(pool).await?;
    if !columns.iter().any(|column| column == "owner") {
        sqlx::query("ALTER TABLE buckets ADD COLUMN owner TEXT").execute(pool).await?;
    }
    sqlx::query("UPDATE buckets SET owner = ? WHERE owner IS NULL").bind(account).execute(pool).await?;
    Ok(())
}

/// # Errors
/// `NoSuchBucket`.
pub(super) async fn expect_bucket(tx: &mut Transaction<'_, Sqlite>, bucket: &str) -> S3Result<()> {
    let found = sqlx::query("SELECT 1 FROM buckets WHERE name = ?").bind(bucket).fetch_optional(&mut **tx).await;
    found.map_err(fault)?.map(drop).ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
}

/// The object at `key`, if any.
pub(super) async fn find(tx: &mut Transaction<'_, Sqlite>, bucket: &str, key: &str) -> S3Result<Option<Object>> {
    let row = sqlx::query("SELECT id, size, etag, modified, described FROM objects WHERE bucket = ? AND key = ?")
        .bind(bucket)
        .bind(key.as_bytes())
        .fetch_optional(&mut **tx)
        .await
        .map_err(fault)?;
    let Some(row) = row else { return Ok(None) };
    let read = || -> Result<Object, sqlx::Error> {
        Ok(Object {
            id: row.try_get("id")?,
            size: row.try_get::<i64, _>("size")?.unsigned_abs(),
            etag: row.try_get("etag")?,
            modified: row.try_get("modified")?,
            described: Described::default(),
        })
    };
    let mut object = read().map_err(fault)?;
    let described: String = row.try_get("described").map_err(fault)?;
    object.described = serde_json::from_str(&described).map_err(fault)?;
    Ok(Some(object))
}

/// The pieces of an object or upload, in order.
pub(super) async fn pieces(tx: &mut Transaction<'_, Sqlite>, owner: &str) -> S3Result<Vec<Piece>> {
    let rows =
        sqlx::query("SELECT file, number, size, md5, modified, checksums FROM pieces WHERE owner = ? ORDER BY number")
            .bind(owner)
            .fetch_all(&mut **tx)
            .await
            .map_err(fault)?;
    rows.iter()
        .map(|row| {
            let checksums: String = row.try_get("checksums").map_err(fault)?;
            let read = |checksums| -> Result<Piece, sqlx::Error> {
                Ok(Piece {
                    file: row.try_get("file")?,
                    number: row.try_get("number")?,
                    size: row.try_get::<i64, _>("size")?.unsigned_abs(),
                    md5: row.try_get("md5")?,
                    modified: row.try_get("modified")?,
                    checksums,
                })
            };
            read(serde_json::from_str(&checksums).map_err(fault)?).map_err(fault)
        })
        .collect()
}

/// Adds a piece.
pub(super) async fn insert_piece(tx: &mut Transaction<'_, Sqlite>, owner: &str, piece: &Piece) -> S3Result<()> {
    sqlx::query("INSERT INTO pieces (file, owner, number, size, md5, modified, checksums) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(&piece.file)
        .bind(owner)
        .bind(piece.number)
        .bind(i64::try_from(piece.size).map_err(fault)?)
        .bind(&piece.md5)
        .bind(piece.modified)
        .bind(serde_json::to_string(&piece.checksums).map_err(fault)?)
        .execute(&mut **tx)
        .await
        .map_err(fault)
        .map(drop)
}

/// Points `key` at `object`, whose pieces are in the table, and gives the files of the one it replaces.
pub(super) async fn point(
    tx: &mut Transaction<'_, Sqlite>,
    bucket: &str,
    key: &str,
    object: &Object,
) -> S3Result<Vec<(String, Vec<String>)>> {
    let gone = remove(tx, bucket, key).await?;
    sqlx::query("INSERT INTO objects (id, bucket, key, size, etag, modified, described) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(&object.id)
        .bind(bucket)
        .bind(key.as_bytes())
        .bind(i64::try_from(object.size).map_err(fault)?)
        .bind(&object.etag)
        .bind(object.modified)
        .bind(serde_json::to_string(&object.described).map_err(fault)?)
        .execute(&mut **tx)
        .await
        .map_err(fault)?;
    Ok(gone)
}

/// Removes the object at `key`, if any, and gives its id and files.
pub(super) async fn remove(
    tx: &mut Transaction<'_, Sqlite>,
    bucket: &str,
    key: &str,
) -> S3Result<Vec<(String, Vec<String>)>> {
    let id: Option<String> = sqlx::query_scalar("DELETE FROM objects WHERE bucket = ? AND key = ? RETURNING id")
        .bind(bucket)
        .bind(key.as_bytes())
        .fetch_optional(&mut **tx)
        .await
        .map_err(fault)?;
    match id {
        Some(id) => Ok(vec![remove_pieces(tx, id).await?]),
        None => Ok(Vec::new()),
    }
}

/// Removes all pieces of an object or upload, and gives their files.
pub(super) async fn remove_pieces(tx: &mut Transaction<'_, Sqlite>, owner: String) -> S3Result<(String, Vec<String>)> {
    let files =
        sqlx::query_scalar("DELETE FROM pieces WHERE owner = ? RETURNING file").bind(&owner).fetch_all(&mut **tx);
    let files = files.await.map_err(fault)?;
    Ok((owner, files))
}

/// The answer for a key without an object.
pub(super) fn no_such_key() -> S3Error {
    s3_error!(NoSuchKey, "The specified key does not exist.")
}

/// An error with a code that `s3s` does not list.
pub(super) fn custom(code: &'static str, status: hyper::StatusCode, message: &'static str) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message);
    error.set_status_code(status);
    error
}

/// What failed is ours: the log gets it, the client hears that it may try again, or that the disk is full.
pub(super) fn fault(cause: impl Into<anyhow::Error>) -> S3Error {
    let cause = cause.into();
    let full = cause.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        let database = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
        io.is_some_and(is_full)
            // SQLITE_FULL
            || database.is_some_and(|database| database.code().as_deref() == Some("13"))
    });
    tracing::error!("the embedded object store failed: {cause:#}");
    if full {
        return custom("StorageFull", hyper::StatusCode::INSUFFICIENT_STORAGE, "No space left on the server's disk");
    }
    s3_error!(InternalError, "We encountered an internal error. Please try again.")
}

/// A time for `s3s`.
pub(super) fn stamp(millis: Millis) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs()))
}

/// An ETag for `s3s`.
pub(super) fn tag(etag: &str) -> ETag {
    ETag::Strong(etag.to_string())
}
