//! Table `customization_jobs`, as callers see it: accept, find, list, stop. What workers do to it is
//! in [`super::queue`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::db::{Db, end_time, name_lock, run, timed_sql, transaction};
use super::job_events;
use super::page::{Cursor, Filter, Listed, Order};
use super::status::{CustomizationType, Status, Tasks};
use super::tags::{self, Tag};
use super::text::Json;
use crate::clock::{DatabaseTime, Millis};
use crate::error::{Error, Result};

/// What was asked for: set when the job is accepted and never changed.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct JobSpec {
    /// The twelve characters that end the ARN.
    pub id: String,
    /// Whose job it is.
    pub account_id: String,
    /// `arn:aws:bedrock:<region>:<account>:model-customization-job/<base model>/<id>`
    pub arn: String,
    /// `jobName`, unique in the account for good.
    pub name: String,
    /// `clientRequestToken`, unique in the account.
    pub request_token: Option<String>,
    /// Digest of the whole request without the token: the same token with another digest is a conflict.
    pub request_digest: String,
    /// What to do to the base model.
    pub customization_type: CustomizationType,
    /// Id of the root foundation model, as the registry knows it.
    pub base_model_id: String,
    /// ARN of the direct parent: a foundation model or a custom model.
    pub base_model_arn: String,
    /// ARN of the root foundation model.
    pub foundation_model_arn: String,
    /// `customModelName`.
    pub output_model_name: String,
    /// `roleArn`, echoed.
    pub role_arn: String,
    /// The full ARN of `customModelKmsKeyId`.
    pub kms_key_arn: Option<String>,
    /// `hyperParameters`, exactly as sent.
    pub hyper_parameters: Json<BTreeMap<String, String>>,
    /// `trainingDataConfig`, as sent.
    pub training_data: Json<Value>,
    /// `validationDataConfig`, as sent.
    pub validation_data: Option<Json<Value>>,
    /// `outputDataConfig`, as sent.
    pub output_data: Json<Value>,
    /// `vpcConfig`, echoed.
    pub vpc_config: Option<Json<Value>>,
    /// `customizationConfig`, as sent.
    pub customization_config: Option<Json<Value>>,
    /// `customModelTags`, put on the model when it is made.
    pub model_tags: Json<Vec<Tag>>,
    /// Seed of the run, so that every attempt draws the same numbers.
    pub seed: i64,
    /// When the job was accepted.
    pub creation_time: Millis,
}

impl JobSpec {
    /// `trainingDataConfig.s3Uri`.
    pub fn training_uri(&self) -> Option<&str> {
        self.training_data.get("s3Uri")?.as_str()
    }

    /// `trainingDataConfig.invocationLogsConfig.invocationLogSource.s3Uri`.
    pub fn invocation_logs_uri(&self) -> Option<&str> {
        self.training_data.get("invocationLogsConfig")?.get("invocationLogSource")?.get("s3Uri")?.as_str()
    }

    /// `validationDataConfig.validators[].s3Uri`, in order.
    pub fn validation_uris(&self) -> Vec<&str> {
        let validators = self.validation_data.as_ref().and_then(|data| data.get("validators")?.as_array());
        validators.into_iter().flatten().filter_map(|validator| validator.get("s3Uri")?.as_str()).collect()
    }

    /// The folder all outputs of this job lie under: `<outputDataConfig.s3Uri>/model-customization-job-<id>`.
    pub fn output_prefix(&self) -> Option<String> {
        let uri = self.output_data.get("s3Uri")?.as_str()?;
        Some(format!("{}/model-customization-job-{}", uri.trim_end_matches('/'), self.id))
    }
}

/// How far a running job has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    /// What is being done, in a word or two.
    pub phase: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// Loss of the last step.
    pub training_loss: Option<f64>,
    /// What the objective measured beside the loss in the last step, by name (`rewards/margins`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, f64>,
    /// Loss of the last validation.
    pub validation_loss: Option<f64>,
    /// Tokens trained per second, lately.
    pub tokens_per_second: Option<f64>,
}

