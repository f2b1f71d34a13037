//! The shapes that several operations share, with the limits and patterns of the service model (source:
//! botocore 1.43.11, `bedrock` 2023-04-20 and `bedrock-runtime` 2023-09-30). A shape states its limits
//! once: the check of a request and the OpenAPI document both read them.

use serde::{Deserialize, Serialize, Serializer};
use utoipa::openapi::schema::{KnownFormat, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::constraint::{Shape, Violations, choices, texts};
use super::customization::InvocationLogsConfig;
use crate::clock::Millis;
use crate::error::{Error, Kind, Result};
use crate::store;

texts! {
    /// A job's name, unique in the account for good.
    JobName, 1..=63, r"[a-zA-Z0-9](-*[a-zA-Z0-9\+\-\.])*";
    /// A custom model's name, unique among the account's models.
    CustomModelName, 1..=63, r"([0-9a-zA-Z][_-]?){1,63}";
    /// An IAM role. It is echoed: access to S3 is the service's own.
    RoleArn, 0..=2048, r"arn:aws(-[^:]+)?:iam::([0-9]{12})?:role/.+";
    /// Names a request: the same token again is the same request.
    IdempotencyToken, 1..=256, r"[a-zA-Z0-9]([-a-zA-Z0-9]{0,254}[a-zA-Z0-9])?";
    /// What to start from: a foundation model's id or ARN.
    BaseModelIdentifier, 1..=2048, r"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:(([0-9]{12}:custom-model/([a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([.]?[a-z0-9-]{1,63})([:][a-z0-9-]{1,63}){0,2})/[a-z0-9]{12})|(:foundation-model/[a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2})))|([a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([.]?[a-z0-9-]{1,63})([:][a-z0-9-]{1,63}){0,2})|(([0-9a-zA-Z][_-]?)+)";
    /// A KMS key: id, alias or ARN.
    KmsKeyId, 1..=2048, r"(arn:aws(-[^:]+)?:kms:[a-zA-Z0-9-]*:[0-9]{12}:((key/[a-zA-Z0-9-]{36})|(alias/[a-zA-Z0-9-_/]+)))|([a-zA-Z0-9-]{36})|(alias/[a-zA-Z0-9-_/]+)";
    /// A tag's key.
    TagKey, 1..=128, r"[a-zA-Z0-9\s._:/=+@-]*";
    /// A place in S3.
    S3Uri, 1..=1024, r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](?:/[-!_*'().a-z0-9A-Z]+(?:/[-!_*'().a-z0-9A-Z]+)*)?/?";
    /// A subnet, echoed.
    SubnetId, 0..=32, r"[-0-9a-zA-Z]+";
    /// A security group, echoed.
    SecurityGroupId, 0..=32, r"[-0-9a-zA-Z]+";
    /// A job's ARN or name.
    ModelCustomizationJobIdentifier, 0..=1011, r"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:model-customization-job/[a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([a-z0-9-]{1,63}[.]){0,2}[a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2}/[a-z0-9]{12})|([a-zA-Z0-9](-*[a-zA-Z0-9\+\-\.])*)";
    /// A custom model's ARN or name.
    ModelIdentifier, 1..=2048, r"arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:(([0-9]{12}:custom-model/((imported)|([a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}))(([:][a-z0-9-]{1,63}){0,2})?/[a-z0-9]{12})|(:foundation-model/([a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([.]?[a-z0-9-]{1,63})([:][a-z0-9-]{1,63}){0,2})))|(([a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([.]?[a-z0-9-]{1,63})([:][a-z0-9-]{1,63}){0,2}))|(([0-9a-zA-Z][_-]?)+)";
    /// A foundation model's id or ARN.
    GetFoundationModelIdentifier, 1..=2048, r"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}::foundation-model/[a-z0-9-]{1,63}[.]{1}([a-z0-9-]{1,63}[.]){0,2}[a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2})|([a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([.]?[a-z0-9-]{1,63})([:][a-z0-9-]{1,63}){0,2})";
    /// Which model to ask: a foundation model's id or ARN, or the ARN or name of a deployment, of provisioned
    /// throughput or of an imported model; as an extension also a custom model's, and a customization job's ARN.
    /// Wider than the service model's pattern, which leaves out custom models of bases with a version in their id.
    AskedModelIdentifier, 1..=2048, r"[a-zA-Z0-9_./:-]+";
    /// ARN of a foundation model or a custom model.
    ModelArn, 20..=1011, r"arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:(([0-9]{12}:custom-model/((imported)|([a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}))(([:][a-z0-9-]{1,63}){0,2})?/[a-z0-9]{12})|(:foundation-model/[a-z0-9-]{1,63}[.]{1}([a-z0-9-]{1,63}[.]){0,2}[a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2}))";
    /// ARN of a foundation model.
    FoundationModelArn, 0..=2048, r"arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}::foundation-model/[a-z0-9-]{1,63}[.]{1}([a-z0-9-]{1,63}[.]){0,2}[a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2}";
    /// Where the page before ended.
    PaginationToken, 1..=2048, r"\S*";
    /// Who made a model.
    Provider, 1..=63, r"[A-Za-z0-9- ]{1,63}";
    /// ARN of a custom model.
    CustomModelArn, 20..=1011, r"arn:aws(|-us-gov|-cn|-iso|-iso-b):bedrock:[a-z0-9-]{1,20}:[0-9]{12}:custom-model/(imported|[a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([a-z0-9-]{1,63}[.]){0,2}[a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2})/[a-z0-9]{12}";
    /// A deployment's name, unique among the account's deployments.
    ModelDeploymentName, 1..=63, r"([0-9a-zA-Z][_-]?){1,63}";
    /// A deployment's ARN or name.
    CustomModelDeploymentIdentifier, 1..=93, r"(arn:aws(|-us-gov|-cn|-iso|-iso-b):bedrock:[a-z0-9-]{1,20}:[0-9]{12}:custom-model-deployment/[a-z0-9]{12})|^([0-9a-zA-Z][_-]?){1,63}";
    /// What its owner says of a deployment.
    CustomModelDeploymentDescription, 1..=2048, r".*";
    /// The name of provisioned throughput, unique in the account.
    ProvisionedModelName, 1..=63, r"([0-9a-zA-Z][_-]?)+";
    /// ARN or name of provisioned throughput.
    ProvisionedModelId, 0..=2048, r"((([0-9a-zA-Z][_-]?)+)|(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:provisioned-model/[a-z0-9]{12}))";
    /// A foundation model's id.
    BedrockModelId, 0..=140, r"[a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([a-z0-9-]{1,63}[.]){0,2}[a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2}(/[a-z0-9]{12}|)";
    /// ARN of what carries tags.
    TaggableResourcesArn, 20..=1011, r".*(^[a-zA-Z0-9][a-zA-Z0-9\-]*$)|(^arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:custom-model/(imported)/[a-z0-9]{12}$)|(^arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:([0-9]{12}|)((:(fine-tuning-job|model-customization-job|custom-model)/[a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([a-z0-9-]{1,63}[.]){0,2}[a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2}(/[a-z0-9]{12})$)|(:guardrail/[a-z0-9]+$)|(:automated-reasoning-policy/[a-zA-Z0-9]+(:[a-zA-Z0-9]+)?$)|(:(inference-profile|application-inference-profile)/[a-zA-Z0-9-:.]+$)|(:(provisioned-model|model-invocation-job|model-evaluation-job|evaluation-job|model-import-job|imported-model|async-invoke|provisioned-model-v2|provisioned-model-reservation|prompt-router|custom-model-deployment)/[a-z0-9]{12}$))).*";
    /// A tag's value.
    TagValue, 0..=256, r"[a-zA-Z0-9\s._:/=+@-]*";
}

