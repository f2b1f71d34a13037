//! Deadlines of one connection. Hyper has a deadline for a request's head, but it also runs between
//! two requests of a kept connection, and it does not run before the protocol is known. Here a head
//! that has begun gets one deadline, an idle connection another, and a reply that the client does
//! not read a third. The time that an answer takes to make is no client's, and has none.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Buf, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Limits;

/// Slowest reader that is served for ever, in bytes per second: what it takes earns it time at this rate.
const SLOWEST: u64 = 4 << 10;

/// State and deadlines of one connection; clones share it.
#[derive(Clone)]
pub(super) struct Timeouts {
    state: Arc<Mutex<State>>,
    evicted: Arc<Notify>,
    head: Duration,
    idle: Duration,
    stall: Duration,
}

struct State {
    in_flight: usize,
    /// Whether any head has been read to its end.
    spoken: bool,
    /// HTTP/2 sends frames between requests, so bytes alone do not mean that a head has begun.
    http2: bool,
    /// When the last request ended, or the connection was opened.
    quiet_since: Instant,
    /// When the first byte after that arrived.
    bytes_since: Option<Instant>,
    /// Whether the client takes the bytes of the connection.
    socket: Patience,
    /// Whether it takes those of each reply: an HTTP/2 client may stop one of them by itself.
    replies: HashMap<u64, Patience>,
    next_reply: u64,
}

/// Time that a reader may still take. It passes only while the reader is waited for.
struct Patience {
    left: Duration,
    waiting_since: Option<Instant>,
}

impl Patience {
    fn new(stall: Duration) -> Self {
        Self { left: stall, waiting_since: None }
    }

    /// The reader has to move now.
    fn wait(&mut self) {
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    /// The reader has moved. Says whether it was waited for.
    fn moved(&mut self) -> bool {
        let Some(since) = self.waiting_since.take() else { return false };
        self.left = self.left.saturating_sub(since.elapsed());
        true
    }

    /// The reader has taken `bytes`.
    fn earn(&mut self, bytes: usize, stall: Duration) {
        let earned = Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / SLOWEST);
        self.left = self.left.saturating_add(earned).min(stall);
    }

    fn deadline(&self) -> Option<Instant> {
        self.waiting_since.map(|since| since + self.left)
    }
}

impl Timeouts {
    pub(super) fn new(limits: &Limits) -> Self {
        let state = State {
            in_flight: 0,
            spoken: false,
            http2: false,
            quiet_since: Instant::now(),
            bytes_since: None,
            socket: Patience::new(limits.stall),
            replies: HashMap::new(),
            next_reply: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            evicted: Arc::default(),
            head: limits.head,
            idle: limits.idle,
            stall: limits.stall,
        }
    }

    /// A request's head is complete; the request lasts as long as the guard.
    pub(super) fn begin(&self, http2: bool) -> InFlight {
        let mut state = self.lock();
        state.in_flight += 1;
        state.spoken = true;
        state.http2 = http2;
        state.bytes_since = None;
        InFlight(self.clone())
    }

    /// Closes the connection: another takes its place.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Whether the client has ever sent a whole head, and since when nothing is being answered; `None` while
    /// something is.
    pub(super) fn silent_since(&self) -> Option<(bool, Instant)> {
        let state = self.lock();
        (state.in_flight == 0).then_some((state.spoken, state.quiet_since))
    }

    /// Resolves when the client has been silent, or slow with a head or a reply, for too long, or when the
    /// connection is evicted.
    pub(super) async fn overdue(&self) {
        tokio::select! {
            () = self.evicted.notified() => {}
            () = self.late() => {}
        }
    }

