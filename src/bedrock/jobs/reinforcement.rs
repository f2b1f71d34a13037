//! What a reinforcement job needs beside what every job needs: hyperparameters of two kinds, and one grader.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::bedrock::customization::RftConfig;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::graders::Spec;
use crate::objects::Uri;
use crate::train::{Settings, reinforcement_hyper_parameters};

/// The hyperparameters, those of the request's map and the typed ones together.
pub(super) fn settings(
    given: &BTreeMap<String, String>,
    rft: Option<&RftConfig>,
    defaults: &BTreeMap<String, String>,
) -> Result<Settings> {
    let rft: Option<Value> = rft.map(serde_json::to_value).transpose()?;
    Settings::parse(&reinforcement_hyper_parameters(given, rft.as_ref())?, defaults)
}

/// Checks that there is exactly one grader, and that it can grade for `account`.
pub(super) fn check_grader(config: &Config, account: &str, rft: Option<&RftConfig>, settings: &Settings) -> Result<()> {
    let lambda = rft.and_then(|rft| rft.grader_config.as_ref()).and_then(|grader| grader.lambda_grader.as_ref());
    match (lambda, &settings.grader) {
        (Some(_), Some(_)) => Err(Error::validation(
            "customizationConfig.rftConfig.graderConfig and the hyperparameter grader each name a grader: give one",
        )),
        (None, None) => Err(Error::validation(
            "A reinforcement job needs a grader: give customizationConfig.rftConfig.graderConfig.lambdaGrader, or the \
             hyperparameter grader with a built-in one such as {\"type\": \"string_check\", \"operation\": \"eq\", \"input\": \
             \"{{ sample.output_text }}\", \"reference\": \"{{ item.reference_answer }}\"}",
        )),
        (Some(_), None) if config.lambda_endpoint.is_none() => Err(Error::validation(
            "This service does not know where Lambda functions answer: start it with TUNESMITH_LAMBDA_ENDPOINT, or give \
             the hyperparameter grader with a built-in one",
        )),
        (Some(lambda), None) => match &lambda.lambda_arn {
            // The service calls with rights of its own, so whose function it is has to be asked here.
            Some(arn) if account != config.account_id && arn.0.split(':').nth(4) != Some(account) => {
                Err(Error::validation(format!(
                    "Could not validate InvokeFunction permissions to access the Lambda function {}: give a function of \
                     the account {account}",
                    arn.0
                )))
            }
            _ => Ok(()),
        },
        (None, Some(grader)) => match file(grader) {
            Some(uri) => Uri::parse(uri).map(drop),
            None => Spec::parse(grader).map(drop),
        },
    }
}

/// The file that the hyperparameter `grader` names, if it names one.
pub(super) fn file(grader: &str) -> Option<&str> {
    Some(grader.trim()).filter(|text| text.starts_with("s3://"))
}