choices! {
    /// What a customization job does to its base model.
    CustomizationType,
    ["FINE_TUNING", "CONTINUED_PRE_TRAINING", "DISTILLATION", "REINFORCEMENT_FINE_TUNING", "IMPORTED"];
    /// What a foundation model may be customized with.
    ModelCustomization, ["FINE_TUNING", "CONTINUED_PRE_TRAINING", "DISTILLATION"];
    /// Where a job stands; one that waits for a trainer is in progress.
    JobStatus, ["InProgress", "Completed", "Failed", "Stopping", "Stopped"];
    /// Where a sub-task of a job stands.
    TaskStatus, ["InProgress", "Completed", "Stopping", "Stopped", "Failed", "NotStarted"];
    /// Where a custom model stands.
    ModelStatus, ["Active", "Creating", "Failed"];
    /// Where a deployment stands.
    DeploymentStatus, ["Creating", "Active", "Failed"];
    /// How an update of a deployment went.
    UpdateStatus, ["Updating", "UpdateCompleted", "UpdateFailed"];
    /// Where provisioned throughput stands.
    ThroughputStatus, ["Creating", "InService", "Updating", "Failed"];
    /// For how long provisioned throughput is bought.
    CommitmentDuration, ["OneMonth", "SixMonths"];
    /// What listings are sorted by.
    SortBy, ["CreationTime"];
    /// The order of a listing.
    SortOrder, ["Ascending", "Descending"];
    /// What a model reads or writes.
    Modality, ["TEXT", "IMAGE", "EMBEDDING"];
    /// How a model can be asked.
    InferenceType, ["ON_DEMAND", "PROVISIONED"];
}

