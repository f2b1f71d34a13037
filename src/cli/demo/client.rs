//! A caller of the service's own API over a real socket: the demo sends what curl would send.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::config::Secret;
use crate::error::{Error, Kind, Result};

/// Calls the API at `address` with a bearer key.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// Where the API listens.
    pub(super) address: SocketAddr,
    /// The bearer key that every request carries.
    pub(super) key: Secret,
}

impl Client {
    /// Sends one request on a connection of its own and reads the JSON answer.
    ///
    /// # Errors
    /// The service's own sentence when it refuses, with its exception's name in front.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let lost = |cause: anyhow::Error| {
            Error::new(Kind::Unavailable, format!("the service at {} does not answer", self.address)).because(cause)
        };
        let stream = TcpStream::connect(self.address).await.map_err(|cause| lost(cause.into()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|cause| lost(cause.into()))?;
        // The connection ends with the sender; what goes wrong on it shows in the request.
        tokio::spawn(connection);

        let content = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json")
            // The key proves to the service who calls.
            .header(AUTHORIZATION, format!("Bearer {}", self.key.expose()))
            .body(Full::new(Bytes::from(content)))
            .map_err(Error::internal)?;
        let response = sender.send_request(request).await.map_err(|cause| lost(cause.into()))?;

        let status = response.status();
        let name = header(&response, "x-amzn-errortype");
        let content = response.into_body().collect().await.map_err(|cause| lost(cause.into()))?.to_bytes();
        if status.is_success() {
            return if content.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&content)?) };
        }
        Err(refused(path, status, &name, &content))
    }
}

fn header(response: &hyper::Response<hyper::body::Incoming>, name: &str) -> String {
    let value = response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(':').next().unwrap_or_default().to_string()
}

fn refused(path: &str, status: StatusCode, name: &str, content: &[u8]) -> Error {
    let message = serde_json::from_slice::<Value>(content)
        .ok()
        .and_then(|body| body["message"].as_str().map(str::to_string))
        .unwrap_or_else(|| String::from_utf8_lossy(content).into_owned());
    Error::validation(format!("{path} answered {} {name}: {message}", status.as_u16()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_the_services_own_sentence() {
        let error =
            refused("/jobs", StatusCode::BAD_REQUEST, "ValidationException", br#"{"message":"jobName is too long"}"#);
        assert_eq!(error.message(), "/jobs answered 400 ValidationException: jobName is too long");
    }
}
