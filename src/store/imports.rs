//! Table `model_imports`: requests to bring in a model that was made elsewhere. An import job becomes a
//! row of `imported_models`; a CreateCustomModel makes its row of `custom_models` active. Workers take
//! the rows by the rules of the job queue: a claim counts the attempt up, and every later write of the
//! worker names the attempt.

use std::collections::BTreeMap;

use serde_json::Value;

use super::custom_models::{self, CustomModel};
use super::db::{Db, end_time, name_lock, run, timed_sql, transaction};
use super::imported_models::{self, ImportedModel};
use super::page::{Cursor, Filter, Listed, Order};
use super::status::{ImportKind, ImportStatus};
use super::tags::{self, Tag};
use super::text::{Json, storable};
use crate::clock::{DatabaseTime, Millis};
use crate::error::Result;

/// A request to bring in a model.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Import {
    /// The twelve characters that end the job's ARN; of a CreateCustomModel the model's.
    pub id: String,
    /// Whose it is.
    pub account_id: String,
    /// What it becomes.
    pub kind: ImportKind,
    /// `arn:aws:bedrock:<region>:<account>:model-import-job/<id>`; none for a CreateCustomModel.
    pub arn: Option<String>,
    /// The job's name; none for a CreateCustomModel.
    pub name: Option<String>,
    /// The twelve characters that end the model's ARN.
    pub model_id: String,
    /// The ARN that the model has, or will have.
    pub model_arn: String,
    /// The name that the model has, or will have.
    pub model_name: String,
    /// The role to read with.
    pub role_arn: Option<String>,
    /// A KMS key, echoed.
    pub kms_key_arn: Option<String>,
    /// `modelDataSource`, as sent.
    pub source: Json<Value>,
    /// `vpcConfig`, as sent.
    pub vpc_config: Option<Json<Value>>,
    /// Tags for the model.
    pub model_tags: Json<Vec<Tag>>,
    /// The token of the request.
    pub request_token: Option<String>,
    /// SHA-256 of the request without its token.
    pub request_digest: String,
    /// Where it stands.
    pub status: ImportStatus,
    /// Why it failed.
    pub failure_message: Option<String>,
    /// When it was asked for.
    pub creation_time: Millis,
    /// When its status last changed.
    pub last_modified_time: Millis,
    /// When it ended.
    pub end_time: Option<Millis>,
    /// How many times a worker took it.
    pub attempt: i64,
    /// Attempts that came to no end, weighted.
    pub strikes: i64,
}

impl Import {
    /// The folder in S3.
    pub fn source_uri(&self) -> Option<&str> {
        self.source.get("s3DataSource")?.get("s3Uri")?.as_str()
    }
}

macro_rules! columns {
    () => {
        "id, account_id, kind, arn, name, model_id, model_arn, model_name, role_arn, kms_key_arn, source, vpc_config,
         model_tags, request_token, request_digest, status, failure_message, creation_time, last_modified_time,
         end_time, attempt, strikes"
    };
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    /// It is stored.
    Inserted,
    /// The same request was accepted before under the same token.
    Already(Box<Import>),
    /// Another request was accepted under this token.
    TokenConflict,
    /// The account has, or had, an import job of this name.
    NameTaken,
    /// The account has a model of this name, or a running job that will make one.
    ModelNameTaken,
}

macro_rules! insert {
    ($tx:ident, $import:expr, $job_tags:expr) => {{
        const SQL: &str = concat!(
            "INSERT INTO model_imports (",
            columns!(),
            ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                $21, $22) ON CONFLICT DO NOTHING"
        );
        let import: &Import = $import;
        let rows = sqlx::query(SQL)
            .bind(&import.id)
            .bind(&import.account_id)
            .bind(import.kind)
            .bind(&import.arn)
            .bind(&import.name)
            .bind(&import.model_id)
            .bind(&import.model_arn)
            .bind(&import.model_name)
            .bind(&import.role_arn)
            .bind(&import.kms_key_arn)
            .bind(&import.source)
            .bind(&import.vpc_config)
            .bind(&import.model_tags)
            .bind(&import.request_token)
            .bind(&import.request_digest)
            .bind(import.status)
            .bind(&import.failure_message)
            .bind(import.creation_time)
            .bind(import.last_modified_time)
            .bind(import.end_time)
            .bind(import.attempt)
            .bind(import.strikes)
            .execute(&mut *$tx)
            .await?
            .rows_affected();
        let tagged: Option<(&str, &[Tag])> = $job_tags;
        if let Some((arn, tags)) = tagged.filter(|_| rows == 1) {
            for tag in tags {
                sqlx::query(tags::INSERT)
                    .bind(&import.account_id)
                    .bind(arn)
                    .bind(&tag.key)
                    .bind(&tag.value)
                    .execute(&mut *$tx)
                    .await?;
            }
        }
        rows == 1
    }};
}

