//! `customizationConfig` and `invocationLogsConfig`: what distillation and reinforcement fine-tuning need
//! beside a data set (source: botocore 1.43.11, `bedrock` 2023-04-20).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::constraint::{Shape, Violations, choices, texts};
use super::shapes::S3Uri;

texts! {
    /// ARN of a Lambda function.
    LambdaArn, 1..=512, r"arn:(aws[a-zA-Z-]*)?:lambda:[a-z]{2}(-gov)?-[a-z]+-\d{1}:\d{12}:function:[a-zA-Z0-9-_\.]+(:(\$LATEST|[a-zA-Z0-9-_]+))?";
    /// The teacher: a foundation model's id or ARN, or an inference profile's ARN. As an extension, the last
    /// alternative: the ARN of a custom or an imported model, or of what serves one.
    TeacherModelIdentifier, 0..=2048, r"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:((:foundation-model/([a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([.]?[a-z0-9-]{1,63})([:][a-z0-9-]{1,63}){0,2})|(([0-9a-zA-Z][_-]?)+)$)|([0-9]{12}:inference-profile/[a-zA-Z0-9-:.]+$)))|([a-z0-9-]{1,63}[.]{1}[a-z0-9-]{1,63}([.]?[a-z0-9-]{1,63})([:][a-z0-9-]{1,63}){0,2})|(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:(custom-model|imported-model|custom-model-deployment|provisioned-model)/[a-zA-Z0-9-.:/]+)";
    /// A key of the metadata of a logged request.
    RequestMetadataMapKeyString, 1..=256, r"[a-zA-Z0-9\s._:/=+$@-]{1,256}";
    /// A value of the metadata of a logged request.
    RequestMetadataMapValueString, 0..=256, r"[a-zA-Z0-9\s._:/=+$@-]{0,256}";
}

choices! {
    /// How long a model may reason before it answers.
    ReasoningEffort, ["low", "medium", "high"];
}

/// Exactly one of its members.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomizationConfig {
    /// For customizationType DISTILLATION.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distillation_config: Option<DistillationConfig>,
    /// For customizationType REINFORCEMENT_FINE_TUNING.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rft_config: Option<RftConfig>,
}

impl Shape for CustomizationConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        let (distillation, rft) = (self.distillation_config.is_some(), self.rft_config.is_some());
        violations.union(at, &[("distillationConfig", distillation), ("rftConfig", rft)]);
        violations.optional(&format!("{at}.distillationConfig"), self.distillation_config.as_ref());
        violations.optional(&format!("{at}.rftConfig"), self.rft_config.as_ref());
    }
}

/// How to learn from a larger model.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DistillationConfig {
    /// The larger model.
    #[schema(required)]
    pub teacher_model_config: Option<TeacherModelConfig>,
}

impl Shape for DistillationConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required(&format!("{at}.teacherModelConfig"), self.teacher_model_config.as_ref());
    }
}

/// The teacher, and how long its answers may be.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TeacherModelConfig {
    /// The teacher.
    #[schema(required)]
    pub teacher_model_identifier: Option<TeacherModelIdentifier>,
    /// Tokens in an answer, at most; 1000 when absent. Longer answers are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_response_length_for_inference: Option<i32>,
}

impl Shape for TeacherModelConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required(&format!("{at}.teacherModelIdentifier"), self.teacher_model_identifier.as_ref());
    }
}

/// How to learn from a grader.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RftConfig {
    /// Who says how good an answer is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grader_config: Option<GraderConfig>,
    /// Numbers of their own, beside the string map of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hyper_parameters: Option<RftHyperParameters>,
}

impl Shape for RftConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.optional(&format!("{at}.graderConfig"), self.grader_config.as_ref());
        violations.optional(&format!("{at}.hyperParameters"), self.hyper_parameters.as_ref());
    }
}

/// Exactly one grader.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GraderConfig {
    /// A function that is asked over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_grader: Option<LambdaGrader>,
}

impl Shape for GraderConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.union(at, &[("lambdaGrader", self.lambda_grader.is_some())]);
        violations.optional(&format!("{at}.lambdaGrader"), self.lambda_grader.as_ref());
    }
}

/// A function that grades.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LambdaGrader {
    /// Which function.
    #[schema(required)]
    pub lambda_arn: Option<LambdaArn>,
}

impl Shape for LambdaGrader {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required(&format!("{at}.lambdaArn"), self.lambda_arn.as_ref());
    }
}

