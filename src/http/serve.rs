//! The listener of the API: every request goes through the router.

use std::future::Future;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::Version;
use tokio::net::TcpListener;
use tower::ServiceExt;

use super::pieces::Pieces;
use crate::net::{self, Limits};

/// Serves `router` on `listener` until `stop` resolves, then lets requests in flight end.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: impl Future<Output = ()>) {
    let grace = limits.grace;
    let answer = move |request: hyper::Request<hyper::body::Incoming>| {
        let small = request.version() == Version::HTTP_2;
        let reply = router.clone().oneshot(Request::from(request.map(Body::new)));
        async move { reply.await.map(|reply| reply.map(|body| Pieces::new(body, small))) }
    };
    let stop = async move {
        stop.await;
        grace
    };
    net::serve(listener, limits, answer, stop).await;
}