/// A point in time: RFC 3339 with milliseconds and `Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Millis);

impl Time {
    /// Reads what clients send: any offset, up to nine decimals.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|time| Self(time.as_millisecond()))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = jiff::Timestamp::from_millisecond(self.0).map_err(serde::ser::Error::custom)?;
        serializer.collect_str(&time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}

impl PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .into()
    }
}

impl ToSchema for Time {}

/// A label on a job or a model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct Tag {
    /// Unique on its resource.
    #[schema(required)]
    pub key: Option<TagKey>,
    /// Any text of the allowed characters.
    #[schema(required)]
    pub value: Option<TagValue>,
}

impl Shape for Tag {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required(&format!("{at}.key"), self.key.as_ref());
        if let Some(key) = self.key.as_ref().filter(|key| key.0.starts_with("aws:")) {
            violations.add(&key.0, &format!("{at}.key"), "Member must not begin with aws:, which AWS reserves");
        }
        violations.required(&format!("{at}.value"), self.value.as_ref());
    }
}

/// Refuses more tags than a resource can carry.
pub fn check_tag_count(tags: Option<&[Tag]>, member: &str, resource: Option<&str>) -> Result<()> {
    if tags.is_some_and(|tags| tags.len() > store::tags::LIMIT) {
        let message = format!("{member} holds more than the {} tags that one resource can carry", store::tags::LIMIT);
        return Err(Error::new(Kind::TooManyTags, message).about(resource.unwrap_or_default()));
    }
    Ok(())
}

/// The checked tags as the store keeps them.
pub fn stored_tags(tags: Option<Vec<Tag>>) -> Vec<store::tags::Tag> {
    let pairs = tags.into_iter().flatten().filter_map(|tag| tag.key.zip(tag.value));
    pairs.map(|(key, value)| store::tags::Tag { key: key.0, value: value.0 }).collect()
}

/// Where the training records lie.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingDataConfig {
    /// A JSONL file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_uri: Option<S3Uri>,
    /// Invocation logs to distil from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocation_logs_config: Option<InvocationLogsConfig>,
}

impl Shape for TrainingDataConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.optional(&format!("{at}.s3Uri"), self.s3_uri.as_ref());
        violations.optional(&format!("{at}.invocationLogsConfig"), self.invocation_logs_config.as_ref());
        let logs = self.invocation_logs_config.is_some();
        violations.union(at, &[("s3Uri", self.s3_uri.is_some()), ("invocationLogsConfig", logs)]);
    }
}

