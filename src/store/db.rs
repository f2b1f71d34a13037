//! The two databases behind one name. [`run!`](crate::store) expands one query body for both, and
//! `write!`-transactions begin with `BEGIN IMMEDIATE` on SQLite, so two writers queue up instead of
//! failing at the first statement that needs the lock.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{ConnectOptions, Connection};

use crate::error::{Error, Result};

/// A pool of connections to one of the two databases we know.
#[derive(Debug, Clone)]
pub enum Db {
    /// Shared by many API and worker processes.
    Postgres(PgPool),
    /// Embedded: one file, one process (or a few on one machine).
    Sqlite(SqlitePool),
}

pub(super) static POSTGRES: sqlx::migrate::Migrator = sqlx::migrate!("migrations/postgres");
pub(super) static SQLITE: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// A lost Postgres is reported to callers this soon: time to connect, and to see that an idle connection still is one.
const POSTGRES_PATIENCE: Duration = Duration::from_secs(2);
/// What every connection asks the server for: how long a statement, a wait for a lock and a silent transaction may
/// last, in milliseconds, and when the server gives up a client that vanished, with the locks it held.
const POSTGRES_SESSION: &[(&str, &str)] = &[
    ("statement_timeout", "15000"),
    ("lock_timeout", "5000"),
    ("idle_in_transaction_session_timeout", "15000"),
    ("tcp_keepalives_idle", "15"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "30000"),
];
/// When this side gives up a statement, or a whole transaction: a server whose host has vanished says nothing more.
const POSTGRES_ANSWER: Duration = Duration::from_secs(20);
/// A connection that is given back answers this soon, or is closed.
const POSTGRES_RELEASE: Duration = Duration::from_secs(5);

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
            return Ok(Self::Postgres(postgres(options).await?));
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
        Ok(Self::Sqlite(crate::sqlite::open(path).await?))
    }

    /// Brings the schema up to this binary's version; safe to run from many processes at once.
    pub async fn migrate(&self) -> Result<()> {
        match self {
            // A migration may move a large table, and waits for another process that migrates: it has no time limits,
            // and a connection of its own.
            Self::Postgres(pool) => {
                let mut own = pool.connect_options().connect().await?;
                let migrated = POSTGRES.run(&mut own).await;
                // It is closed with the process otherwise.
                let _ = own.close().await;
                migrated
            }
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

/// A pool whose connections hang on nothing: neither on a server that is slow, nor on one that is gone.
async fn postgres(options: PgConnectOptions) -> Result<PgPool, sqlx::Error> {
    // Set by statements after connecting, because a pooler in between refuses them as options. What the operator's URL
    // sets stands.
    let of_url = options.get_options().unwrap_or_default();
    let session: String = POSTGRES_SESSION
        .iter()
        .filter(|(name, _)| !of_url.contains(name))
        .map(|(name, value)| format!("SET {name} = {value};"))
        .collect();
    PgPoolOptions::new()
        .max_connections(16)
        .acquire_timeout(POSTGRES_PATIENCE)
        .after_connect(move |connection, _| {
            let session = sqlx::AssertSqlSafe(session.clone());
            Box::pin(async move { sqlx::raw_sql(session).execute(connection).await.map(drop) })
        })
        // The pool asks a connection that comes back whether it still is one, and has no limit for the answer: of a
        // server that vanished it would wait for ever, and keep the connection's place.
        .after_release(|connection, _| {
            Box::pin(async move {
                let answer = tokio::time::timeout(POSTGRES_RELEASE, connection.ping()).await;
                Ok(matches!(answer, Ok(Ok(()))))
            })
        })
        .connect_with(options)
        .await
}

/// Waits for what the database is asked, but not for ever.
pub(crate) async fn answered<T, E: From<sqlx::Error>>(
    asked: impl Future<Output = std::result::Result<T, E>>,
) -> std::result::Result<T, E> {
    tokio::time::timeout(POSTGRES_ANSWER, asked).await.unwrap_or_else(|_| {
        let silent = format!("the database gave no answer within {} s", POSTGRES_ANSWER.as_secs());
        Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, silent)).into())
    })
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
            $crate::store::Db::Postgres($on) => $crate::store::db::answered(async { $body }).await,
            $crate::store::Db::Sqlite($on) => $body,
        }
    };
}

/// Expands one body for both databases inside a write transaction; `&mut *$tx` is the executor. The
/// transaction commits when the body ends, and rolls back when the body leaves with `?`, or with `return Ok(value)`,
/// which gives `value` as a body that ends does.
macro_rules! transaction {
    ($db:expr, |$tx:ident| $body:expr) => {
        match $db {
            $crate::store::Db::Postgres(pool) => {
                let transacted = $crate::store::db::answered(async {
                    let mut $tx = pool.begin().await?;
                    let value = $body;
                    $tx.commit().await?;
                    Ok::<_, $crate::error::Error>(value)
                });
                transacted.await?
            }
            $crate::store::Db::Sqlite(pool) => {
                let transacted = async {
                    let mut $tx = pool.begin_with("BEGIN IMMEDIATE").await?;
                    let value = $body;
                    $tx.commit().await?;
                    Ok::<_, $crate::error::Error>(value)
                };
                transacted.await?
            }
        }
    };
}

/// The text of a statement that reads the database's own clock. `$text` is a macro that makes it of the SQL
/// expression for milliseconds since 1970: leases are set and judged by it, in the statement itself, because
/// the clocks of the machines that ask differ.
macro_rules! timed_sql {
    ($db:expr, $text:ident) => {
        match $db {
            // Not the time of the transaction's start: a statement may have waited for a lock.
            $crate::store::Db::Postgres(_) => $text!("CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"),
            $crate::store::Db::Sqlite(_) => $text!("CAST(ROUND(unixepoch('subsec') * 1000) AS INTEGER)"),
        }
    };
}

/// The time `$now` for an end: nothing ends before it was asked for, whatever the clocks of those who wrote the two.
macro_rules! end_time {
    ($now:literal) => {
        concat!("(CASE WHEN ", $now, " > creation_time THEN ", $now, " ELSE creation_time END)")
    };
}

/// Holds a custom model's name until the transaction ends. Whoever takes or promises one looks into a table that
/// another transaction may be writing: one after another, the second sees what the first did.
macro_rules! name_lock {
    ($db:expr, $tx:ident, $account:expr, $name:expr) => {
        let sql = match $db {
            // Names that share a number only wait for each other. An account is twelve digits.
            $crate::store::Db::Postgres(_) => {
                "SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 20251113))"
            }
            // The transaction is the only writer already.
            $crate::store::Db::Sqlite(_) => "SELECT 1 WHERE $1 = $2",
        };
        sqlx::query(sql).bind($account).bind($name).execute(&mut *$tx).await?;
    };
}

pub(crate) use {end_time, name_lock, run, timed_sql, transaction};

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_full_sqlite_is_an_outage_that_is_named() {
        let db = Db::connect("sqlite::memory:").await.unwrap();
        let Db::Sqlite(pool) = &db else { panic!("{db:?}") };
        sqlx::query("CREATE TABLE t (x BLOB)").execute(pool).await.unwrap();
        sqlx::query("PRAGMA max_page_count = 3").execute(pool).await.unwrap();
        let cause = sqlx::query("INSERT INTO t VALUES (zeroblob(1000000))").execute(pool).await.unwrap_err();
        let error = Error::from(cause);
        assert_eq!(error.kind(), crate::error::Kind::Unavailable);
        assert!(error.log().contains("full"), "{}", error.log());
    }

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
