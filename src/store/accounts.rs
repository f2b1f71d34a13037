//! Tables `accounts` and `account_storage`: the accounts beside the configured one, and the parts of object storage that
//! the operator assigned to each. An account without a row is enabled: keys made before there were rows go on.

use super::db::{Db, run, transaction};
use super::text::text_enum;
use crate::clock::Millis;
use crate::error::Result;

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Account {
    /// Twelve digits.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created_at: Millis,
    /// From when on its keys are refused, if they are.
    pub disabled_at: Option<Millis>,
}

text_enum! {
    /// Where an assignment comes from.
    pub enum Source {
        /// `tunesmith accounts grant`.
        Command = "Command",
        /// The file that TUNESMITH_ACCOUNTS names.
        File = "File",
    }
}

/// A part of object storage that is assigned to an account.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Assignment {
    /// Whose it is.
    pub account_id: String,
    /// The bucket.
    pub bucket: String,
    /// The folder, without a slash at its end; empty for the whole bucket.
    pub folder: String,
    /// Who said so.
    pub source: Source,
}

const INSERT: &str = "INSERT INTO accounts (id, name, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
const ASSIGN: &str = "INSERT INTO account_storage (account_id, bucket, folder, source, created_at)
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";

/// Adds an account; `false` when the id is taken.
pub async fn insert(db: &Db, id: &str, name: &str, now: Millis) -> Result<bool> {
    let rows = run!(db, |on| sqlx::query(INSERT)
        .bind(id)
        .bind(name)
        .bind(now)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

/// The account of that id.
pub async fn find(db: &Db, id: &str) -> Result<Option<Account>> {
    const SQL: &str = "SELECT id, name, created_at, disabled_at FROM accounts WHERE id = $1";
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(id).fetch_optional(on).await)?)
}

/// Every account, oldest first.
pub async fn list(db: &Db) -> Result<Vec<Account>> {
    const SQL: &str = "SELECT id, name, created_at, disabled_at FROM accounts ORDER BY created_at, id";
    Ok(run!(db, |on| sqlx::query_as(SQL).fetch_all(on).await)?)
}

/// Refuses the account's keys from `since` on, or takes them again with `None`; `false` when there is no such account.
pub async fn set_disabled(db: &Db, id: &str, since: Option<Millis>) -> Result<bool> {
    const SQL: &str = "UPDATE accounts SET disabled_at = $2 WHERE id = $1";
    let rows = run!(db, |on| sqlx::query(SQL).bind(id).bind(since).execute(on).await.map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

/// Assigns a part of object storage; assigning it twice is assigning it once.
pub async fn assign(db: &Db, assignment: &Assignment, now: Millis) -> Result<()> {
    run!(db, |on| sqlx::query(ASSIGN)
        .bind(&assignment.account_id)
        .bind(&assignment.bucket)
        .bind(&assignment.folder)
        .bind(assignment.source)
        .bind(now)
        .execute(on)
        .await
        .map(drop))?;
    Ok(())
}

/// Takes an assignment back; `false` when there is none of that source.
pub async fn withdraw(db: &Db, assignment: &Assignment) -> Result<bool> {
    const SQL: &str = "DELETE FROM account_storage
        WHERE account_id = $1 AND bucket = $2 AND folder = $3 AND source = $4";
    let rows = run!(db, |on| sqlx::query(SQL)
        .bind(&assignment.account_id)
        .bind(&assignment.bucket)
        .bind(&assignment.folder)
        .bind(assignment.source)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows == 1)
}

/// Every account's part of a bucket.
pub async fn assigned(db: &Db, bucket: &str) -> Result<Vec<Assignment>> {
    const SQL: &str = "SELECT account_id, bucket, folder, source FROM account_storage WHERE bucket = $1
        ORDER BY account_id, folder, source";
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(bucket).fetch_all(on).await)?)
}

/// Every assignment of an account.
pub async fn assigned_to(db: &Db, account_id: &str) -> Result<Vec<Assignment>> {
    const SQL: &str = "SELECT account_id, bucket, folder, source FROM account_storage WHERE account_id = $1
        ORDER BY bucket, folder, source";
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).fetch_all(on).await)?)
}

/// Makes the file's accounts with the names that it gives them, and puts its assignments in place of those of the file
/// before. What is as the file says is not written again: a full disk refuses no start.
pub async fn take_file(db: &Db, names: &[(String, String)], assignments: &[Assignment], now: Millis) -> Result<()> {
    const RENAME: &str = "UPDATE accounts SET name = $2 WHERE id = $1 AND name <> $2";
    const OF_FILE: &str = "SELECT account_id, bucket, folder, source FROM account_storage WHERE source = 'File'";
    const REMOVE: &str = "DELETE FROM account_storage
        WHERE account_id = $1 AND bucket = $2 AND folder = $3 AND source = 'File'";
    transaction!(db, |tx| {
        for (id, name) in names {
            sqlx::query(INSERT).bind(id).bind(name).bind(now).execute(&mut *tx).await?;
            // An account that the file gives no name keeps the one it has.
            if !name.is_empty() {
                sqlx::query(RENAME).bind(id).bind(name).execute(&mut *tx).await?;
            }
        }
        let before: Vec<Assignment> = sqlx::query_as(OF_FILE).fetch_all(&mut *tx).await?;
        for Assignment { account_id, bucket, folder, .. } in before.iter().filter(|one| !assignments.contains(one)) {
            sqlx::query(REMOVE).bind(account_id).bind(bucket).bind(folder).execute(&mut *tx).await?;
        }
        for assignment in assignments {
            sqlx::query(ASSIGN)
                .bind(&assignment.account_id)
                .bind(&assignment.bucket)
                .bind(&assignment.folder)
                .bind(Source::File)
                .bind(now)
                .execute(&mut *tx)
                .await?;
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_renames_accounts_and_what_is_as_it_says_is_not_written_again() {
        let db = Db::connect("sqlite::memory:").await.unwrap();
        db.migrate().await.unwrap();
        let Db::Sqlite(pool) = &db else { panic!("{db:?}") };
        let (root, research) = ("000000000000", "111122223333");
        insert(&db, root, "root", 0).await.unwrap();
        let named = |name: &str| vec![(root.to_string(), String::new()), (research.to_string(), name.to_string())];
        let place = |folder: &str| Assignment {
            account_id: research.into(),
            bucket: "shared".into(),
            folder: folder.into(),
            source: Source::File,
        };
        let granted = Assignment { source: Source::Command, ..place("granted") };
        assign(&db, &granted, 0).await.unwrap();
        let name = async |id: &str| find(&db, id).await.unwrap().unwrap().name;
        take_file(&db, &named("research"), &[place("a"), place("b")], 1).await.unwrap();
        assert_eq!((name(root).await, name(research).await), ("root".to_string(), "research".to_string()));
        take_file(&db, &named("science"), &[place("b"), place("c")], 2).await.unwrap();
        assert_eq!((name(root).await, name(research).await), ("root".to_string(), "science".to_string()));
        assert_eq!(assigned(&db, "shared").await.unwrap(), [place("b"), place("c"), granted.clone()]);
        take_file(&db, &named(""), &[place("b"), place("c")], 3).await.unwrap();
        assert_eq!(name(research).await, "science", "no name in the file takes none away");

        let changes = async || sqlx::query_scalar::<_, i64>("SELECT total_changes()").fetch_one(pool).await.unwrap();
        let before = changes().await;
        take_file(&db, &named("science"), &[place("b"), place("c")], 4).await.unwrap();
        assert_eq!(changes().await, before);
    }
}
