//! Deadlines of one connection. Hyper has a deadline for a request's head, but it also runs between
//! two requests of a kept connection, and it does not run before the protocol is known. Here a head
//! that has begun gets one deadline, an idle connection another, and a reply that the client does
//! not read a third: over HTTP/2 it ends the one stream, over HTTP/1 the connection. The time that an
//! answer takes to make is no client's, and has none.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Limits;
use super::reply::PIECE;
use super::streams::Reset;

/// Slowest reader that is served for ever, in bytes per second: what it takes earns it time at this rate. The limit
/// that is documented is twice as high, because systems hand bytes over in lumps.
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
    replies: HashMap<u64, Reply>,
    next_reply: u64,
    /// Whether the last reply to end was one that nobody read.
    last_was_cut: bool,
}

/// A reply over HTTP/2.
struct Reply {
    reader: Patience,
    reset: Reset,
    cut: bool,
}

/// Time that a reader may still take. It passes only while the reader is waited for.
struct Patience {
    most: Duration,
    left: Duration,
    waiting_since: Option<Instant>,
}

impl Patience {
    fn new(most: Duration) -> Self {
        Self { most, left: most, waiting_since: None }
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
    fn earn(&mut self, bytes: usize) {
        self.left = self.left.saturating_add(time_of(bytes)).min(self.most);
    }

    fn deadline(&self) -> Option<Instant> {
        self.waiting_since.map(|since| since + self.left)
    }
}

/// Time that the slowest reader takes for so many bytes.
fn time_of(bytes: usize) -> Duration {
    Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / SLOWEST)
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
            last_was_cut: false,
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

    /// A reply over HTTP/2 that is ended by `reset`. Gives its number.
    pub(super) fn add_reply(&self, reset: Reset) -> u64 {
        let mut state = self.lock();
        let number = state.next_reply;
        state.next_reply += 1;
        let mut reader = Patience::new(self.stall.max(time_of(PIECE)));
        reader.wait();
        state.replies.insert(number, Reply { reader, reset, cut: false });
        number
    }

    /// The reply has ended.
    pub(super) fn remove_reply(&self, number: u64) {
        let mut state = self.lock();
        if let Some(reply) = state.replies.remove(&number) {
            state.last_was_cut = reply.cut;
        }
    }

    /// The client has room for the reply's next piece.
    pub(super) fn asked_for(&self, number: u64) {
        if let Some(reply) = self.lock().replies.get_mut(&number) {
            reply.reader.moved();
        }
    }

    /// So many bytes of the reply are on their way to the client, and it has to make room for more.
    pub(super) fn handed_over(&self, number: u64, bytes: usize) {
        if let Some(reply) = self.lock().replies.get_mut(&number) {
            reply.reader.earn(bytes);
            reply.reader.wait();
        }
    }

    /// Resolves when the client has been silent, or slow with a head or with all it is sent, for too long, or when
    /// the connection is evicted. Ends the replies over HTTP/2 that are left unread meanwhile.
    pub(super) async fn overdue(&self) {
        tokio::select! {
            () = self.evicted.notified() => {}
            () = self.late() => {}
        }
    }

    async fn late(&self) {
        // What shortens a deadline (a first byte) is at most one such deadline away from being due.
        let pause = self.head.min(self.stall);
        loop {
            let now = Instant::now();
            if self.deadline().is_some_and(|deadline| deadline <= now) {
                return;
            }
            let next = [self.deadline(), self.cut_unread(now)].into_iter().flatten().min();
            tokio::time::sleep_until(next.map_or(now + pause, |next| next.min(now + pause))).await;
        }
    }

