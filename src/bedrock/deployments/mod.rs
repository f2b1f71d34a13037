//! Custom model deployments: a model is asked on demand under the deployment's ARN or name. What is accepted here,
//! `app/deployments.rs` makes ready: a deployment is active, and an update done, once the model is loaded.

pub mod create;
pub mod delete;
pub mod get;
pub mod list;
pub mod update;

use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::store::deployments::Deployment;
use crate::store::serving::Placed;

/// The deployment's ARN.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CustomModelDeploymentResponse)]
pub struct Response {
    /// ARN of the deployment: what to ask.
    pub custom_model_deployment_arn: String,
}

/// The same answer for a deployment that is not there and for one that is not the caller's.
fn no_such_deployment(identifier: &str) -> Error {
    Error::not_found(format!("Could not find the custom model deployment '{identifier}'"))
}

/// What a caller is told about a request to serve `model_arn`. The operations declare no
/// ConflictException, so a taken name and a reused token are ValidationExceptions.
fn answer(placed: Placed<Deployment>, identifier: &str, model_arn: &str) -> Result<Deployment> {
    match placed {
        Placed::Done(deployment) | Placed::Already(deployment) => Ok(deployment),
        Placed::TokenConflict => {
            Err(Error::validation("The clientRequestToken was used before with different parameters"))
        }
        Placed::NameTaken => Err(Error::validation("The provided deployment name is currently in use.")),
        Placed::NoSuchModel => Err(Error::not_found(format!("Could not find the custom model '{model_arn}'"))),
        Placed::ModelIs(status) => {
            Err(Error::validation(format!("The custom model is {status}: only an Active model can be deployed")))
        }
        Placed::DeploymentIs(status) => {
            Err(Error::validation(format!("The deployment is {status}: only an Active deployment can be updated")))
        }
        Placed::NotFound | Placed::NoUnits { .. } => Err(no_such_deployment(identifier)),
    }
}