/// Stores an import job with its tags. The token is looked at before the names, because a repeated
/// request carries both.
pub async fn insert_job(db: &Db, import: &Import, job_tags: &[Tag]) -> Result<Accepted> {
    const NAME: &str = "SELECT COUNT(*) FROM model_imports WHERE account_id = $1 AND name = $2";
    if let Some(repeated) = repeated(db, import).await? {
        return Ok(repeated);
    }
    if try_insert_job(db, import, job_tags).await? {
        return Ok(Accepted::Inserted);
    }
    // Another request was faster: with the same token, or only with the same name.
    if let Some(repeated) = repeated(db, import).await? {
        return Ok(repeated);
    }
    let named: i64 =
        run!(db, |on| sqlx::query_scalar(NAME).bind(&import.account_id).bind(&import.name).fetch_one(on).await)?;
    Ok(if named > 0 { Accepted::NameTaken } else { Accepted::ModelNameTaken })
}

/// Whether the job could be stored; otherwise nothing was.
async fn try_insert_job(db: &Db, import: &Import, job_tags: &[Tag]) -> Result<bool> {
    Ok(transaction!(db, |tx| {
        let inserted = insert!(tx, import, import.arn.as_deref().map(|arn| (arn, job_tags)));
        // Looked at after the insertion, which waited for any transaction that was making this very name.
        let models: i64 = sqlx::query_scalar(imported_models::COUNT_NAME)
            .bind(&import.account_id)
            .bind(&import.model_name)
            .fetch_one(&mut *tx)
            .await?;
        if !inserted || models > 0 {
            return Ok(false);
        }
        true
    }))
}

/// Stores a custom model that is being brought in, with its tags, and the work on it.
pub async fn insert_model(db: &Db, import: &Import, model: &CustomModel) -> Result<Accepted> {
    if let Some(repeated) = repeated(db, import).await? {
        return Ok(repeated);
    }
    if try_insert_model(db, import, model).await? {
        return Ok(Accepted::Inserted);
    }
    Ok(repeated(db, import).await?.unwrap_or(Accepted::ModelNameTaken))
}

async fn try_insert_model(db: &Db, import: &Import, model: &CustomModel) -> Result<bool> {
    const PROMISED: &str = "SELECT COUNT(*) FROM customization_jobs
        WHERE account_id = $1 AND output_model_name = $2 AND status IN ('InProgress', 'Stopping')";
    Ok(transaction!(db, |tx| {
        name_lock!(db, tx, &model.account_id, &model.name);
        let inserted = insert!(tx, import, Some((model.arn.as_str(), import.model_tags.as_slice())));
        let rows = custom_models::insert!(tx, model, custom_models::INSERT_NEW);
        // A running job was promised the name that its model will have.
        let promised: i64 =
            sqlx::query_scalar(PROMISED).bind(&model.account_id).bind(&model.name).fetch_one(&mut *tx).await?;
        if !inserted || rows == 0 || promised > 0 {
            return Ok(false);
        }
        true
    }))
}

async fn repeated(db: &Db, import: &Import) -> Result<Option<Accepted>> {
    let Some(token) = &import.request_token else { return Ok(None) };
    let earlier = by_token(db, &import.account_id, import.kind, token).await?;
    Ok(earlier.map(|earlier| match earlier.request_digest == import.request_digest {
        true => Accepted::Already(Box::new(earlier)),
        false => Accepted::TokenConflict,
    }))
}