    /// Deadline of the connection.
    fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        let request = match (state.in_flight, state.spoken, state.bytes_since) {
            (0, false, _) => Some(state.quiet_since + self.head),
            (0, true, Some(first)) if !state.http2 => Some(first + self.head),
            // Whoever left all replies unread is not waited for much longer.
            (0, true, _) if state.last_was_cut => Some(state.quiet_since + self.head.min(self.stall)),
            (0, true, _) => Some(state.quiet_since + self.idle),
            _ => None,
        };
        request.into_iter().chain(state.socket.deadline()).min()
    }

    /// Ends the replies whose deadline is past. Gives the next deadline of one.
    fn cut_unread(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        let mut next = None;
        for reply in state.replies.values_mut().filter(|reply| !reply.cut) {
            match reply.reader.deadline() {
                Some(deadline) if deadline <= now => {
                    reply.cut = true;
                    reply.reset.send();
                }
                deadline => next = [next, deadline].into_iter().flatten().min(),
            }
        }
        next
    }

    /// The client has sent something.
    pub(super) fn read(&self) {
        let mut state = self.lock();
        if state.in_flight == 0 {
            state.bytes_since.get_or_insert_with(Instant::now);
        }
    }

    /// What the socket said to a write.
    pub(super) fn written(&self, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        match &poll {
            Poll::Pending => state.socket.wait(),
            Poll::Ready(Ok(bytes)) => {
                if state.socket.moved() {
                    // The end of a reply is on its way still.
                    state.quiet_since = Instant::now();
                }
                state.socket.earn(*bytes);
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

impl InFlight {
    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight -= 1;
        state.quiet_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(5);
    const IDLE: Duration = Duration::from_secs(60);
    const STALL: Duration = Duration::from_secs(30);

    fn timeouts() -> Timeouts {
        Timeouts::new(&Limits { head: HEAD, idle: IDLE, stall: STALL, ..Limits::default() })
    }

    async fn overdue_after(timeouts: &Timeouts) -> Duration {
        let begun = Instant::now();
        timeouts.overdue().await;
        // The timer of the runtime counts in milliseconds.
        Duration::from_secs(begun.elapsed().as_secs())
    }

    async fn is_overdue_within(timeouts: &Timeouts, time: Duration) -> bool {
        tokio::time::timeout(time, timeouts.overdue()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_new_connection_is_overdue_after_the_head_deadline() {
        assert_eq!(overdue_after(&timeouts()).await, HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_may_idle_but_not_dawdle_over_a_head() {
        let timeouts = timeouts();
        drop(timeouts.begin(false));
        assert_eq!(overdue_after(&timeouts).await, IDLE);

        drop(timeouts.begin(false));
        timeouts.read();
        assert_eq!(overdue_after(&timeouts).await, HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_under_way_is_never_overdue() {
        let timeouts = timeouts();
        let request = timeouts.begin(false);
        assert!(!is_overdue_within(&timeouts, 30 * IDLE).await);
        drop(request);
        assert_eq!(overdue_after(&timeouts).await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_overdue_and_one_that_is_slow_is_not() {
        let timeouts = timeouts();
        let _request = timeouts.begin(false);
        assert!(timeouts.written(Poll::Pending).is_pending());
        for _ in 0..50 {
            assert!(!is_overdue_within(&timeouts, Duration::from_secs(10)).await);
            assert!(timeouts.written(Poll::Ready(Ok(10 * SLOWEST as usize))).is_ready());
            assert!(timeouts.written(Poll::Pending).is_pending());
        }
        assert_eq!(overdue_after(&timeouts).await, STALL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_byte_now_and_then_is_overdue() {
        let timeouts = timeouts();
        let _request = timeouts.begin(false);
        for _ in 0..3 {
            assert!(timeouts.written(Poll::Pending).is_pending());
            assert!(!is_overdue_within(&timeouts, STALL * 3 / 10).await);
            assert!(timeouts.written(Poll::Ready(Ok(1))).is_ready());
        }
        assert!(timeouts.written(Poll::Pending).is_pending());
        assert!(is_overdue_within(&timeouts, STALL * 2 / 10).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_that_nobody_asks_for_is_cut_and_one_in_the_making_is_not() {
        let timeouts = timeouts();
        let resets = [Reset::default(), Reset::default()];
        let [_unread, _made] = [timeouts.begin(true), timeouts.begin(true)];
        let [unread, made] = resets.clone().map(|reset| timeouts.add_reply(reset));
        timeouts.asked_for(made);
        let begun = Instant::now();
        tokio::select! {
            () = timeouts.overdue() => panic!("the connection goes on"),
            () = resets[0].sent() => assert_eq!(begun.elapsed().as_secs(), STALL.as_secs()),
            () = resets[1].sent() => panic!("the client waits for this one"),
        }
        timeouts.remove_reply(unread);
        assert!(!is_overdue_within(&timeouts, 10 * IDLE).await);
        timeouts.handed_over(made, PIECE);
        tokio::select! {
            () = timeouts.overdue() => panic!("the connection goes on"),
            () = resets[1].sent() => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_closed_soon_after_the_last_reply_was_cut() {
        let timeouts = timeouts();
        let reset = Reset::default();
        let request = timeouts.begin(true);
        let unread = timeouts.add_reply(reset.clone());
        tokio::join!(
            async {
                reset.sent().await;
                timeouts.remove_reply(unread);
                drop(request);
            },
            async { assert_eq!(overdue_after(&timeouts).await, STALL + HEAD) },
        );
    }
}
