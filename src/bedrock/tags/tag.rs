//! TagResource.

use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::no_such_resource;
use crate::app::App;
use crate::bedrock::constraint::{Shape, Violations, check, given};
use crate::bedrock::shapes::{Tag, TaggableResourcesArn, check_tag_count, stored_tags};
use crate::error::{Error, Kind, Result};
use crate::http::Caller;
use crate::http::extract::Json;
use crate::store::tags::{self, Tagged};

/// Which tags to put on what.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = TagResourceRequest)]
pub struct Request {
    /// What to tag.
    #[serde(rename = "resourceARN")]
    #[schema(required)]
    pub resource_arn: Option<TaggableResourcesArn>,
    /// A key that is there already gets the new value.
    #[schema(required, max_items = 200)]
    pub tags: Option<Vec<Tag>>,
}

impl Shape for Request {
    fn check(&self, _: &str, violations: &mut Violations) {
        violations.required("resourceARN", self.resource_arn.as_ref());
        violations.required_list("tags", self.tags.as_deref(), 0, 200);
    }
}

/// Tag a resource
#[utoipa::path(
    post, path = "/tagResource", operation_id = "TagResource", tag = "bedrock",
    request_body = Request,
    responses((status = 200, description = "The tags are there"))
)]
pub async fn tag(State(app): State<Arc<App>>, caller: Caller, Json(request): Json<Request>) -> Result<()> {
    check("", &request)?;
    let arn = given(request.resource_arn, "resourceARN")?.0;
    check_tag_count(request.tags.as_deref(), "tags", Some(&arn))?;
    match tags::put(&app.db, &caller.account, &arn, &stored_tags(request.tags)).await? {
        Tagged::Done => Ok(()),
        Tagged::NoSuchResource => Err(no_such_resource(&arn)),
        Tagged::TooMany => {
            let message = format!("The resource would carry more than {} tags: remove some first", tags::LIMIT);
            Err(Error::new(Kind::TooManyTags, message).about(arn))
        }
    }
}
