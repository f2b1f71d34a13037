//! CreateProvisionedModelThroughput.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use jiff::{Span, Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{answer, served};
use crate::app::App;
use crate::bedrock::arn::Place;
use crate::bedrock::constraint::{Shape, Violations, check, given};
use crate::bedrock::idempotency::digest;
use crate::bedrock::shapes::{
    CommitmentDuration, IdempotencyToken, ModelIdentifier, ProvisionedModelName, Tag, check_tag_count, stored_tags,
};
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::http::Caller;
use crate::http::extract::Json;
use crate::store::throughputs::{self, Throughput};
use crate::store::{Commitment, ThroughputStatus};

/// What to provision, and under which name.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CreateProvisionedModelThroughputRequest)]
pub struct Request {
    /// The same token again gives the same throughput.
    pub client_request_token: Option<IdempotencyToken>,
    /// How many units: places among the answers under way that are kept for this throughput.
    #[schema(required, minimum = 1)]
    pub model_units: Option<i32>,
    /// A name for the throughput.
    #[schema(required)]
    pub provisioned_model_name: Option<ProvisionedModelName>,
    /// The model that answers: a foundation model's id or ARN, a custom model's ARN or name.
    #[schema(required)]
    pub model_id: Option<ModelIdentifier>,
    /// None when absent.
    pub commitment_duration: Option<CommitmentDuration>,
    /// Tags on the throughput.
    #[schema(max_items = 200)]
    pub tags: Option<Vec<Tag>>,
}

impl Shape for Request {
    fn check(&self, _: &str, violations: &mut Violations) {
        violations.optional("clientRequestToken", self.client_request_token.as_ref());
        match self.model_units {
            Some(units) => violations.range("modelUnits", Some(units), 1, i32::MAX),
            None => violations.missing("modelUnits"),
        }
        violations.required("provisionedModelName", self.provisioned_model_name.as_ref());
        violations.required("modelId", self.model_id.as_ref());
        violations.optional("commitmentDuration", self.commitment_duration.as_ref());
        violations.list("tags", self.tags.as_deref(), 0, 200);
    }
}

/// The name in all other calls.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CreateProvisionedModelThroughputResponse)]
pub struct Response {
    /// ARN of the throughput: what to ask.
    pub provisioned_model_arn: String,
}

/// Create provisioned throughput
#[utoipa::path(
    post, path = "/provisioned-model-throughput", operation_id = "CreateProvisionedModelThroughput", tag = "bedrock",
    request_body = Request,
    responses((status = 201, description = "The throughput is in service", body = Response))
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<Request>,
) -> Result<(StatusCode, axum::Json<Response>)> {
    check("", &request)?;
    let request_digest = digest(&request)?;
    let name = given(request.provisioned_model_name, "provisionedModelName")?.0;
    check_tag_count(request.tags.as_deref(), "tags", Some(&name))?;
    let token = request.client_request_token.map(|token| token.0);
    let identifier = given(request.model_id, "modelId")?.0;
    // A repeat is answered even when its model has gone since.
    let answered = match throughputs::by_token(&app.db, &caller.account, token.as_deref()).await? {
        Some(earlier) if earlier.request_digest == request_digest => Some(earlier),
        _ => None,
    };
    let arn = match answered {
        Some(earlier) => earlier.arn,
        None => {
            let model = served(&app, &caller.account, &identifier).await?;
            let commitment = request.commitment_duration.and_then(|duration| Commitment::parse(&duration.0));
            let id = app.clock.id();
            let now = app.clock.now();
            let throughput = Throughput {
                arn: Place { region: &app.config.region, account: &caller.account }.throughput(&id),
                id,
                account_id: caller.account,
                name,
                request_token: token,
                request_digest,
                model_units: given(request.model_units, "modelUnits")?.into(),
                model_arn: model.model_arn,
                foundation_model_arn: model.foundation_model_arn,
                status: ThroughputStatus::InService,
                failure_message: None,
                commitment,
                commitment_expiration_time: commitment.map(|commitment| end_of(commitment, now)).transpose()?,
                creation_time: now,
                last_modified_time: now,
            };
            let most_units = i64::try_from(app.door.most_units()).unwrap_or(i64::MAX);
            let placed = throughputs::insert(&app.db, &throughput, &stored_tags(request.tags), most_units).await?;
            let arn = answer(placed, &throughput)?.arn;
            app.units_changed().await;
            arn
        }
    };
    Ok((StatusCode::CREATED, axum::Json(Response { provisioned_model_arn: arn })))
}

/// When a commitment made at `now` ends: calendar months, UTC.
fn end_of(commitment: Commitment, now: Millis) -> Result<Millis> {
    let months = match commitment {
        Commitment::OneMonth => 1,
        Commitment::SixMonths => 6,
    };
    let start = Timestamp::from_millisecond(now).map_err(Error::internal)?.to_zoned_datetime(TimeZone::UTC);
    let end = start.checked_add(Span::new().months(months)).map_err(Error::internal)?;
    Ok(end.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bedrock::shapes::Time;

    #[test]
    fn a_commitment_ends_on_the_same_day_of_a_later_month() {
        let start = Time::parse("2026-01-31T10:00:00Z").unwrap().0;
        assert_eq!(end_of(Commitment::OneMonth, start).unwrap(), Time::parse("2026-02-28T10:00:00Z").unwrap().0);
        assert_eq!(end_of(Commitment::SixMonths, start).unwrap(), Time::parse("2026-07-31T10:00:00Z").unwrap().0);
    }
}
