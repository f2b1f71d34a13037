//! The accept loop: HTTP/1.1 and HTTP/2 without TLS on one listener.

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;

use super::admission::Connections;
use super::timeouts::{ReplyBody, TimedStream};
use super::{Limits, Peer};

/// A head larger than this is refused.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Requests one HTTP/2 connection may have under way.
const MAX_STREAMS: u32 = 128;
/// Pause after a failed `accept`: out of file descriptors, most likely, and connections that end give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers every request on `listener` until `stop` resolves, then lets requests in flight end for as long as
/// it says.
pub async fn serve<A, F, B, E>(listener: TcpListener, limits: Limits, answer: A, stop: impl Future<Output = Duration>)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    let http = Arc::new(protocols(&limits));
    let local = listener.local_addr().ok().map(|address| address.ip());
    let connections = Connections::new(limits, local);
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);

    let grace = loop {
        let accepted = tokio::select! {
            grace = &mut stop => break grace,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(cause) => {
                tracing::warn!(%cause, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Replies are written whole; waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        let Some(turn) = connections.queue(peer.ip()) else {
            tracing::debug!(%peer, "a connection was refused: too many are waiting");
            continue;
        };
        let (http, answer, watcher) = (Arc::clone(&http), answer.clone(), graceful.watcher());
        tokio::spawn(async move {
            let Some(permit) = turn.admitted().await else {
                tracing::debug!(%peer, "a connection was refused: too many are open");
                return;
            };
            let timeouts = permit.timeouts().clone();
            let service = {
                let timeouts = timeouts.clone();
                service_fn(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(Peer(peer.ip()));
                    let in_flight = timeouts.begin(request.version() == Version::HTTP_2);
                    let reply = answer(request);
                    async move { reply.await.map(|reply| reply.map(|body| ReplyBody::new(body, in_flight))) }
                })
            };
            let io = TokioIo::new(TimedStream::new(stream, timeouts.clone()));
            let connection = watcher.watch(http.serve_connection(io, service).into_owned());
            tokio::select! {
                ended = connection => if let Err(cause) = ended {
                    tracing::debug!(%peer, cause = %cause, "a connection ended early");
                },
                () = timeouts.overdue() => tracing::debug!(%peer, "a silent or slow connection was closed"),
            }
            drop(permit);
        });
    };

    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace_s = grace.as_secs(), "requests still in flight were cut off");
    }
}

fn protocols(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Hyper's own deadline for a head also runs between two requests: `timeouts` has one of each.
    http.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .keep_alive_interval(limits.idle)
        .keep_alive_timeout(limits.head);
    http
}
