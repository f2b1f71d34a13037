//! Body of a reply. It keeps its request under way until its end. Over HTTP/2 it also notes when nobody asks for the
//! next piece, and its pieces are small: HTTP/2 takes a whole piece into its own queue as soon as the client's window
//! has room for a byte, and what lies there is no longer noticed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Buf, Frame, SizeHint};

use super::streams::Reset;
use super::timeouts::InFlight;

/// The largest piece over HTTP/2: a frame.
pub(super) const PIECE: usize = 16 << 10;

/// See the module.
pub(super) struct ReplyBody<B: Body> {
    body: B,
    /// What the last piece of the body left; always empty over HTTP/1.
    rest: Option<B::Data>,
    /// Number among the timed replies of the connection. The socket times those of HTTP/1.
    timed: Option<u64>,
    request: InFlight,
}

impl<B: Body> ReplyBody<B> {
    /// The reply to `request`; `reset` ends its stream if it is one of HTTP/2.
    pub(super) fn new(body: B, request: InFlight, reset: Option<Reset>) -> Self {
        let timed = reset.map(|reset| request.timeouts().add_reply(reset));
        Self { body, rest: None, timed, request }
    }
}

impl<B: Body> Drop for ReplyBody<B> {
    fn drop(&mut self) {
        if let Some(reply) = self.timed {
            self.request.timeouts().remove_reply(reply);
        }
    }
}

impl<B: Body<Data: Unpin> + Unpin> ReplyBody<B> {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut rest = match self.rest.take() {
            Some(rest) => rest,
            None => match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame.map_data(|_| Bytes::new())))),
                },
                Some(Err(cause)) => return Poll::Ready(Some(Err(cause))),
                None => return Poll::Ready(None),
            },
        };
        let length = if self.timed.is_some() { rest.remaining().min(PIECE) } else { rest.remaining() };
        let piece = rest.copy_to_bytes(length);
        self.rest = rest.has_remaining().then_some(rest);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl<B: Body<Data: Unpin> + Unpin> Body for ReplyBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(reply) = self.timed else { return self.poll_piece(context) };
        self.request.timeouts().asked_for(reply);
        let poll = self.poll_piece(context);
        if let Poll::Ready(Some(Ok(frame))) = &poll {
            self.request.timeouts().handed_over(reply, frame.data_ref().map_or(0, Bytes::len));
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map_or(0, Buf::remaining) as u64;
        let hint = self.body.size_hint();
        let mut all = SizeHint::new();
        all.set_lower(hint.lower().saturating_add(rest));
        if let Some(upper) = hint.upper() {
            all.set_upper(upper.saturating_add(rest));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::super::Limits;
    use super::super::timeouts::Timeouts;
    use super::*;

    #[tokio::test]
    async fn a_reply_is_whole_in_small_pieces_over_http_2_and_its_length_is_known_throughout() {
        let whole = Bytes::from((0..100_000).map(|n| n as u8).collect::<Vec<_>>());
        for (reset, pieces) in [(Some(Reset::default()), 7), (None, 1)] {
            let request = Timeouts::new(&Limits::default()).begin(reset.is_some());
            let mut body = ReplyBody::new(Full::new(whole.clone()), request, reset);
            let (mut read, mut count) = (Vec::new(), 0);
            while let Some(frame) = body.frame().await {
                read.extend_from_slice(&frame.unwrap().into_data().unwrap());
                assert_eq!(body.size_hint().exact(), Some((whole.len() - read.len()) as u64));
                count += 1;
            }
            assert!(read == whole && body.is_end_stream());
            assert_eq!(count, pieces);
        }
    }
}