/// A customization job.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Job {
    /// What was asked for.
    #[sqlx(flatten)]
    pub spec: JobSpec,
    /// Where it stands.
    pub status: Status,
    /// Its sub-tasks.
    pub tasks: Json<Tasks>,
    /// How far it has come; absent until a worker began.
    pub progress: Option<Json<Progress>>,
    /// `trainingMetrics.trainingLoss`: set when completed.
    pub training_loss: Option<f64>,
    /// `validationMetrics[].validationLoss`, one per validator: set when completed.
    pub validation_losses: Option<Json<Vec<f64>>>,
    /// Why it failed.
    pub failure_message: Option<String>,
    /// The model it made.
    pub output_model_arn: Option<String>,
    /// When the status or a sub-task last changed.
    pub last_modified_time: Millis,
    /// When it ended.
    pub end_time: Option<Millis>,
    /// How many times a worker took it.
    pub attempt: i64,
    /// Who holds it.
    pub worker: Option<String>,
    /// Until when.
    pub lease_until: Option<Millis>,
    /// Attempts lost since a checkpoint was last written, weighted (see `jobs/queue.rs`).
    pub strikes: i64,
    /// The attempt whose uploaded outputs are the result.
    pub published_attempt: Option<i64>,
    /// Digests and metrics of those outputs.
    pub published: Option<Json<Value>>,
}

macro_rules! columns {
    () => {
        "id, account_id, arn, name, request_token, request_digest, customization_type, base_model_id, base_model_arn,
         foundation_model_arn, output_model_name, role_arn, kms_key_arn, hyper_parameters, training_data,
         validation_data, output_data, vpc_config, customization_config, model_tags, seed, creation_time,
         status, tasks, progress, training_loss, validation_losses, failure_message, output_model_arn,
         last_modified_time, end_time, attempt, worker, lease_until, strikes, published_attempt, published"
    };
}
pub(super) use columns;

/// What became of a request for a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    /// The job is stored.
    Inserted,
    /// The same request was accepted before, under the same token: this is its job.
    AlreadyAccepted(Box<Job>),
    /// Another request was accepted under this token.
    TokenConflict,
    /// The account has, or had, a job of this name.
    NameTaken,
    /// The account has a model of this name, or a running job that will make one.
    ModelNameTaken,
}

/// Stores a job with its tags and its first event, in one transaction. The token is looked at before
/// the names, because a repeated request carries both.
pub async fn insert(db: &Db, spec: &JobSpec, job_tags: &[Tag]) -> Result<Accepted> {
    // An insertion that met a row which is gone a moment later (a rolled-back rival) is tried again.
    for _ in 0..3 {
        if try_insert(db, spec, job_tags).await? {
            return Ok(Accepted::Inserted);
        }
        if let Some(refusal) = refusal(db, spec).await? {
            return Ok(refusal);
        }
    }
    Err(Error::unavailable(anyhow::anyhow!("job {} kept meeting rows that were gone when looked for", spec.name)))
}

