//! Answers as they come. The engine works on a thread that may block and sends pieces over a channel; each becomes
//! a frame of `application/vnd.amazon.eventstream`. What fails before the first piece is an error like any other;
//! what fails later is a frame with the exception's name, because the status is already sent. A reader that goes
//! away drops the stream, and with it the engine stops within a token.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use axum::body::Body;
use axum::http::{HeaderValue as Value, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{Asked, CancelOnDrop, Model, place};
use crate::app::App;
use crate::app::models::Served;
use crate::error::{Error, Kind, Result};
use crate::infer::{Answer, Options, Piece};

/// The media type of a stream of frames.
pub(super) const EVENT_STREAM: &str = "application/vnd.amazon.eventstream";
/// Pieces that may wait for a slow reader; then the engine waits for it.
const WAITING: usize = 64;

/// Some text of an answer, with the tokens so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) input_tokens: usize,
    pub(super) output_tokens: usize,
}

/// What the engine says.
pub(super) enum Said {
    /// More text.
    More(Text),
    /// All of it was said, or something went wrong.
    End(Result<Answer>),
}

/// Asks the engine; the stream yields the first piece at once, because it has been waited for.
///
/// # Errors
/// When there is no place at the door, or the engine fails before it says anything.
pub(super) async fn pieces(app: &App, asked: Asked<'_>) -> Result<impl Stream<Item = Said> + Send + use<>> {
    let Asked { model: Model { source, pass, .. }, prompt, options } = asked;
    let options = Options { reserved: pass.is_some(), ..options };
    let place = place(app, pass)?;
    let Served { target, in_use } = source.served(app).await?;
    let wanted = target.clone();
    let engine = Arc::clone(&app.engine);
    let cancel = CancelOnDrop(Arc::<AtomicBool>::default());
    let cancelled = Arc::clone(&cancel.0);
    let (sender, mut said) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let mut more = |piece: Piece<'_>| {
            let Piece { text, input_tokens, output_tokens } = piece;
            // Nobody listens any more: the flag ends the work at the next token.
            let _ = sender.blocking_send(Said::More(Text { text: text.to_string(), input_tokens, output_tokens }));
        };
        let answer = engine.answer(&target, &prompt, &options, &cancelled, &mut more);
        drop((place, in_use));
        let _ = sender.blocking_send(Said::End(answer));
    });
    let first = match said.recv().await {
        Some(Said::End(Err(error))) => return Err(source.after_failure(app, &wanted, error).await),
        Some(first) => first,
        None => return Err(Error::internal(anyhow::anyhow!("the engine ended without a word"))),
    };
    let rest = stream::unfold((said, cancel), |(mut said, cancel)| async {
        said.recv().await.map(|next| (next, (said, cancel)))
    });
    Ok(stream::once(async { first }).chain(rest))
}

/// A reply of `frames`, in groups as they are ready.
pub(super) fn reply(frames: impl Stream<Item = Vec<Message>> + Send + 'static) -> Response {
    let bytes = frames.map(|messages| {
        let mut bytes = Vec::new();
        for message in &messages {
            write_message_to(message, &mut bytes).map_err(|cause| std::io::Error::other(cause.to_string()))?;
        }
        Ok::<_, std::io::Error>(Bytes::from(bytes))
    });
    let kind = [(header::CONTENT_TYPE, Value::from_static(EVENT_STREAM))];
    (kind, Body::from_stream(bytes)).into_response()
}

/// A frame of the event `name`.
pub(super) fn event(name: &'static str, payload: &impl Serialize) -> Message {
    frame(("event", ":event-type", name), payload)
}

/// The frame that ends a stream after something went wrong.
pub(super) fn exception(error: &Error) -> Message {
    let name = match error.kind() {
        Kind::Validation => "validationException",
        Kind::Throttling => "throttlingException",
        Kind::Internal => "internalServerException",
        _ => "modelStreamErrorException",
    };
    tracing::error!("an answer broke off: {}", error.log());
    frame(("exception", ":exception-type", name), &serde_json::json!({ "message": error.message() }))
}

fn frame((kind, key, name): (&'static str, &'static str, &'static str), payload: &impl Serialize) -> Message {
    // Strings and numbers always serialise.
    let payload = serde_json::to_vec(payload).unwrap_or_default();
    let header = |name: &'static str, value: &'static str| Header::new(name, HeaderValue::String(value.into()));
    Message::new(payload)
        .add_header(header(key, name))
        .add_header(header(":content-type", "application/json"))
        .add_header(header(":message-type", kind))
}
