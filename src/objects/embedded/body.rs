//! A request body with a deadline that grows with what arrives: an honest upload takes as long as
//! it needs, one byte a second does not hold a connection and a half-written file for ever.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

/// A body may be this late …
const PATIENCE: Duration = Duration::from_secs(30);
/// … plus the time that what has arrived would take at this rate, in bytes per second.
const SLOWEST: u64 = 16 << 10;

/// See the module.
pub(super) struct Patient {
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
}

impl Patient {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, deadline: Box::pin(sleep(PATIENCE)) }
    }
}

impl Body for Patient {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                let extended = this.deadline.deadline() + Duration::from_micros(bytes * 1_000_000 / SLOWEST);
                this.deadline.as_mut().reset(extended);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => match this.deadline.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err("the body arrives too slowly".into()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