    async fn late(&self) {
        loop {
            let now = Instant::now();
            match self.deadline() {
                Some(deadline) if deadline <= now => return,
                // A request under way: look again when it could at the earliest be over and late.
                None => tokio::time::sleep(self.head.min(self.stall)).await,
                // What shortens a deadline (a first byte) is at most one such deadline away from being due.
                Some(deadline) => tokio::time::sleep_until(deadline.min(now + self.head.min(self.stall))).await,
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        let request = match (state.in_flight, state.spoken, state.bytes_since) {
            (0, false, _) => Some(state.quiet_since + self.head),
            (0, true, Some(first)) if !state.http2 => Some(first + self.head),
            (0, true, _) => Some(state.quiet_since + self.idle),
            _ => None,
        };
        let replies = state.replies.values().filter_map(Patience::deadline);
        request.into_iter().chain(state.socket.deadline()).chain(replies).min()
    }

    /// What the socket said to a write.
    fn written(&self, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        match &poll {
            Poll::Pending => state.socket.wait(),
            Poll::Ready(Ok(bytes)) => {
                if state.socket.moved() {
                    // The end of a reply is on its way still.
                    state.quiet_since = Instant::now();
                }
                state.socket.earn(*bytes, self.stall);
            }
            Poll::Ready(Err(_)) => {}
        }
        poll
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic; a poisoned lock would still hold a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way.
pub(super) struct InFlight(Timeouts);

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight -= 1;
        state.quiet_since = Instant::now();
    }
}

/// A reply's body that keeps its request under way until the last byte is handed over, and notes when
/// nobody asks for the next one: hyper does not while the client's window is full.
pub(super) struct ReplyBody<B> {
    body: B,
    reply: u64,
    request: InFlight,
}

impl<B> ReplyBody<B> {
    pub(super) fn new(body: B, request: InFlight) -> Self {
        let mut state = request.0.lock();
        let reply = state.next_reply;
        state.next_reply += 1;
        let mut patience = Patience::new(request.0.stall);
        patience.wait();
        state.replies.insert(reply, patience);
        drop(state);
        Self { body, reply, request }
    }
}

impl<B> Drop for ReplyBody<B> {
    fn drop(&mut self) {
        self.request.0.lock().replies.remove(&self.reply);
    }
}

impl<B: Body + Unpin> Body for ReplyBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Self { body, reply, request } = &mut *self;
        let timeouts = &request.0;
        if let Some(patience) = timeouts.lock().replies.get_mut(reply) {
            patience.moved();
        }
        let poll = Pin::new(body).poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(patience)) = (&poll, timeouts.lock().replies.get_mut(reply)) {
            patience.earn(frame.data_ref().map_or(0, Buf::remaining), timeouts.stall);
            patience.wait();
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that notes when a client begins to speak, and when it does not take what is sent.
pub(super) struct TimedStream {
    stream: TcpStream,
    timeouts: Timeouts,
}

impl TimedStream {
    pub(super) fn new(stream: TcpStream, timeouts: Timeouts) -> Self {
        Self { stream, timeouts }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            let mut state = self.timeouts.lock();
            if state.in_flight == 0 {
                state.bytes_since.get_or_insert_with(Instant::now);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.timeouts.written(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.timeouts.written(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    const HEAD: Duration = Duration::from_millis(40);
    const IDLE: Duration = Duration::from_millis(400);
    const STALL: Duration = Duration::from_millis(400);

    fn timeouts() -> Timeouts {
        Timeouts::new(&Limits { head: HEAD, idle: IDLE, stall: STALL, ..Limits::default() })
    }

    async fn overdue_after(timeouts: &Timeouts) -> Duration {
        let begun = Instant::now();
        timeouts.overdue().await;
        begun.elapsed()
    }

    #[tokio::test]
    async fn a_silent_new_connection_is_overdue_after_the_head_deadline() {
        let waited = overdue_after(&timeouts()).await;
        assert!(waited >= HEAD && waited < IDLE, "{waited:?}");
    }

    #[tokio::test]
    async fn a_kept_connection_may_idle_but_not_dawdle_over_a_head() {
        let timeouts = timeouts();
        drop(timeouts.begin(false));
        assert!(overdue_after(&timeouts).await >= IDLE);

        drop(timeouts.begin(false));
        timeouts.lock().bytes_since = Some(Instant::now());
        let waited = overdue_after(&timeouts).await;
        assert!(waited >= HEAD && waited < IDLE, "{waited:?}");
    }

    #[tokio::test]
    async fn a_request_under_way_is_never_overdue() {
        let timeouts = timeouts();
        let request = timeouts.begin(false);
        assert!(tokio::time::timeout(30 * HEAD, timeouts.overdue()).await.is_err());
        drop(request);
        timeouts.overdue().await;
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_overdue_and_one_that_is_slow_is_not() {
        let timeouts = timeouts();
        let _request = timeouts.begin(false);
        assert!(timeouts.written(Poll::Pending).is_pending());
        for _ in 0..8 {
            // Slower than it is sent to, but faster than the slowest that is served.
            assert!(tokio::time::timeout(STALL / 4, timeouts.overdue()).await.is_err());
            assert!(timeouts.written(Poll::Ready(Ok(4 << 10))).is_ready());
            assert!(timeouts.written(Poll::Pending).is_pending());
        }
        let waited = overdue_after(&timeouts).await;
        assert!(waited >= STALL && waited < 2 * STALL, "{waited:?}");
    }

    #[tokio::test]
    async fn a_client_that_takes_a_byte_now_and_then_is_overdue() {
        let timeouts = timeouts();
        let _request = timeouts.begin(false);
        for taken in 0.. {
            assert!(taken < 10, "one byte each time is no progress");
            assert!(timeouts.written(Poll::Pending).is_pending());
            if tokio::time::timeout(STALL / 4, timeouts.overdue()).await.is_ok() {
                break;
            }
            assert!(timeouts.written(Poll::Ready(Ok(1))).is_ready());
        }
    }

    #[tokio::test]
    async fn a_reply_that_nobody_asks_for_is_overdue_and_one_in_the_making_is_not() {
        let timeouts = timeouts();
        let body = ReplyBody::new(Full::new(bytes::Bytes::from_static(b"reply")), timeouts.begin(true));
        let waited = overdue_after(&timeouts).await;
        assert!(waited >= STALL && waited < 2 * STALL, "{waited:?}");
        drop(body);

        let pending =
            http_body_util::StreamBody::new(futures::stream::pending::<Result<Frame<bytes::Bytes>, io::Error>>());
        let mut body = ReplyBody::new(pending, timeouts.begin(true));
        let asked = tokio::time::timeout(3 * STALL, async {
            tokio::select! {
                _ = body.frame() => {}
                () = timeouts.overdue() => {}
            }
        });
        assert!(asked.await.is_err(), "the answer takes its time, and the client waits for it");
    }
}
