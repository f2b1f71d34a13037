//! Model import jobs, and the shapes they share with CreateCustomModel.

pub mod create;
pub mod get;
pub mod list;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::constraint::{Shape, Violations, choices, texts};
use super::shapes::S3Uri;
use crate::error::{Error, Kind, Result};
use crate::objects::{Objects, Uri, unreadable};

texts! {
    /// ARN of a KMS key.
    KmsKeyArn, 1..=2048, r"arn:aws(-[^:]+)?:kms:[a-zA-Z0-9-]*:[0-9]{12}:key/[a-zA-Z0-9-]{36}";
    /// An imported model's name, unique among the account's imported models.
    ImportedModelName, 1..=63, r"([0-9a-zA-Z][_-]?)+";
    /// An import job's ARN or name.
    ModelImportJobIdentifier, 0..=1011, r"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:model-import-job/[a-z0-9]{12})|([a-zA-Z0-9](-*[a-zA-Z0-9\+\-\.])*)";
}

choices! {
    /// Where an import job stands.
    ModelImportJobStatus, ["InProgress", "Completed", "Failed"];
}

/// Exactly one source.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelDataSource {
    /// A folder in S3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_data_source: Option<S3DataSource>,
}

/// A folder in S3.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3DataSource {
    /// The folder.
    #[schema(required)]
    pub s3_uri: Option<S3Uri>,
}

impl Shape for ModelDataSource {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.union(at, &[("s3DataSource", self.s3_data_source.is_some())]);
        violations.optional(&format!("{at}.s3DataSource"), self.s3_data_source.as_ref());
    }
}

impl Shape for S3DataSource {
    fn check(&self, at: &str, violations: &mut Violations) {
        violations.required(&format!("{at}.s3Uri"), self.s3_uri.as_ref());
    }
}

impl ModelDataSource {
    /// The folder, without a slash at the end.
    ///
    /// # Errors
    /// `Validation` when there is none.
    pub fn folder(&self) -> Result<Uri> {
        let uri = self.s3_data_source.as_ref().and_then(|source| source.s3_uri.as_ref());
        let uri = uri.ok_or_else(|| Error::validation("s3DataSource.s3Uri is missing"))?;
        Uri::parse(uri.0.trim_end_matches('/'))
    }
}

/// Checks before anything is accepted that the folder can be listed and has something in it.
///
/// # Errors
/// `Validation` with Bedrock's sentence when it cannot be read or is empty; `Unavailable`.
pub async fn probe(objects: &Objects, folder: &Uri) -> Result<()> {
    let first = objects.list(&folder.folder()).next().await;
    match first {
        Ok(Some(page)) if !page.is_empty() => Ok(()),
        Ok(_) => Err(Error::validation(format!("{}: there is nothing under it", unreadable(folder)))),
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::AccessDenied | Kind::Validation) => {
            Err(Error::validation(unreadable(folder)).because(anyhow::anyhow!("{}", error.log())))
        }
        Err(error) => Err(error),
    }
}

/// The same answer for a job that is not there and for one that is not the caller's.
fn no_such_job(identifier: &str) -> Error {
    Error::not_found(format!("Could not find the model import job '{identifier}'"))
}