/// Whether the job could be stored; otherwise nothing was.
async fn try_insert(db: &Db, spec: &JobSpec, job_tags: &[Tag]) -> Result<bool> {
    const SQL: &str = "INSERT INTO customization_jobs
            (id, account_id, arn, name, request_token, request_digest, customization_type, base_model_id,
             base_model_arn, foundation_model_arn, output_model_name, role_arn, kms_key_arn, hyper_parameters,
             training_data, validation_data, output_data, vpc_config, customization_config, model_tags, seed,
             creation_time, last_modified_time, tasks, status, attempt, strikes, scratch)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
                $22, $22, $23, 'InProgress', 0, 0, 0)
        ON CONFLICT DO NOTHING";
    const MODEL: &str = "SELECT COUNT(*) FROM custom_models WHERE account_id = $1 AND name = $2";
    Ok(transaction!(db, |tx| {
        name_lock!(db, tx, &spec.account_id, &spec.output_model_name);
        let rows = sqlx::query(SQL)
            .bind(&spec.id)
            .bind(&spec.account_id)
            .bind(&spec.arn)
            .bind(&spec.name)
            .bind(&spec.request_token)
            .bind(&spec.request_digest)
            .bind(spec.customization_type)
            .bind(&spec.base_model_id)
            .bind(&spec.base_model_arn)
            .bind(&spec.foundation_model_arn)
            .bind(&spec.output_model_name)
            .bind(&spec.role_arn)
            .bind(&spec.kms_key_arn)
            .bind(&spec.hyper_parameters)
            .bind(&spec.training_data)
            .bind(&spec.validation_data)
            .bind(&spec.output_data)
            .bind(&spec.vpc_config)
            .bind(&spec.customization_config)
            .bind(&spec.model_tags)
            .bind(spec.seed)
            .bind(spec.creation_time)
            .bind(Json(Tasks::default()))
            .execute(&mut *tx)
            .await?
            .rows_affected();
        // Looked at after the insertion, which waited for any transaction that was publishing this very name.
        let models: i64 =
            sqlx::query_scalar(MODEL).bind(&spec.account_id).bind(&spec.output_model_name).fetch_one(&mut *tx).await?;
        if rows == 0 || models > 0 {
            return Ok(false);
        }
        for tag in job_tags {
            sqlx::query(tags::INSERT)
                .bind(&spec.account_id)
                .bind(&spec.arn)
                .bind(&tag.key)
                .bind(&tag.value)
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query(job_events::INSERT)
            .bind(&spec.account_id)
            .bind(&spec.id)
            .bind(0i64)
            .bind(spec.creation_time)
            .bind("Created")
            .bind(&spec.name)
            .execute(&mut *tx)
            .await?;
        true
    }))
}

/// Why the job could not be stored, or `None` when nothing stands in its way any more.
async fn refusal(db: &Db, spec: &JobSpec) -> Result<Option<Accepted>> {
    const TOKEN: &str =
        concat!("SELECT ", columns!(), " FROM customization_jobs WHERE account_id = $1 AND request_token = $2");
    const NAME: &str = "SELECT COUNT(*) FROM customization_jobs WHERE account_id = $1 AND name = $2";
    const MODEL_NAME: &str = "SELECT
            (SELECT COUNT(*) FROM customization_jobs
                WHERE account_id = $1 AND output_model_name = $2 AND status IN ('InProgress', 'Stopping'))
            + (SELECT COUNT(*) FROM custom_models WHERE account_id = $1 AND name = $2)";
    if let Some(token) = &spec.request_token {
        let job: Option<Job> =
            run!(db, |on| sqlx::query_as(TOKEN).bind(&spec.account_id).bind(token).fetch_optional(on).await)?;
        match job {
            Some(job) if job.spec.request_digest == spec.request_digest => {
                return Ok(Some(Accepted::AlreadyAccepted(Box::new(job))));
            }
            Some(_) => return Ok(Some(Accepted::TokenConflict)),
            None => {}
        }
    }
    let names: i64 =
        run!(db, |on| sqlx::query_scalar(NAME).bind(&spec.account_id).bind(&spec.name).fetch_one(on).await)?;
    if names > 0 {
        return Ok(Some(Accepted::NameTaken));
    }
    let models: i64 = run!(db, |on| sqlx::query_scalar(MODEL_NAME)
        .bind(&spec.account_id)
        .bind(&spec.output_model_name)
        .fetch_one(on)
        .await)?;
    Ok((models > 0).then_some(Accepted::ModelNameTaken))
}

/// The job accepted under this token, so that a repeated request is answered before its names and its
/// objects are checked. Compare [`JobSpec::request_digest`].
pub async fn by_token(db: &Db, account_id: &str, token: &str) -> Result<Option<Job>> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM customization_jobs WHERE account_id = $1 AND request_token = $2");
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(token).fetch_optional(on).await)?)
}

