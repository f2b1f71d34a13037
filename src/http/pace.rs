//! How long a connection may take its time. Hyper has a deadline for a request's head, but it also
//! runs between two requests of a kept connection, and it does not run before the protocol is known.
//! Here a head that has begun gets one deadline, an idle connection another, and a request under way
//! none (its body and its handler have their own).

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// What has happened on one connection.
#[derive(Clone)]
pub(super) struct Pace {
    state: Arc<Mutex<State>>,
    head: Duration,
    idle: Duration,
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
}

impl Pace {
    pub(super) fn new(head: Duration, idle: Duration) -> Self {
        let state = State { in_flight: 0, spoken: false, http2: false, quiet_since: Instant::now(), bytes_since: None };
        Self { state: Arc::new(Mutex::new(state)), head, idle }
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

    /// Resolves when the client has been silent, or slow with a head, for too long.
    pub(super) async fn overdue(&self) {
        loop {
            let now = Instant::now();
            match self.deadline() {
                Some(deadline) if deadline <= now => return,
                // A request under way: look again when it could at the earliest be over and late.
                None => tokio::time::sleep(self.head).await,
                // What shortens a deadline (a first byte) is at most one head deadline away from being due.
                Some(deadline) => tokio::time::sleep_until(deadline.min(now + self.head)).await,
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        match (state.in_flight, state.spoken, state.bytes_since) {
            (0, false, _) => Some(state.quiet_since + self.head),
            (0, true, Some(first)) if !state.http2 => Some(first + self.head),
            (0, true, _) => Some(state.quiet_since + self.idle),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic; a poisoned lock would still hold a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way.
pub(super) struct InFlight(Pace);

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight -= 1;
        state.quiet_since = Instant::now();
    }
}

/// A reply's body that keeps its request under way until the last byte is handed over.
pub(super) struct Paced {
    pub(super) body: axum::body::Body,
    pub(super) _request: InFlight,
}

impl Body for Paced {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that notes when a client begins to speak.
pub(super) struct Listening {
    pub(super) stream: TcpStream,
    pub(super) pace: Pace,
}

impl AsyncRead for Listening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            let mut state = self.pace.lock();
            if state.in_flight == 0 {
                state.bytes_since.get_or_insert_with(Instant::now);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Listening {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_millis(40);
    const IDLE: Duration = Duration::from_millis(400);

    #[tokio::test]
    async fn a_silent_new_connection_is_overdue_after_the_head_deadline() {
        let pace = Pace::new(HEAD, IDLE);
        let begun = Instant::now();
        pace.overdue().await;
        assert!(begun.elapsed() >= HEAD && begun.elapsed() < IDLE, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_kept_connection_may_idle_but_not_dawdle_over_a_head() {
        let pace = Pace::new(HEAD, IDLE);
        drop(pace.begin(false));
        let begun = Instant::now();
        pace.overdue().await;
        assert!(begun.elapsed() >= IDLE, "{:?}", begun.elapsed());

        drop(pace.begin(false));
        let begun = Instant::now();
        pace.lock().bytes_since = Some(begun);
        pace.overdue().await;
        assert!(begun.elapsed() >= HEAD && begun.elapsed() < IDLE, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_request_under_way_is_never_overdue() {
        let pace = Pace::new(HEAD, IDLE);
        let request = pace.begin(false);
        assert!(tokio::time::timeout(3 * HEAD, pace.overdue()).await.is_err());
        drop(request);
        pace.overdue().await;
    }
}
