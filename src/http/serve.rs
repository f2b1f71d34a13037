//! The accept loop: HTTP/1.1 and HTTP/2 without TLS on one listener, a cap on connections, deadlines
//! for slow clients, and an orderly end. Our own, because `axum::serve` has no deadline for a
//! half-sent request head.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Version;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::pace::{Listening, Pace, Paced};

/// What one client, and all clients together, may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a request's head may take from its first byte, and a new connection until its first request.
    pub head: Duration,
    /// How long a connection may stay open between requests.
    pub idle: Duration,
    /// How many connections are open at once; more wait in the kernel's queue.
    pub connections: usize,
    /// How long requests in flight may take to end once the server is told to stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            connections: 1024,
            grace: Duration::from_secs(30),
        }
    }
}

/// A head larger than this is refused.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Requests one HTTP/2 connection may have under way.
const MAX_STREAMS: u32 = 128;

/// Serves `router` on `listener` until `stop` resolves, then lets requests in flight end.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: impl Future<Output = ()>) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .keep_alive_interval(limits.idle)
        .keep_alive_timeout(limits.head);
    let open = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);

    loop {
        // A place is taken before the connection: what is above the cap waits where it costs us nothing.
        let accepted = async {
            let place = Arc::clone(&open).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut stop => break,
            both = accepted => both,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(cause) => {
                // Out of file descriptors, or a client gone before we looked: neither ends the service.
                tracing::warn!(%cause, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Replies are written whole; waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);

        let pace = Pace::new(limits.head, limits.idle);
        let service = {
            let (router, pace) = (router.clone(), pace.clone());
            service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let guard = pace.begin(request.version() == Version::HTTP_2);
                let reply = router.clone().oneshot(Request::from(request.map(Body::new)));
                async move { reply.await.map(|reply| reply.map(|body| Paced { body, _request: guard })) }
            })
        };
        let io = TokioIo::new(Listening { stream, pace: pace.clone() });
        let connection = graceful.watch(builder.serve_connection(io, service).into_owned());
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(cause) = ended {
                    tracing::debug!(cause = %cause, "a connection ended early");
                },
                () = pace.overdue() => tracing::debug!("a silent or slow connection was closed"),
            }
            drop(place);
        });
    }

    drop(listener);
    if tokio::time::timeout(limits.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace_s = limits.grace.as_secs(), "requests still in flight were cut off");
    }
}
