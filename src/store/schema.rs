//! How a database's schema stands to this binary.

use std::collections::BTreeSet;

use super::db::{Db, POSTGRES, SQLITE, run};
use crate::error::Result;

/// The schema of a database, compared with the one that this binary works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// Nothing was migrated yet.
    Empty,
    /// So many migrations are missing; `migrate` makes up for them.
    Behind(usize),
    /// As it should be.
    Current,
    /// A newer binary has brought it to this version: this one must not use it.
    Ahead(i64),
}

impl Db {
    /// Compares the schema; changes nothing.
    ///
    /// # Errors
    /// `Unavailable` when the database does not answer.
    pub async fn schema(&self) -> Result<Schema> {
        const POSTGRES_TABLE: &str = "SELECT COUNT(*) FROM pg_tables WHERE tablename = '_sqlx_migrations'
            AND schemaname = ANY (current_schemas(false))";
        const SQLITE_TABLE: &str = "SELECT COUNT(*) FROM sqlite_master WHERE name = '_sqlx_migrations'";
        const APPLIED: &str = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";
        let (table, known) = match self {
            Self::Postgres(_) => (POSTGRES_TABLE, &POSTGRES),
            Self::Sqlite(_) => (SQLITE_TABLE, &SQLITE),
        };
        let tables: i64 = run!(self, |on| sqlx::query_scalar(table).fetch_one(on).await)?;
        if tables == 0 {
            return Ok(Schema::Empty);
        }
        let applied: Vec<i64> = run!(self, |on| sqlx::query_scalar(APPLIED).fetch_all(on).await)?;
        let known: BTreeSet<i64> = known.iter().map(|migration| migration.version).collect();
        if let Some(newer) = applied.iter().find(|version| !known.contains(version)) {
            return Ok(Schema::Ahead(*newer));
        }
        Ok(match known.len() - applied.len() {
            0 => Schema::Current,
            missing => Schema::Behind(missing),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_schema_is_empty_then_current_and_a_newer_one_is_known() {
        let db = Db::connect("sqlite::memory:").await.unwrap();
        assert_eq!(db.schema().await.unwrap(), Schema::Empty);
        db.migrate().await.unwrap();
        assert_eq!(db.schema().await.unwrap(), Schema::Current);
        let Db::Sqlite(pool) = &db else { unreachable!("it is SQLite") };
        let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
            VALUES (99999, 'later', TRUE, x'00', 0)";
        sqlx::query(newer).execute(pool).await.unwrap();
        assert_eq!(db.schema().await.unwrap(), Schema::Ahead(99999));
        sqlx::query("DELETE FROM _sqlx_migrations WHERE version <> 1").execute(pool).await.unwrap();
        assert_eq!(db.schema().await.unwrap(), Schema::Behind(SQLITE.iter().count() - 1));
    }
}
