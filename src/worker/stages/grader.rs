//! Makes the grader of a reinforcement job: the function that `lambdaGrader` names, or what the hyperparameter
//! `grader` says, with the reward models that it asks.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::runtime::Handle;

use super::super::Worker;
use super::super::retry::retry_unavailable;
use super::super::run::Attempt;
use crate::app::artifact::{self, Artifact, Files, For};
use crate::error::{Error, Result};
use crate::graders::{BuiltIn, Lambda, LambdaEndpoint, MAX_GRADER_BYTES, RewardModel, Spec};
use crate::objects::Uri;
use crate::store::{CustomizationType, custom_models};
use crate::train::{Grader, Plan};

/// The grader of this attempt's job; `None` when it is no reinforcement job.
pub(crate) async fn grader(worker: &Worker, attempt: &Attempt, plan: &Plan) -> Result<Option<Box<dyn Grader>>> {
    let spec = &attempt.claim.job.spec;
    if spec.customization_type != CustomizationType::ReinforcementFineTuning {
        return Ok(None);
    }
    let config = &worker.app.config;
    let arn = spec
        .customization_config
        .as_ref()
        .and_then(|config| config.pointer("/rftConfig/graderConfig/lambdaGrader/lambdaArn")?.as_str());
    if let Some(arn) = arn {
        let url = config.lambda_endpoint.clone().ok_or_else(|| {
            Error::validation(
                "The worker that took this job does not know where Lambda functions answer: set \
                 TUNESMITH_LAMBDA_ENDPOINT on every worker, then create a new job.",
            )
        })?;
        let keys = config.s3_access_key.clone().zip(config.s3_secret_key.as_ref());
        let endpoint = LambdaEndpoint {
            url,
            // They go into a signature.
            credentials: keys.map(|(access, secret)| (access, secret.expose().to_string())),
            region: config.region.clone(),
            timeout: Duration::from_secs(config.lambda_timeout_seconds),
        };
        return Ok(Some(Box::new(Lambda::new(endpoint, arn, worker.app.clock.clone(), Handle::current()))));
    }

    let Some(given) = &plan.settings.grader else {
        return Err(Error::validation(
            "a reinforcement job needs a grader: graderConfig.lambdaGrader or the hyperparameter grader",
        ));
    };
    let text = if given.trim_start().starts_with("s3://") {
        let uri = Uri::parse(given.trim())?;
        let download = async || attempt.objects.get_bytes(&uri, MAX_GRADER_BYTES).await;
        let bytes = retry_unavailable(&attempt.halt, "downloading the grader", download).await?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| Error::validation(format!("The grader {uri} is not UTF-8: save it as UTF-8 JSON.")))?
    } else {
        given.clone()
    };
    let grader = Spec::parse(&text)?;
    let mut models: BTreeMap<String, Box<dyn Grader>> = BTreeMap::new();
    for name in grader.reward_models() {
        models.insert(name.to_string(), Box::new(reward_model(worker, attempt, name).await?));
    }
    Ok(Some(Box::new(BuiltIn::new(grader, models)?)))
}

/// A custom model of the job's owner that was trained as a reward model.
async fn reward_model(worker: &Worker, attempt: &Attempt, name: &str) -> Result<RewardModel> {
    let app = &worker.app;
    let account = &attempt.claim.job.spec.account_id;
    let find = async || custom_models::find(&app.db, account, name).await;
    let model = retry_unavailable(&attempt.halt, "looking for the reward model", find).await?;
    let model = model
        .ok_or_else(|| Error::validation(format!("The grader asks the reward model {name}, which does not exist.")))?;
    let base = app.registry.get(&model.base_model_id).ok_or_else(|| {
        Error::validation(format!(
            "The base model {} of the reward model {name} is not installed here.",
            model.base_model_id
        ))
    })?;
    let fetch = async || artifact::fetch(app, &Files::from(&model), For::Job).await;
    let (artifact, hold) = retry_unavailable(&attempt.halt, "fetching the reward model", fetch).await?;
    attempt.keep(hold);
    match artifact {
        Artifact::Adapter(adapter) => Ok(RewardModel::new(app.engine.clone(), base.dir.clone(), adapter)),
        Artifact::Whole(_) => Err(Error::validation(format!(
            "The custom model {name} is no reward model: one is made by trainingObjective reward."
        ))),
    }
}
