//! Provisioned throughput: a name to ask a foundation model or a custom model by, with places of its own among the
//! answers under way: one for each model unit (`app/door.rs`). There is no machine to be got ready, so it is in service
//! at once; a commitment holds until it ends, as it does at AWS.

pub mod create;
pub mod delete;
pub mod get;
pub mod list;
pub mod update;

use super::arn;
use crate::app::{App, models};
use crate::error::{Error, Kind, Result};
use crate::store::serving::Placed;
use crate::store::throughputs::Throughput;
use crate::store::{ModelStatus, custom_models};

/// The same answer for throughput that is not there and for one that is not the caller's.
fn no_such_throughput(identifier: &str) -> Error {
    Error::not_found(format!("Could not find the provisioned throughput '{identifier}'"))
}

/// What serves: the ARN of a model, and of the foundation model it goes back to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Served {
    model_arn: String,
    foundation_model_arn: String,
}

/// Reads `modelId`: a foundation model's id or ARN, or a custom model's ARN or name.
async fn served(app: &App, account: &str, identifier: &str) -> Result<Served> {
    if let Some(base) = models::foundation(app, identifier) {
        let model_arn = arn::foundation_model(&app.config.region, &base.id);
        return Ok(Served { foundation_model_arn: model_arn.clone(), model_arn });
    }
    let model = custom_models::find(&app.db, account, identifier).await?.ok_or_else(|| no_such_model(identifier))?;
    if model.status != ModelStatus::Active {
        return Err(not_active(model.status));
    }
    Ok(Served { model_arn: model.arn, foundation_model_arn: model.foundation_model_arn })
}

fn no_such_model(identifier: &str) -> Error {
    Error::not_found(format!("Could not find the model '{identifier}'"))
}

fn not_active(status: ModelStatus) -> Error {
    Error::validation(format!("The custom model is {status}: only an Active model can be provisioned"))
}

/// What a caller is told about a request to serve a model. The operations declare no ConflictException,
/// so a taken name and a reused token are ValidationExceptions.
fn answer(placed: Placed<Throughput>, wanted: &Throughput) -> Result<Throughput> {
    match placed {
        Placed::Done(throughput) | Placed::Already(throughput) => Ok(throughput),
        Placed::TokenConflict => {
            Err(Error::validation("The clientRequestToken was used before with different parameters"))
        }
        Placed::NameTaken => Err(Error::validation("The provided provisioned model name is currently in use.")),
        Placed::NoSuchModel => Err(no_such_model(&wanted.model_arn)),
        Placed::ModelIs(status) => Err(not_active(status)),
        Placed::NoUnits { left } => Err(Error::new(
            Kind::QuotaExceeded,
            format!(
                "modelUnits is {}, but this service has {left} model units left: a unit keeps a place for an answer. \
                 Delete provisioned throughput that is not needed, or raise TUNESMITH_ANSWERS_AT_ONCE",
                wanted.model_units
            ),
        )),
        Placed::NotFound | Placed::DeploymentIs(_) => Err(no_such_throughput(&wanted.name)),
    }
}
