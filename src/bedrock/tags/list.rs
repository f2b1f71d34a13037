//! ListTagsForResource: not paged, since a resource carries at most fifty.

use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::no_such_resource;
use crate::app::App;
use crate::bedrock::constraint::{Shape, Violations, check, given};
use crate::bedrock::shapes::{self, TaggableResourcesArn};
use crate::error::Result;
use crate::http::Caller;
use crate::http::extract::Json;
use crate::store::tags::{self, Tag};

/// Whose tags to list.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = ListTagsForResourceRequest)]
pub struct Request {
    /// The resource.
    #[serde(rename = "resourceARN")]
    #[schema(required)]
    pub resource_arn: Option<TaggableResourcesArn>,
}

impl Shape for Request {
    fn check(&self, _: &str, violations: &mut Violations) {
        violations.required("resourceARN", self.resource_arn.as_ref());
    }
}

/// A resource's tags, by key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ListTagsForResourceResponse)]
pub struct Response {
    #[schema(value_type = Vec<shapes::Tag>)]
    tags: Vec<Tag>,
}

/// List the tags of a resource
#[utoipa::path(
    post, path = "/listTagsForResource", operation_id = "ListTagsForResource", tag = "bedrock",
    request_body = Request,
    responses((status = 200, description = "The tags", body = Response))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<Request>,
) -> Result<axum::Json<Response>> {
    check("", &request)?;
    let arn = given(request.resource_arn, "resourceARN")?.0;
    let tags = tags::list(&app.db, &caller.account, &arn).await?;
    Ok(axum::Json(Response { tags: tags.ok_or_else(|| no_such_resource(&arn))? }))
}
