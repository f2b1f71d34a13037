//! Embedded database files: SQLite in WAL mode with `synchronous=FULL`, so a commit that returned survives a power
//! cut. The service's own database and the index of the embedded object store are opened here.

use std::path::Path;
use std::time::Duration;

use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

/// How long one writer waits for another; commits take milliseconds, so this is never reached in health.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pool of connections to the file at `path`, which is made when it is missing.
pub(crate) async fn open(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(PATIENCE)
        .foreign_keys(true);
    SqlitePoolOptions::new()
        .max_connections(8)
        .acquire_timeout(PATIENCE)
        // SQLite ends a transaction by itself when the disk is full or broken. The rollback that follows is then an
        // error, and sqlx counts the transaction as open for the rest of the connection's life: every later one on it
        // would be refused. A ping waits for the rollback of a transaction that was dropped.
        .after_release(|connection, _| {
            Box::pin(async move {
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        })
        .connect_with(options)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_whose_transaction_a_full_disk_ended_is_never_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let pool = open(&folder.path().join("file.db")).await.unwrap();
        sqlx::query("CREATE TABLE t (x BLOB)").execute(&pool).await.unwrap();
        for _ in 0..20 {
            let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
            sqlx::query("PRAGMA max_page_count = 3").execute(&mut *tx).await.unwrap();
            let full = sqlx::query("INSERT INTO t VALUES (zeroblob(1000000))").execute(&mut *tx).await.unwrap_err();
            assert!(full.to_string().contains("full"), "{full}");
        }
        // There is space again: the limit was the connection's own.
        for _ in 0..20 {
            let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
            sqlx::query("INSERT INTO t VALUES (zeroblob(1000))").execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        }
    }
}