/// How reinforcement fine-tuning runs.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RftHyperParameters {
    /// Passes over the prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 50)]
    pub epoch_count: Option<i32>,
    /// Samples in a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16, maximum = 512)]
    pub batch_size: Option<i32>,
    /// Step size.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1e-7, maximum = 0.001)]
    pub learning_rate: Option<f64>,
    /// Tokens in a prompt, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_prompt_length: Option<i32>,
    /// Answers drawn for each prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 2, maximum = 16)]
    pub training_sample_per_prompt: Option<i32>,
    /// Tokens in an answer, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_max_tokens: Option<i32>,
    /// How long the model may reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Steps between evaluations.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub eval_interval: Option<i32>,
}

impl Shape for RftHyperParameters {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.range(&format!("{at}.epochCount"), self.epoch_count, 1, 50);
        violations.range(&format!("{at}.batchSize"), self.batch_size, 16, 512);
        violations.range(&format!("{at}.learningRate"), self.learning_rate, 1e-7, 1e-3);
        violations.range(&format!("{at}.trainingSamplePerPrompt"), self.training_sample_per_prompt, 2, 16);
        violations.optional(&format!("{at}.reasoningEffort"), self.reasoning_effort.as_ref());
        violations.range(&format!("{at}.evalInterval"), self.eval_interval, 1, 100);
    }
}

/// Bedrock's logs of requests, as a source of prompts.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InvocationLogsConfig {
    /// Learn from the logged answers too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_prompt_response: Option<bool>,
    /// Where the logs lie.
    #[schema(required)]
    pub invocation_log_source: Option<InvocationLogSource>,
    /// Which of them to take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_metadata_filters: Option<RequestMetadataFilters>,
}

impl Shape for InvocationLogsConfig {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required(&format!("{at}.invocationLogSource"), self.invocation_log_source.as_ref());
        violations.optional(&format!("{at}.requestMetadataFilters"), self.request_metadata_filters.as_ref());
    }
}

/// Exactly one source.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InvocationLogSource {
    /// A folder of logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_uri: Option<S3Uri>,
}

impl Shape for InvocationLogSource {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.union(at, &[("s3Uri", self.s3_uri.is_some())]);
        violations.optional(&format!("{at}.s3Uri"), self.s3_uri.as_ref());
    }
}

/// Exactly one of its members.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestMetadataFilters {
    /// The pair is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equals: Option<RequestMetadata>,
    /// The pair is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_equals: Option<RequestMetadata>,
    /// All of these hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 16)]
    pub and_all: Option<Vec<RequestMetadataBaseFilters>>,
    /// One of these holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 16)]
    pub or_all: Option<Vec<RequestMetadataBaseFilters>>,
}

impl Shape for RequestMetadataFilters {
    fn check(&self, at: &str, violations: &mut Violations) {
        let members = [
            ("equals", self.equals.is_some()),
            ("notEquals", self.not_equals.is_some()),
            ("andAll", self.and_all.is_some()),
            ("orAll", self.or_all.is_some()),
        ];
        violations.union(at, &members);
        violations.optional(&format!("{at}.equals"), self.equals.as_ref());
        violations.optional(&format!("{at}.notEquals"), self.not_equals.as_ref());
        violations.list(&format!("{at}.andAll"), self.and_all.as_deref(), 1, 16);
        violations.list(&format!("{at}.orAll"), self.or_all.as_deref(), 1, 16);
    }
}

/// A condition on one pair.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestMetadataBaseFilters {
    /// The pair is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equals: Option<RequestMetadata>,
    /// The pair is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_equals: Option<RequestMetadata>,
}

impl Shape for RequestMetadataBaseFilters {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.optional(&format!("{at}.equals"), self.equals.as_ref());
        violations.optional(&format!("{at}.notEquals"), self.not_equals.as_ref());
    }
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(transparent)]
pub struct RequestMetadata(pub BTreeMap<String, String>);

impl Shape for RequestMetadata {
    fn check(&self, at: &str, violations: &mut Violations) {
        if self.0.len() != 1 {
            let constraint = format!(
                "Member must have length {} than or equal to 1",
                if self.0.is_empty() { "greater" } else { "less" }
            );
            violations.add(&format!("[{} members]", self.0.len()), at, &constraint);
        }
        for (key, value) in &self.0 {
            RequestMetadataMapKeyString(key.clone()).check(&format!("{at}.key"), violations);
            RequestMetadataMapValueString(value.clone()).check(&format!("{at}.value"), violations);
        }
    }
}
