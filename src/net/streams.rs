//! Streams of HTTP/2, each a task of its own that can be ended without the connection: hyper does not ask a reply for
//! its next piece while the client's window is full, so the reply cannot end itself.

use std::future::Future;
use std::sync::Arc;

use hyper::rt::Executor;
use tokio::sync::Notify;

tokio::task_local! {
    static RESET: Reset;
}

/// Ends one stream: its reply is dropped, and the client is sent a `RST_STREAM`.
#[derive(Debug, Clone, Default)]
pub(super) struct Reset(Arc<Notify>);

impl Reset {
    /// Of the stream that this task answers; `None` on a connection of HTTP/1.
    pub(super) fn current() -> Option<Self> {
        RESET.try_with(Self::clone).ok()
    }

    pub(super) fn send(&self) {
        self.0.notify_one();
    }

    /// Resolves when it is sent.
    pub(super) async fn sent(&self) {
        self.0.notified().await;
    }
}

/// Spawns the streams of HTTP/2 connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamExecutor;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let reset = Reset::default();
        let sent = reset.clone();
        tokio::spawn(RESET.scope(reset, async move {
            tokio::select! {
                () = stream => {}
                () = sent.sent() => {}
            }
        }));
    }
}
