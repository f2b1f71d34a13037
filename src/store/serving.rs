//! What deployments and provisioned throughput have in common: each serves a model of the same
//! account, and a model that is served is not deleted. Both sides hold the model's row first, so
//! neither can slip past the other.

use super::db::{Db, run};
use super::status::{DeploymentStatus, ModelStatus};
use crate::error::Result;

/// What became of a request to serve a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Placed<T> {
    /// It is there.
    Done(T),
    /// A request with the same token and the same parameters made this before; nothing was changed.
    Already(T),
    /// The token was used for another request.
    TokenConflict,
    /// The account has one of that name.
    NameTaken,
    /// The account has no such custom model.
    NoSuchModel,
    /// The model is there, but it cannot be asked.
    ModelIs(ModelStatus),
    /// The deployment is there, but it cannot be changed (updates only).
    DeploymentIs(DeploymentStatus),
    /// More model units than there are places for: so many are left (provisioned throughput only).
    NoUnits {
        /// Units that could be had.
        left: i64,
    },
    /// The account has none of that ARN or name (updates only).
    NotFound,
}

/// Holds a custom model's row until the transaction ends: a write that changes nothing.
pub(super) const HOLD_MODEL: &str =
    "UPDATE custom_models SET arn = arn WHERE account_id = $1 AND arn = $2 RETURNING status";

/// How many serve a model, or are about to.
pub(super) const COUNT_SERVING: &str = "SELECT
    (SELECT COUNT(*) FROM model_deployments WHERE (model_arn = $1 AND status <> 'Failed')
        OR (update_model_arn = $1 AND update_status = 'Updating'))
    + (SELECT COUNT(*) FROM provisioned_throughputs WHERE model_arn = $1)";

/// What stands behind a name to ask by.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Behind {
    /// Its name.
    pub name: String,
    /// The model that answers.
    pub model_arn: String,
    /// Where the deployment stands, which answers only while it is Active; `None` behind provisioned throughput.
    pub deployment_status: Option<DeploymentStatus>,
    /// Why the deployment, or its last update, could not be made.
    pub failure_message: Option<String>,
    /// The id of the provisioned throughput; `None` behind a deployment.
    pub throughput: Option<String>,
    /// Its model units.
    pub units: i64,
}

/// What stands behind the account's deployment or provisioned throughput of this ARN or name; `None` when there is
/// neither. A deployment comes before a throughput of the same name, also while it cannot be asked: another model must
/// not answer in its place.
pub async fn behind(db: &Db, account_id: &str, identifier: &str) -> Result<Option<Behind>> {
    const SQL: &str = "SELECT name, model_arn, deployment_status, failure_message, throughput, units FROM (
            SELECT 0 AS place, name, model_arn, status AS deployment_status, failure_message, NULL AS throughput,
                0 AS units
                FROM model_deployments WHERE account_id = $1 AND (arn = $2 OR name = $2)
            UNION ALL SELECT 1 AS place, name, model_arn, NULL AS deployment_status, NULL AS failure_message,
                id AS throughput, model_units AS units
                FROM provisioned_throughputs
                WHERE account_id = $1 AND (arn = $2 OR name = $2) AND status IN ('InService', 'Updating')
        ) AS serving ORDER BY place LIMIT 1";
    Ok(run!(db, |on| sqlx::query_as(SQL).bind(account_id).bind(identifier).fetch_optional(on).await)?)
}

/// Leaves the transaction unless the account's custom model is there and can be asked.
macro_rules! hold_active_model {
    ($tx:ident, $account:expr, $arn:expr) => {
        match sqlx::query_scalar::<_, $crate::store::ModelStatus>($crate::store::serving::HOLD_MODEL)
            .bind($account)
            .bind($arn)
            .fetch_optional(&mut *$tx)
            .await?
        {
            None => return Ok($crate::store::serving::Placed::NoSuchModel),
            Some($crate::store::ModelStatus::Active) => {}
            Some(status) => return Ok($crate::store::serving::Placed::ModelIs(status)),
        }
    };
}

pub(super) use hold_active_model;
