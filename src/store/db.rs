//! The two databases behind one name. [`run!`](crate::store) expands one query body for both, and
//! `write!`-transactions begin with `BEGIN IMMEDIATE` on SQLite, so two writers queue up instead of
//! failing at the first statement that needs the lock.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use crate::error::{Error, Result};

/// A pool of connections to one of the two databases we know.
#[derive(Debug, Clone)]
pub enum Db {
    /// Shared by many API and worker processes.
    Postgres(PgPool),
    /// Embedded: one file, one process (or a few on one machine).
    Sqlite(SqlitePool),
}

static POSTGRES: sqlx::migrate::Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// A lost Postgres is reported to callers this soon.
const POSTGRES_PATIENCE: Duration = Duration::from_secs(2);
/// How long one SQLite writer waits for another; commits take milliseconds, so this is never reached in health.
const SQLITE_PATIENCE: Duration = Duration::from_secs(30);

impl Db {
    /// Opens `postgres://…` or `sqlite://path` (the file and its folder are made when missing) or
    /// `sqlite::memory:`.
    ///
    /// # Errors
    /// `Validation` when the URL names another database or cannot be read; `Unavailable` when no
    /// connection can be made.
    pub async fn connect(url: &str) -> Result<Self> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            // The cause is dropped: it may quote the password.
            let options = PgConnectOptions::from_str(url).map_err(|_| {
                Error::validation("DATABASE_URL cannot be read: write postgres://user:password@host:port/database")
            })?;
            let pool = PgPoolOptions::new().max_connections(16).acquire_timeout(POSTGRES_PATIENCE);
            return Ok(Self::Postgres(pool.connect_with(options).await?));
        }
        if url == "sqlite::memory:" {
            // One connection that never closes: each connection would otherwise see its own empty database.
            let pool = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
            let options = SqliteConnectOptions::new().in_memory(true).foreign_keys(true);
            return Ok(Self::Sqlite(pool.connect_with(options).await?));
        }
        let Some(path) = url.strip_prefix("sqlite://").filter(|path| !path.is_empty()) else {
            return Err(Error::validation("DATABASE_URL must begin with postgres:// or sqlite://"));
        };
        let path = Path::new(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|cause| {
                Error::validation(format!("Cannot make the database's folder {}: {cause}", folder.display()))
            })?;
        }
        private(path)
            .map_err(|cause| Error::validation(format!("Cannot open the database file {}: {cause}", path.display())))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // What was acknowledged survives a power cut.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(SQLITE_PATIENCE)
            .foreign_keys(true);
        let pool = SqlitePoolOptions::new().max_connections(8).acquire_timeout(SQLITE_PATIENCE);
        Ok(Self::Sqlite(pool.connect_with(options).await?))
    }

    /// Brings the schema up to this binary's version; safe to run from many processes at once.
    pub async fn migrate(&self) -> Result<()> {
        match self {
            Self::Postgres(pool) => POSTGRES.run(pool).await,
            Self::Sqlite(pool) => SQLITE.run(pool).await,
        }
        .map_err(|cause| match cause {
            sqlx::migrate::MigrateError::Execute(cause) => Error::from(cause),
            cause => Error::internal(cause),
        })
    }

    /// Whether the database answers, for `/readyz`.
    pub async fn ping(&self) -> Result<()> {
        run!(self, |on| sqlx::query("SELECT 1").execute(on).await.map(drop))?;
        Ok(())
    }

    /// Waits for connections in use, then closes them all.
    pub async fn close(&self) {
        match self {
            Self::Postgres(pool) => pool.close().await,
            Self::Sqlite(pool) => pool.close().await,
        }
    }
}

/// Makes the file, for its owner only, unless it is there: it holds the secrets that signatures are
/// checked with. SQLite gives its journals the mode of the file.
fn private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

/// Expands one body for both databases; `$on` is the pool, an executor for a single statement.
macro_rules! run {
    ($db:expr, |$on:ident| $body:expr) => {
        match $db {
            $crate::store::Db::Postgres($on) => $body,
            $crate::store::Db::Sqlite($on) => $body,
        }
    };
}

/// Expands one body for both databases inside a write transaction; `&mut *$tx` is the executor. The
/// transaction commits when the body ends, and rolls back when the body leaves with `?` or `return`.
macro_rules! transaction {
    ($db:expr, |$tx:ident| $body:expr) => {
        match $db {
            $crate::store::Db::Postgres(pool) => {
                let mut $tx = pool.begin().await?;
                let value = $body;
                $tx.commit().await?;
                value
            }
            $crate::store::Db::Sqlite(pool) => {
                let mut $tx = pool.begin_with("BEGIN IMMEDIATE").await?;
                let value = $body;
                $tx.commit().await?;
                value
            }
        }
    };
}

pub(crate) use {run, transaction};

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_database_file_and_its_journals_are_for_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::connect(&format!("sqlite://{}", folder.path().join("new/tunesmith.db").display())).await.unwrap();
        db.migrate().await.unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path().join("new")).unwrap().map(|entry| entry.unwrap()).collect();
        assert!(files.len() > 1, "the journal is there too: {files:?}");
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
    }
}
