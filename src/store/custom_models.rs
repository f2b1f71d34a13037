//! Table `custom_models`: what finished jobs leave behind, and adapters and weights that were brought in.
//! A row appears in the transaction that completes its job ([`super::queue::complete`]), or when it is
//! asked for ([`super::imports::insert_model`]), and frees its name when it is deleted.

use std::collections::BTreeMap;

use serde_json::Value;

use super::db::{Db, run, transaction};
use super::page::{Cursor, Filter, Listed, Order};
use super::status::{CustomizationType, ModelStatus};
use super::text::Json;
use super::{imports, serving, tags};
use crate::clock::Millis;
use crate::error::Result;

/// A custom model.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct CustomModel {
    /// The twelve characters that end the ARN.
    pub id: String,
    /// Whose model it is.
    pub account_id: String,
    /// `arn:aws:bedrock:<region>:<account>:custom-model/<base model>/<id>`
    pub arn: String,
    /// Its name, unique in the account while the model exists.
    pub name: String,
    /// The job that made it; absent for imported weights.
    pub job_id: Option<String>,
    /// That job's ARN.
    pub job_arn: Option<String>,
    /// That job's name.
    pub job_name: Option<String>,
    /// How it came to be.
    pub customization_type: CustomizationType,
    /// Id of the root foundation model, as the registry knows it.
    pub base_model_id: String,
    /// ARN of the direct parent.
    pub base_model_arn: String,
    /// ARN of the root foundation model.
    pub foundation_model_arn: String,
    /// The key its artifact was asked to be encrypted with, echoed.
    pub kms_key_arn: Option<String>,
    /// The job's hyperparameters, as sent.
    pub hyper_parameters: Json<BTreeMap<String, String>>,
    /// The job's `trainingDataConfig`.
    pub training_data: Option<Json<Value>>,
    /// The job's `validationDataConfig`.
    pub validation_data: Option<Json<Value>>,
    /// The job's `outputDataConfig`.
    pub output_data: Option<Json<Value>>,
    /// The job's `customizationConfig`.
    pub customization_config: Option<Json<Value>>,
    /// The last training loss.
    pub training_loss: Option<f64>,
    /// The last validation losses, one per validator.
    pub validation_losses: Option<Json<Vec<f64>>>,
    /// `s3://…` folder of the artifact (the adapter), without a slash at the end.
    pub artifact_uri: String,
    /// SHA-256 in hex of each file of the artifact, by name relative to that folder.
    pub artifact_digests: Json<BTreeMap<String, String>>,
    /// Where it stands.
    pub status: ModelStatus,
    /// Why it could not be brought in.
    pub failure_message: Option<String>,
    /// When it was made.
    pub creation_time: Millis,
}

macro_rules! columns {
    () => {
        "id, account_id, arn, name, job_id, job_arn, job_name, customization_type, base_model_id, base_model_arn,
         foundation_model_arn, kms_key_arn, hyper_parameters, training_data, validation_data, output_data,
         customization_config, training_loss, validation_losses, artifact_uri, artifact_digests, status,
         failure_message, creation_time"
    };
}

/// The statement that adds a model: its columns in the order of [`CustomModel`].
pub(super) const INSERT: &str = concat!(
    "INSERT INTO custom_models (",
    columns!(),
    ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
        $23, $24)"
);

/// The same, for a name that may be taken: then no row is added.
pub(super) const INSERT_NEW: &str = concat!(
    "INSERT INTO custom_models (",
    columns!(),
    ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
        $23, $24) ON CONFLICT DO NOTHING"
);

/// Adds a model inside a transaction by one of the two statements; gives the number of rows added.
macro_rules! insert {
    ($tx:ident, $model:expr, $sql:expr) => {
        sqlx::query($sql)
            .bind(&$model.id)
            .bind(&$model.account_id)
            .bind(&$model.arn)
            .bind(&$model.name)
            .bind(&$model.job_id)
            .bind(&$model.job_arn)
            .bind(&$model.job_name)
            .bind($model.customization_type)
            .bind(&$model.base_model_id)
            .bind(&$model.base_model_arn)
            .bind(&$model.foundation_model_arn)
            .bind(&$model.kms_key_arn)
            .bind(&$model.hyper_parameters)
            .bind(&$model.training_data)
            .bind(&$model.validation_data)
            .bind(&$model.output_data)
            .bind(&$model.customization_config)
            .bind($model.training_loss)
            .bind(&$model.validation_losses)
            .bind(&$model.artifact_uri)
            .bind(&$model.artifact_digests)
            .bind($model.status)
            .bind(&$model.failure_message)
            .bind($model.creation_time)
            .execute(&mut *$tx)
            .await?
            .rows_affected()
    };
}
pub(super) use insert;