/// Where validation records lie: one loss is reported for each file.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct ValidationDataConfig {
    /// Up to ten files.
    #[schema(required, max_items = 10)]
    pub validators: Option<Vec<Validator>>,
}

impl Shape for ValidationDataConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required_list(&format!("{at}.validators"), self.validators.as_deref(), 0, 10);
    }
}

/// One file of validation records.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Validator {
    /// A JSONL file.
    #[schema(required)]
    pub s3_uri: Option<S3Uri>,
}

impl Shape for Validator {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required(&format!("{at}.s3Uri"), self.s3_uri.as_ref());
    }
}

/// Where a job's outputs go.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutputDataConfig {
    /// A folder: a job writes under `model-customization-job-<id>/` in it.
    #[schema(required)]
    pub s3_uri: Option<S3Uri>,
}

impl Shape for OutputDataConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required(&format!("{at}.s3Uri"), self.s3_uri.as_ref());
    }
}

/// A private network, echoed.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VpcConfig {
    /// Its subnets.
    #[schema(required, min_items = 1, max_items = 16)]
    pub subnet_ids: Option<Vec<SubnetId>>,
    /// Its security groups.
    #[schema(required, min_items = 1, max_items = 5)]
    pub security_group_ids: Option<Vec<SecurityGroupId>>,
}

impl Shape for VpcConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required_list(&format!("{at}.subnetIds"), self.subnet_ids.as_deref(), 1, 16);
        violations.required_list(&format!("{at}.securityGroupIds"), self.security_group_ids.as_deref(), 1, 5);
    }
}

/// The last training loss.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingMetrics {
    /// Mean over the predicted tokens of the last step.
    pub training_loss: f64,
}

/// The last loss on one validator.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValidatorMetric {
    /// Mean over the predicted tokens of the file.
    pub validation_loss: f64,
}

/// The stored losses as the contract shows them.
pub fn validator_metrics(losses: Option<&[f64]>) -> Vec<ValidatorMetric> {
    losses.unwrap_or_default().iter().map(|&validation_loss| ValidatorMetric { validation_loss }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_milliseconds_and_read_in_every_form() {
        assert_eq!(serde_json::to_string(&Time(1_706_790_896_789)).unwrap(), "\"2024-02-01T12:34:56.789Z\"");
        assert_eq!(serde_json::to_string(&Time(0)).unwrap(), "\"1970-01-01T00:00:00.000Z\"");
        for text in ["2024-02-01T12:34:56.789Z", "2024-02-01T12:34:56.789123Z", "2024-02-01T13:34:56.789+01:00"] {
            assert_eq!(Time::parse(text), Some(Time(1_706_790_896_789)), "{text}");
        }
        assert_eq!(Time::parse("yesterday"), None);
        assert_eq!(Time::parse("1706790896"), None);
    }

    #[test]
    fn patterns_match_the_whole_text() {
        let violations = |shape: &dyn Shape| {
            let mut violations = Violations::default();
            shape.check("field", &mut violations);
            violations.finish().err().map(|error| error.message().to_string())
        };
        assert_eq!(violations(&JobName("my-job+1.2".into())), None);
        assert!(violations(&JobName("my job".into())).unwrap().contains("Value 'my job' at 'field' failed to satisfy"));
        assert_eq!(violations(&BaseModelIdentifier("tunesmith.starter-v1:0".into())), None);
        assert_eq!(violations(&S3Uri("s3://my-bucket/a/b.jsonl".into())), None);
        assert!(violations(&S3Uri("x s3://my-bucket/a".into())).is_some());
        assert!(violations(&S3Uri("s3://my_bucket/a".into())).is_some());
        let long = violations(&JobName("a".repeat(64))).unwrap();
        assert!(long.ends_with("Member must have length less than or equal to 63"), "{long}");
    }
}
