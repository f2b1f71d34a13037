//! Table `imported_models`: what model import jobs leave behind. A row appears in the transaction that
//! completes its job ([`super::imports::complete_job`]), and frees its name when it is deleted.

use std::collections::BTreeMap;

use serde_json::Value;

use super::db::{Db, run, transaction};
use super::page::{Cursor, Filter, Listed, Order};
use super::tags;
use super::text::Json;
use crate::clock::Millis;
use crate::error::Result;

/// An imported model.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct ImportedModel {
    /// The twelve characters that end the ARN.
    pub id: String,
    /// Whose it is.
    pub account_id: String,
    /// `arn:aws:bedrock:<region>:<account>:imported-model/<id>`
    pub arn: String,
    /// Its name, unique in the account while the model exists.
    pub name: String,
    /// The job that made it.
    pub job_arn: String,
    /// That job's name.
    pub job_name: String,
    /// The job's `modelDataSource`.
    pub source: Json<Value>,
    /// A KMS key, echoed.
    pub kms_key_arn: Option<String>,
    /// The `model_type` of its configuration.
    pub architecture: String,
    /// It has a chat template: conversations can be held with it.
    pub instruct_supported: bool,
    /// `s3://…` folder of its files, without a slash at the end.
    pub artifact_uri: String,
    /// SHA-256 in hex of each of its files, by name relative to that folder.
    pub artifact_digests: Json<BTreeMap<String, String>>,
    /// When it was made.
    pub creation_time: Millis,
}

macro_rules! columns {
    () => {
        "id, account_id, arn, name, job_arn, job_name, source, kms_key_arn, architecture, instruct_supported,
         artifact_uri, artifact_digests, creation_time"
    };
}

/// The statement that adds a model: its columns in the order of [`ImportedModel`].
pub(super) const INSERT: &str = concat!(
    "INSERT INTO imported_models (",
    columns!(),
    ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
);

/// Adds a model inside a transaction.
macro_rules! insert {
    ($tx:ident, $model:expr) => {
        sqlx::query($crate::store::imported_models::INSERT)
            .bind(&$model.id)
            .bind(&$model.account_id)
            .bind(&$model.arn)
            .bind(&$model.name)
            .bind(&$model.job_arn)
            .bind(&$model.job_name)
            .bind(&$model.source)
            .bind(&$model.kms_key_arn)
            .bind(&$model.architecture)
            .bind($model.instruct_supported)
            .bind(&$model.artifact_uri)
            .bind(&$model.artifact_digests)
            .bind($model.creation_time)
            .execute(&mut *$tx)
            .await?
    };
}
pub(super) use insert;

/// How many models of the account have this name.
pub(super) const COUNT_NAME: &str = "SELECT COUNT(*) FROM imported_models WHERE account_id = $1 AND name = $2";

/// The account's model with this ARN or name.
pub async fn find(db: &Db, account_id: &str, identifier: &str) -> Result<Option<ImportedModel>> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM imported_models WHERE account_id = $1 AND (arn = $2 OR name = $2)");
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(identifier).fetch_optional(on).await)?)
}

macro_rules! page_sql {
    ($comparison:literal, $direction:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM imported_models
             WHERE account_id = $1 AND (creation_time, id) ",
            $comparison,
            " ($2, $3)
                AND creation_time > $4 AND creation_time < $5
                AND lower(name) LIKE $6 ESCAPE '\\'
             ORDER BY creation_time ",
            $direction,
            ", id ",
            $direction,
            " LIMIT $7"
        )
    };
}

/// One page of the account's models.
pub async fn list(db: &Db, account_id: &str, filter: &Filter) -> Result<Listed<ImportedModel>> {
    let sql = match filter.order {
        Order::Ascending => page_sql!(">", "ASC"),
        Order::Descending => page_sql!("<", "DESC"),
    };
    let (time, id) = filter.bounds();
    let rows = run!(db, |on| sqlx::query_as(sql)
        .bind(account_id)
        .bind(time)
        .bind(&id)
        .bind(filter.created_after.unwrap_or(Millis::MIN))
        .bind(filter.created_before.unwrap_or(Millis::MAX))
        .bind(filter.pattern())
        .bind(filter.rows())
        .fetch_all(on)
        .await)?;
    Ok(filter.page(rows, |row: &ImportedModel| Cursor { creation_time: row.creation_time, id: row.id.clone() }))
}

/// Whether any account has a model of this id.
pub async fn exists(db: &Db, id: &str) -> Result<bool> {
    const SQL: &str = "SELECT COUNT(*) FROM imported_models WHERE id = $1";
    let models: i64 = run!(db, |on| sqlx::query_scalar(SQL).bind(id).fetch_one(on).await)?;
    Ok(models > 0)
}

/// Removes a model and its tags; the job that made it stays, and so do its objects. `None`: the account
/// has no such model.
pub async fn delete(db: &Db, account_id: &str, identifier: &str) -> Result<Option<ImportedModel>> {
    const SQL: &str =
        concat!("DELETE FROM imported_models WHERE account_id = $1 AND (arn = $2 OR name = $2) RETURNING ", columns!());
    Ok(transaction!(db, |tx| {
        let gone: Option<ImportedModel> =
            sqlx::query_as(SQL).bind(account_id).bind(identifier).fetch_optional(&mut *tx).await?;
        if let Some(gone) = &gone {
            sqlx::query(tags::CLEAR).bind(account_id).bind(&gone.arn).execute(&mut *tx).await?;
        }
        gone
    }))
}