/// The account's model with this ARN or name.
pub async fn find(db: &Db, account_id: &str, identifier: &str) -> Result<Option<CustomModel>> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM custom_models WHERE account_id = $1 AND (arn = $2 OR name = $2)");
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(identifier).fetch_optional(on).await)?)
}

/// Whether any account has a model of this id.
pub async fn exists(db: &Db, id: &str) -> Result<bool> {
    const SQL: &str = "SELECT COUNT(*) FROM custom_models WHERE id = $1";
    let models: i64 = run!(db, |on| sqlx::query_scalar(SQL).bind(id).fetch_one(on).await)?;
    Ok(models > 0)
}

/// What only a listing of models can be narrowed by.
#[derive(Debug, Clone, Default)]
pub struct ModelFilter {
    /// ARN of the direct parent.
    pub base_model_arn: Option<String>,
    /// ARN of the root foundation model.
    pub foundation_model_arn: Option<String>,
    /// Where the model stands.
    pub status: Option<ModelStatus>,
}

macro_rules! page_sql {
    ($comparison:literal, $direction:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM custom_models
             WHERE account_id = $1 AND (creation_time, id) ",
            $comparison,
            " ($2, $3)
                AND creation_time > $4 AND creation_time < $5
                AND lower(name) LIKE $6 ESCAPE '\\'
                AND ($7 IS NULL OR base_model_arn = $7)
                AND ($8 IS NULL OR foundation_model_arn = $8)
                AND ($9 IS NULL OR status = $9)
             ORDER BY creation_time ",
            $direction,
            ", id ",
            $direction,
            " LIMIT $10"
        )
    };
}

/// One page of the account's models.
pub async fn list(db: &Db, account_id: &str, only: &ModelFilter, filter: &Filter) -> Result<Listed<CustomModel>> {
    let sql = match filter.order {
        Order::Ascending => page_sql!(">", "ASC"),
        Order::Descending => page_sql!("<", "DESC"),
    };
    let (time, id) = filter.bounds();
    let models = run!(db, |on| sqlx::query_as(sql)
        .bind(account_id)
        .bind(time)
        .bind(&id)
        .bind(filter.created_after.unwrap_or(Millis::MIN))
        .bind(filter.created_before.unwrap_or(Millis::MAX))
        .bind(filter.pattern())
        .bind(&only.base_model_arn)
        .bind(&only.foundation_model_arn)
        .bind(only.status)
        .bind(filter.rows())
        .fetch_all(on)
        .await)?;
    Ok(filter.page(models, |model: &CustomModel| Cursor { creation_time: model.creation_time, id: model.id.clone() }))
}

/// What became of a request to delete a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Deleted {
    /// This model is gone, and its tags.
    Done(Box<CustomModel>),
    /// The account has no such model.
    NotFound,
    /// A deployment or provisioned throughput serves it.
    InUse,
}

/// Removes a model that nothing serves, and its tags; the job that made it stays. Its objects belong to
/// the caller's bucket and stay too.
pub async fn delete(db: &Db, account_id: &str, identifier: &str) -> Result<Deleted> {
    const SQL: &str = concat!("DELETE FROM custom_models WHERE account_id = $1 AND arn = $2 RETURNING ", columns!());
    let Some(CustomModel { arn, .. }) = find(db, account_id, identifier).await? else { return Ok(Deleted::NotFound) };
    Ok(transaction!(db, |tx| {
        // Held first: what begins to serve the model meanwhile waits, and then does not find it.
        sqlx::query(serving::HOLD_MODEL).bind(account_id).bind(&arn).fetch_optional(&mut *tx).await?;
        let serving: i64 = sqlx::query_scalar(serving::COUNT_SERVING).bind(&arn).fetch_one(&mut *tx).await?;
        if serving > 0 {
            return Ok(Deleted::InUse);
        }
        let gone: Option<CustomModel> =
            sqlx::query_as(SQL).bind(account_id).bind(&arn).fetch_optional(&mut *tx).await?;
        if gone.is_some() {
            sqlx::query(tags::CLEAR).bind(account_id).bind(&arn).execute(&mut *tx).await?;
            sqlx::query(imports::FORGET_MODEL).bind(account_id).bind(&arn).execute(&mut *tx).await?;
        }
        gone.map_or(Deleted::NotFound, |model| Deleted::Done(Box::new(model)))
    }))
}
