//! The listener of the API: every request goes through the router.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use tokio::net::TcpListener;
use tower::ServiceExt;

use crate::net::{self, Limits};

/// Serves `router` on `listener` until `stop` resolves, then lets requests in flight end for as long as it says.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: impl Future<Output = Duration>) {
    let answer = move |request: hyper::Request<hyper::body::Incoming>| {
        router.clone().oneshot(Request::from(request.map(Body::new)))
    };
    net::serve(listener, limits, answer, stop).await;
}
