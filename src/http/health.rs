//! `/healthz`: the process answers. `/readyz`: it can serve, because its database, its object store and its parts do;
//! what is not there is named. Both are open, and say nothing else.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::app::App;
use crate::app::readiness::Report;

/// The process is alive.
pub async fn healthz() -> StatusCode {
    StatusCode::OK
}

/// The process can serve requests; 503 with the name of what is missing when it cannot.
pub async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, Json<Report>) {
    let report = app.readiness.report(&app).await;
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report))
}