/// The request that came with this token.
pub async fn by_token(db: &Db, account_id: &str, kind: ImportKind, token: &str) -> Result<Option<Import>> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM model_imports WHERE account_id = $1 AND kind = $2 AND request_token = $3"
    );
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(kind).bind(token).fetch_optional(on).await)?)
}

/// The account's import job with this ARN or name.
pub async fn find_job(db: &Db, account_id: &str, identifier: &str) -> Result<Option<Import>> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM model_imports WHERE account_id = $1 AND kind = 'ImportedModel' AND (arn = $2 OR name = $2)"
    );
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(identifier).fetch_optional(on).await)?)
}

macro_rules! page_sql {
    ($comparison:literal, $direction:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM model_imports
             WHERE account_id = $1 AND kind = 'ImportedModel' AND (creation_time, id) ",
            $comparison,
            " ($2, $3)
                AND creation_time > $4 AND creation_time < $5
                AND lower(name) LIKE $6 ESCAPE '\\'
                AND ($7 IS NULL OR status = $7)
             ORDER BY creation_time ",
            $direction,
            ", id ",
            $direction,
            " LIMIT $8"
        )
    };
}

/// One page of the account's import jobs.
pub async fn list_jobs(
    db: &Db,
    account_id: &str,
    status: Option<ImportStatus>,
    filter: &Filter,
) -> Result<Listed<Import>> {
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
        .bind(status)
        .bind(filter.rows())
        .fetch_all(on)
        .await)?;
    Ok(filter.page(rows, |row: &Import| Cursor { creation_time: row.creation_time, id: row.id.clone() }))
}

/// Strikes that end a request.
pub const STRIKE_LIMIT: i64 = 12;

