//! UntagResource.

use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::no_such_resource;
use crate::app::App;
use crate::bedrock::constraint::{Shape, Violations, check, given};
use crate::bedrock::shapes::{TagKey, TaggableResourcesArn};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Json;
use crate::store::tags;

/// Which tags to take off what.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = UntagResourceRequest)]
pub struct Request {
    /// What to take them off.
    #[serde(rename = "resourceARN")]
    #[schema(required)]
    pub resource_arn: Option<TaggableResourcesArn>,
    /// A key that is not there is no error.
    #[serde(rename = "tagKeys")]
    #[schema(required, max_items = 200)]
    pub tag_keys: Option<Vec<TagKey>>,
}

impl Shape for Request {
    fn check(&self, _: &str, violations: &mut Violations) {
        violations.required("resourceARN", self.resource_arn.as_ref());
        violations.required_list("tagKeys", self.tag_keys.as_deref(), 0, 200);
    }
}

/// Untag a resource
#[utoipa::path(
    post, path = "/untagResource", operation_id = "UntagResource", tag = "bedrock",
    request_body = Request,
    responses((status = 200, description = "The tags are gone"))
)]
pub async fn untag(State(app): State<Arc<App>>, caller: Caller, Json(request): Json<Request>) -> Result<()> {
    check("", &request)?;
    let arn = given(request.resource_arn, "resourceARN")?.0;
    let keys: Vec<String> = request.tag_keys.into_iter().flatten().map(|key| key.0).collect();
    match tags::remove(&app.db, &caller.account, &arn, &keys).await? {
        true => Ok(()),
        false => Err(no_such_resource(&arn)),
    }
}
