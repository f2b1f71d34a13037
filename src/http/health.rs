//! `/healthz`: the process answers. `/readyz`: it can serve, because its database does. Both are open,
//! and say nothing else.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use crate::app::App;
use crate::error::Result;

/// The process is alive.
pub async fn healthz() -> StatusCode {
    StatusCode::OK
}

/// The process can serve requests.
pub async fn readyz(State(app): State<Arc<App>>) -> Result<StatusCode> {
    app.db.ping().await?;
    Ok(StatusCode::OK)
}