// An attempt that was lost while the model was being checked, which is what may take all memory, is a third of what a
// request may cost; one that was lost while it downloaded, a twelfth. The condition stands twice: a rival that waited
// for the row must find it taken.
macro_rules! claim_sql {
    ($now:literal) => {
        concat!(
            "UPDATE model_imports SET worker = $1, lease_until = ",
            $now,
            " + $2 + $3, attempt = attempt + 1, checking = 0,
                strikes = strikes + CASE WHEN lease_until IS NULL THEN 0 WHEN checking = 1 THEN 4 ELSE 1 END
             WHERE id = (SELECT id FROM model_imports
                         WHERE status = 'InProgress' AND (lease_until IS NULL OR lease_until <= ",
            $now,
            " + $4) ORDER BY creation_time, id LIMIT 1)
                AND status = 'InProgress' AND (lease_until IS NULL OR lease_until <= ",
            $now,
            " + $4)
             RETURNING ",
            columns!()
        )
    };
}

/// Gives the oldest request that nobody works on to a worker. A lease that ran out, by the database's clock, costs
/// strikes; what is done with a request that has [`STRIKE_LIMIT`] of them is the worker's to say.
pub async fn claim(db: &Db, worker: &str, lease_ms: Millis, at: DatabaseTime) -> Result<Option<Import>> {
    let sql = timed_sql!(db, claim_sql);
    Ok(run!(db, |on| sqlx::query_as(sql)
        .bind(worker)
        .bind(at.shift_ms())
        .bind(lease_ms)
        .bind(at.expiry_shift_ms())
        .fetch_optional(on)
        .await)?)
}

macro_rules! renew_sql {
    ($now:literal) => {
        concat!(
            "UPDATE model_imports SET lease_until = ",
            $now,
            " + $3 + $4 WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL"
        )
    };
}

/// Keeps a claim, also one whose lease has run out, as long as nobody else has taken the request. `false`: it is no
/// longer the worker's, or nobody wants the model any more.
pub async fn renew(db: &Db, import: &Import, lease_ms: Millis, at: DatabaseTime) -> Result<bool> {
    let sql = timed_sql!(db, renew_sql);
    let done = run!(db, |on| sqlx::query(sql)
        .bind(&import.id)
        .bind(import.attempt)
        .bind(at.shift_ms())
        .bind(lease_ms)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(done == 1)
}

/// Says that all files are here and the check begins. `false`: the request is no longer the worker's.
pub async fn begin_check(db: &Db, import: &Import) -> Result<bool> {
    const SQL: &str = "UPDATE model_imports SET checking = 1
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL";
    let done = run!(db, |on| sqlx::query(SQL)
        .bind(&import.id)
        .bind(import.attempt)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(done == 1)
}

/// Gives a claim back, at no cost to the request.
pub async fn release(db: &Db, import: &Import) -> Result<bool> {
    const SQL: &str = "UPDATE model_imports SET worker = NULL, lease_until = NULL
        WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL";
    let done = run!(db, |on| sqlx::query(SQL)
        .bind(&import.id)
        .bind(import.attempt)
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(done == 1)
}

macro_rules! bury_sql {
    ($now:literal) => {
        concat!(
            "UPDATE model_imports SET lease_until = ",
            $now,
            " + $2 WHERE worker = $1 AND lease_until > ",
            $now,
            " + $2"
        )
    };
}

/// Ends the leases of a worker that is gone.
pub async fn bury(db: &Db, worker: &str, at: DatabaseTime) -> Result<u64> {
    let sql = timed_sql!(db, bury_sql);
    Ok(run!(db, |on| sqlx::query(sql)
        .bind(worker)
        .bind(at.shift_ms())
        .execute(on)
        .await
        .map(|done| done.rows_affected()))?)
}

const END: &str = concat!(
    "UPDATE model_imports SET status = $3, failure_message = $4, end_time = ",
    end_time!("$5"),
    ", last_modified_time = ",
    end_time!("$5"),
    ", worker = NULL, lease_until = NULL
    WHERE id = $1 AND attempt = $2 AND status = 'InProgress' AND lease_until IS NOT NULL"
);

macro_rules! end {
    ($tx:ident, $import:expr, $status:expr, $message:expr, $now:expr) => {
        sqlx::query(END)
            .bind(&$import.id)
            .bind($import.attempt)
            .bind($status)
            .bind($message)
            .bind($now)
            .execute(&mut *$tx)
            .await?
            .rows_affected()
            == 1
    };
}

/// Ends an import job with its model. `false`: it is no longer the worker's, and nothing was written.
pub async fn complete_job(db: &Db, import: &Import, model: &ImportedModel) -> Result<bool> {
    Ok(transaction!(db, |tx| {
        if !end!(tx, import, ImportStatus::Completed, None::<String>, model.creation_time) {
            return Ok(false);
        }
        imported_models::insert!(tx, model);
        for tag in import.model_tags.iter() {
            sqlx::query(tags::INSERT)
                .bind(&model.account_id)
                .bind(&model.arn)
                .bind(&tag.key)
                .bind(&tag.value)
                .execute(&mut *tx)
                .await?;
        }
        true
    }))
}

/// Makes a custom model active. `false`: the work is no longer the worker's, and nothing was written.
pub async fn complete_model(db: &Db, import: &Import, digests: &BTreeMap<String, String>, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE custom_models SET status = 'Active', artifact_digests = $3
        WHERE account_id = $1 AND arn = $2 AND status = 'Creating'";
    Ok(transaction!(db, |tx| {
        if !end!(tx, import, ImportStatus::Completed, None::<String>, now) {
            return Ok(false);
        }
        sqlx::query(SQL).bind(&import.account_id).bind(&import.model_arn).bind(Json(digests)).execute(&mut *tx).await?;
        true
    }))
}

/// Ends a request that cannot be carried out. `false`: it is no longer the worker's.
pub async fn fail(db: &Db, import: &Import, message: &str, now: Millis) -> Result<bool> {
    const SQL: &str = "UPDATE custom_models SET status = 'Failed', failure_message = $3
        WHERE account_id = $1 AND arn = $2 AND status = 'Creating'";
    let message = storable(message);
    Ok(transaction!(db, |tx| {
        if !end!(tx, import, ImportStatus::Failed, Some(message.as_str()), now) {
            return Ok(false);
        }
        sqlx::query(SQL).bind(&import.account_id).bind(&import.model_arn).bind(&message).execute(&mut *tx).await?;
        true
    }))
}

/// Forgets the work on a custom model that is deleted.
pub(super) const FORGET_MODEL: &str =
    "DELETE FROM model_imports WHERE account_id = $1 AND model_arn = $2 AND kind = 'CustomModel'";
