//! The accept loop: HTTP/1.1 and HTTP/2 without TLS on one listener.

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::admission::Connections;
use super::reply::ReplyBody;
use super::streams::{Reset, StreamExecutor};
use super::timed_stream::TimedStream;
use super::timeouts::Timeouts;
use super::{Limits, Source};

/// A head larger than this is refused.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Requests one HTTP/2 connection may have under way.
const MAX_STREAMS: u32 = 128;
/// Bytes that the system keeps unsent for a connection. By default it takes megabytes, and a slow reader that takes
/// them is not told from one that takes nothing.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 128 << 10;
/// Pause after a failed `accept`: out of file descriptors, most likely, and connections that end give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers every request on `listener` until `stop` resolves, then lets requests in flight end for as long as
/// it says.
pub async fn serve<A, F, B, E>(listener: TcpListener, limits: Limits, answer: A, stop: impl Future<Output = Duration>)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data: Send + Unpin> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    let http = Arc::new(protocols(&limits));
    let connections = Connections::new(limits);
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
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(MAX_UNSENT);
        let source = Source::of(peer.ip(), stream.local_addr().ok().map(|address| address.ip()));
        let Some(turn) = connections.queue(source) else {
            tracing::debug!(%peer, "a connection was refused: too many are waiting");
            continue;
        };
        let (http, answer, watcher) = (Arc::clone(&http), answer.clone(), graceful.watcher());
        tokio::spawn(async move {
            let Some(permit) = turn.admitted().await else {
                tracing::debug!(%peer, "a connection was refused: too many are open");
                return;
            };
            if let Err(cause) = answer_all(&http, stream, source, permit.timeouts().clone(), answer, watcher).await {
                tracing::debug!(%peer, %cause, "a connection ended early");
            }
            drop(permit);
        });
    };

    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace_s = grace.as_secs(), "requests still in flight were cut off");
    }
}

/// Answers the requests of one connection until it ends or is overdue.
async fn answer_all<S, A, F, B, E>(
    http: &auto::Builder<StreamExecutor>,
    stream: S,
    source: Source,
    timeouts: Timeouts,
    answer: A,
    watcher: Watcher,
) -> Result<(), Box<dyn Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data: Send + Unpin> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    let service = {
        let timeouts = timeouts.clone();
        service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(source);
            let in_flight = timeouts.begin(request.version() == Version::HTTP_2);
            let reply = answer(request);
            async move { reply.await.map(|reply| reply.map(|body| ReplyBody::new(body, in_flight, Reset::current()))) }
        })
    };
    let io = TokioIo::new(TimedStream::new(stream, timeouts.clone()));
    let connection = watcher.watch(http.serve_connection(io, service).into_owned());
    tokio::select! {
        ended = connection => ended,
        () = timeouts.overdue() => Err("it was silent or slow".into()),
    }
}

fn protocols(limits: &Limits) -> auto::Builder<StreamExecutor> {
    let mut http = auto::Builder::new(StreamExecutor);
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::stream;
    use http_body_util::{BodyExt, Empty, StreamBody};
    use hyper::body::Frame;
    use hyper::client::conn::{http1, http2};
    use hyper_util::rt::TokioExecutor;
    use tokio::io::DuplexStream;
    use tokio::time::Instant;

    use super::*;

    /// What one path answers: pieces of 256 KiB, as a file is read.
    const PIECE: usize = 256 << 10;
    const PIECES: usize = 4;

    /// The client's end of a connection on which each request is answered with a megabyte.
    fn connect() -> DuplexStream {
        let limits = Limits::default();
        let (near, far) = tokio::io::duplex(16 << 10);
        let source = Source::Remote([192, 0, 2, 1].into());
        tokio::spawn(async move {
            let answer = |_: Request<Incoming>| async {
                let pieces =
                    stream::iter((0..PIECES).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; PIECE])))));
                Ok::<_, Infallible>(Response::new(StreamBody::new(pieces)))
            };
            let graceful = GracefulShutdown::new();
            let (http, timeouts) = (protocols(&limits), Timeouts::new(&limits));
            let _ = answer_all(&http, near, source, timeouts, answer, graceful.watcher()).await;
        });
        far
    }

    fn request() -> Request<Empty<Bytes>> {
        Request::builder().uri("http://localhost/").body(Empty::new()).unwrap()
    }

    /// Takes the reply at a rate in bytes per second. Gives what came of it.
    async fn take(reply: Response<Incoming>, rate: usize) -> Result<usize, hyper::Error> {
        let (mut body, mut taken) = (reply.into_body(), 0);
        while let Some(frame) = body.frame().await {
            let bytes = frame?.data_ref().map_or(0, Bytes::len);
            taken += bytes;
            tokio::time::sleep(Duration::from_millis((bytes * 1000 / rate) as u64)).await;
        }
        Ok(taken)
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_stream_ends_alone_and_its_connection_goes_on() {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(32 << 10).initial_connection_window_size(1 << 20);
        let (mut client, connection) = builder.handshake(TokioIo::new(connect())).await.unwrap();
        tokio::spawn(connection);
        let unread = client.send_request(request()).await.unwrap();
        let read = client.send_request(request()).await.unwrap();
        let begun = Instant::now();
        assert_eq!(take(read, 8 << 10).await.unwrap(), PIECES * PIECE);
        assert!(begun.elapsed() > 4 * Limits::default().stall, "long after the other was cut");
        let cut = take(unread, PIECE).await.unwrap_err();
        assert!(cut.to_string().contains("reset") || format!("{cut:?}").contains("CANCEL"), "{cut:?}");
        let next = client.send_request(request()).await.expect("the connection goes on");
        assert_eq!(take(next, PIECE).await.unwrap(), PIECES * PIECE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_of_which_no_stream_is_read_is_closed() {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(0);
        let (mut client, connection) = builder.handshake(TokioIo::new(connect())).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut unread = Vec::new();
        for _ in 0..4 {
            unread.push(client.send_request(request()).await.unwrap());
        }
        let begun = Instant::now();
        let _ = connection.await.unwrap();
        let Limits { stall, head, .. } = Limits::default();
        assert!(begun.elapsed() < stall + 2 * head, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_above_the_slowest_rate_is_served_to_the_end() {
        let (mut client, connection) = http1::handshake(TokioIo::new(connect())).await.unwrap();
        tokio::spawn(connection);
        for rate in [5 << 10, 8 << 10] {
            let reply = client.send_request(request()).await.unwrap();
            assert_eq!(take(reply, rate).await.unwrap(), PIECES * PIECE, "{rate} bytes a second");
        }
        let reply = client.send_request(request()).await.unwrap();
        assert!(take(reply, 1 << 10).await.is_err(), "slower than the slowest");
    }
}
