//! Replies in pieces. HTTP/2 takes a whole piece into its own queue as soon as the client's window has room for a
//! byte: small pieces keep what nobody reads with the reply, where it is noticed, and out of that queue.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// The largest piece: a frame of HTTP/2.
const PIECE: usize = 16 * 1024;

/// A reply's body, in small pieces where asked for.
pub(super) struct Pieces {
    body: Body,
    small: bool,
    rest: Bytes,
}

impl Pieces {
    pub(super) fn new(body: Body, small: bool) -> Self {
        Self { body, small, rest: Bytes::new() }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let length = if self.small { PIECE.min(self.rest.len()) } else { self.rest.len() };
        Frame::data(self.rest.split_to(length))
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        Poll::Ready(Some(Ok(self.piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, hint) = (self.rest.len() as u64, self.body.size_hint());
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
    use http_body_util::BodyExt;
    use hyper::body::Body as _;

    use super::*;

    #[tokio::test]
    async fn a_reply_is_whole_in_small_pieces_and_its_length_is_known_throughout() {
        let whole = Bytes::from((0..100_000).map(|n| n as u8).collect::<Vec<_>>());
        for (small, pieces) in [(true, 7), (false, 1)] {
            let mut body = Pieces::new(Body::from(whole.clone()), small);
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
