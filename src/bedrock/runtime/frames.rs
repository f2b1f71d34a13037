//! Answers as they come. The engine works on a thread that may block and leaves pieces in an [`super::outlet`]; each
//! becomes a frame of `application/vnd.amazon.eventstream`. What fails before the first piece is an error like any
//! other; what fails later is a frame with the exception's name, because the status is already sent. A reader that goes
//! away drops the stream, and with it the engine stops within a token.

use std::sync::Arc;

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use axum::body::Body;
use axum::http::{HeaderValue as Value, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::outlet::{Reader, Said, outlet};
use super::{Asked, Model, place};
use crate::app::App;
use crate::app::models::Served;
use crate::error::{Error, Kind, Result};
use crate::infer::Options;

/// The media type of a stream of frames.
pub(super) const EVENT_STREAM: &str = "application/vnd.amazon.eventstream";

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
    let (writer, mut reader, cancelled) = outlet(&app.clock, app.config.stall());
    tokio::task::spawn_blocking(move || {
        let answer = engine.answer(&target, &prompt, &options, &cancelled, &mut |piece| writer.more(piece));
        drop((place, in_use));
        writer.end(answer);
    });
    let closing = app.closing.clone();
    let first = match next(&mut reader, &closing).await {
        Some(Said::End(Err(error))) => return Err(source.after_failure(app, &wanted, error).await),
        Some(first) => first,
        None => return Err(Error::internal(anyhow::anyhow!("the engine ended without a word"))),
    };
    let rest = stream::unfold((reader, closing), |(mut reader, closing)| async {
        next(&mut reader, &closing).await.map(|said| (said, (reader, closing)))
    });
    Ok(stream::once(async { first }).chain(rest))
}

/// What the engine says next; a process that ends says so itself.
async fn next(reader: &mut Reader, closing: &CancellationToken) -> Option<Said> {
    if reader.is_ended() {
        return None;
    }
    tokio::select! {
        biased;
        () = closing.cancelled() => Some(reader.break_off(super::ends())),
        said = reader.next() => said,
    }
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
        Kind::Unavailable => "serviceUnavailableException",
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
