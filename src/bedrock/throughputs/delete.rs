//! DeleteProvisionedModelThroughput. The model stays.

use std::sync::Arc;

use axum::extract::State;

use super::no_such_throughput;
use crate::app::App;
use crate::bedrock::constraint::check;
use crate::bedrock::shapes::{ProvisionedModelId, Time};
use crate::error::{Error, Kind, Result};
use crate::http::Caller;
use crate::http::extract::Segment;
use crate::store::throughputs::{self, Deleted};

/// Delete provisioned throughput
#[utoipa::path(
    delete, path = "/provisioned-model-throughput/{provisionedModelId}",
    operation_id = "DeleteProvisionedModelThroughput", tag = "bedrock",
    params(("provisionedModelId" = inline(ProvisionedModelId), Path, description = "ARN or name")),
    responses((status = 200, description = "The throughput is gone"))
)]
pub async fn delete(State(app): State<Arc<App>>, caller: Caller, Segment(identifier): Segment) -> Result<()> {
    check("provisionedModelId", &ProvisionedModelId(identifier.clone()))?;
    match throughputs::delete(&app.db, &caller.account, &identifier, app.clock.now()).await? {
        Deleted::Done => {
            app.units_changed().await;
            Ok(())
        }
        Deleted::NotFound => Err(no_such_throughput(&identifier)),
        Deleted::CommittedUntil(time) => {
            let until = serde_json::to_value(Time(time))?;
            let until = until.as_str().unwrap_or_default();
            let message = format!("The throughput is committed until {until}: it can be deleted after that");
            Err(Error::new(Kind::Conflict, message))
        }
    }
}