/// The account's job with this ARN or name.
pub async fn find(db: &Db, account_id: &str, identifier: &str) -> Result<Option<Job>> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM customization_jobs WHERE account_id = $1 AND (arn = $2 OR name = $2)");
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(identifier).fetch_optional(on).await)?)
}

macro_rules! page_sql {
    ($comparison:literal, $direction:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM customization_jobs
             WHERE account_id = $1 AND (creation_time, id) ",
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

/// One page of the account's jobs.
pub async fn list(db: &Db, account_id: &str, status: Option<Status>, filter: &Filter) -> Result<Listed<Job>> {
    let sql = match filter.order {
        Order::Ascending => page_sql!(">", "ASC"),
        Order::Descending => page_sql!("<", "DESC"),
    };
    let (time, id) = filter.bounds();
    let jobs = run!(db, |on| sqlx::query_as(sql)
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
    Ok(filter.page(jobs, |job: &Job| Cursor { creation_time: job.spec.creation_time, id: job.spec.id.clone() }))
}

/// What became of a request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRequest {
    /// The job is stopping, or, if no worker held it, stopped.
    Accepted,
    /// It was stopping already.
    AlreadyStopping,
    /// It has ended.
    Ended(Status),
    /// The account has no such job.
    NotFound,
}

// The time is read once: all columns are decided by the same moment.
macro_rules! stop_sql {
    ($now:literal) => {
        concat!(
            "UPDATE customization_jobs SET
                status = CASE WHEN lease_until > moment THEN 'Stopping' ELSE 'Stopped' END,
                end_time = CASE WHEN lease_until > moment THEN NULL ELSE ",
            end_time!("$3"),
            " END,
                worker = CASE WHEN lease_until > moment THEN worker END,
                lease_until = CASE WHEN lease_until > moment THEN lease_until END,
                last_modified_time = ",
            end_time!("$3"),
            " FROM (SELECT ",
            $now,
            " + $4 AS moment) AS database_clock
             WHERE account_id = $1 AND (arn = $2 OR name = $2) AND status = 'InProgress'
             RETURNING id, attempt, status"
        )
    };
}

/// Asks a running job to stop. A job that no worker holds stops at once: nobody else would say so.
pub async fn request_stop(
    db: &Db,
    account_id: &str,
    identifier: &str,
    now: Millis,
    at: DatabaseTime,
) -> Result<StopRequest> {
    let stop = timed_sql!(db, stop_sql);
    const STATUS: &str = "SELECT status FROM customization_jobs WHERE account_id = $1 AND (arn = $2 OR name = $2)";
    let stopped = transaction!(db, |tx| {
        let row: Option<(String, i64, Status)> = sqlx::query_as(stop)
            .bind(account_id)
            .bind(identifier)
            .bind(now)
            .bind(at.shift_ms())
            .fetch_optional(&mut *tx)
            .await?;
        if let Some((id, attempt, status)) = &row {
            let mut kinds = vec!["StopRequested"];
            kinds.extend((*status == Status::Stopped).then_some("Stopped"));
            for kind in kinds {
                sqlx::query(job_events::INSERT)
                    .bind(account_id)
                    .bind(id)
                    .bind(attempt)
                    .bind(now)
                    .bind(kind)
                    .bind("")
                    .execute(&mut *tx)
                    .await?;
            }
        }
        row.is_some()
    });
    if stopped {
        return Ok(StopRequest::Accepted);
    }
    let status: Option<Status> =
        run!(db, |on| sqlx::query_scalar(STATUS).bind(account_id).bind(identifier).fetch_optional(on).await)?;
    Ok(match status {
        None => StopRequest::NotFound,
        Some(Status::InProgress | Status::Stopping) => StopRequest::AlreadyStopping,
        Some(ended) => StopRequest::Ended(ended),
    })
}
