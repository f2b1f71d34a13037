//! Errors as Bedrock replies: the status, the exception's name in `x-amzn-errortype`, and a body of
//! `{"message": …}`. The cause of an error never enters the reply; it rides along as a [`Failure`] for
//! [`super::identify`], which logs it once, beside the request's id.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::{Error, Kind};

/// The exception's name; clients read it before the body.
pub const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// The log's face of an error, carried in the extensions of its reply.
#[derive(Debug, Clone)]
pub struct Failure(pub String);

/// The exception's name and its status in the service model.
pub fn exception(kind: Kind) -> (&'static str, StatusCode) {
    match kind {
        Kind::Validation => ("ValidationException", StatusCode::BAD_REQUEST),
        Kind::Conflict => ("ConflictException", StatusCode::BAD_REQUEST),
        Kind::QuotaExceeded => ("ServiceQuotaExceededException", StatusCode::BAD_REQUEST),
        Kind::TooManyTags => ("TooManyTagsException", StatusCode::BAD_REQUEST),
        Kind::AccessDenied => ("AccessDeniedException", StatusCode::FORBIDDEN),
        Kind::NotFound => ("ResourceNotFoundException", StatusCode::NOT_FOUND),
        Kind::ModelTimeout => ("ModelTimeoutException", StatusCode::REQUEST_TIMEOUT),
        Kind::Model => ("ModelErrorException", StatusCode::FAILED_DEPENDENCY),
        Kind::Throttling => ("ThrottlingException", StatusCode::TOO_MANY_REQUESTS),
        Kind::ModelNotReady => ("ModelNotReadyException", StatusCode::TOO_MANY_REQUESTS),
        Kind::Internal => ("InternalServerException", StatusCode::INTERNAL_SERVER_ERROR),
        Kind::Unavailable => ("ServiceUnavailableException", StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// An error reply under any name: for what the service model does not list (signatures, sizes, routes).
pub fn refuse(status: StatusCode, name: &'static str, message: &str) -> Response {
    refuse_with(status, name, &serde_json::json!({ "message": message }))
}

fn refuse_with(status: StatusCode, name: &'static str, body: &serde_json::Value) -> Response {
    let body = body.to_string();
    let mut reply = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    reply.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(name));
    reply
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (name, status) = exception(self.kind());
        let mut body = serde_json::json!({ "message": self.message() });
        if let Some(resource) = self.resource() {
            body["resourceName"] = resource.into();
        }
        let mut reply = refuse_with(status, name, &body);
        reply.extensions_mut().insert(Failure(self.log()));
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_cause_stays_out_of_the_reply() {
        let error = Error::internal(anyhow::anyhow!("password=hunter2"));
        let reply = error.into_response();
        assert_eq!(reply.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(reply.headers()[ERROR_TYPE], "InternalServerException");
        assert!(reply.extensions().get::<Failure>().unwrap().0.contains("hunter2"));
        let body = axum::body::to_bytes(reply.into_body(), 1000).await.unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("hunter2"));
    }

    #[test]
    fn a_conflict_is_a_400() {
        assert_eq!(exception(Kind::Conflict), ("ConflictException", StatusCode::BAD_REQUEST));
    }
}
