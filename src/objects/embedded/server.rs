//! The listener, and the few requests that `s3s` would take but we do not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpResponse, S3Error, S3Result, s3_error};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::body::Patient;
use super::operations::Operations;
use super::walls::{Gate, remembering};
use super::{Keys, Settings};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::net::{self, Limits};

/// AWS refuses presigned links that live longer than a week, and so do we.
const PRESIGNED_SECONDS: u64 = 7 * 24 * 3600;

/// A running server. Dropping it stops accepting; [`Server::stop`] also waits for requests in flight.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<Duration>>,
    task: JoinHandle<()>,
}

/// Opens the store (sweeping what a crash left behind) and serves it.
///
/// # Errors
/// `Validation` when the address or the folder cannot be used, for example because another process
/// uses the folder; `Internal` when the store's index cannot be read.
pub async fn start(settings: &Settings, keys: Arc<dyn Keys>, clock: Clock) -> Result<Server> {
    let operations = Operations::open(settings, clock).await?;
    let gate = Gate { keys, index: operations.index() };
    let listener = TcpListener::bind(settings.listen).await.map_err(|cause| {
        Error::validation(format!(
            "The embedded S3 server cannot listen on {}: {cause}. Set TUNESMITH_S3_LISTEN to a free address",
            settings.listen
        ))
    })?;
    let address = listener.local_addr()?;
    let mut builder = S3ServiceBuilder::new(operations);
    builder.set_auth(gate.clone());
    builder.set_access(gate);
    let (stop, stopped) = oneshot::channel();
    let service = builder.build();
    // Until it is told how long requests may take to end; dropped without a word, it ends at once.
    let stopped = async move { stopped.await.unwrap_or_default() };
    let answer = move |request| answer(service.clone(), request);
    let task = tokio::spawn(net::serve(listener, Limits::default(), answer, stopped));
    tracing::info!(%address, folder = %settings.folder.display(), "the embedded S3 server listens");
    Ok(Server { address, stop: Some(stop), task })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What an S3 client takes as its endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Accepts nothing more, lets requests in flight end for as long as `grace`, and closes the store.
    pub async fn stop(mut self, grace: Duration) {
        if let Some(stop) = self.stop.take() {
            // The loop may already have ended; then there is nothing to stop.
            let _ = stop.send(grace);
        }
        drop((&mut self.task).await);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.stop.is_some() {
            self.task.abort();
        }
    }
}

async fn answer(service: S3Service, request: hyper::Request<Incoming>) -> Result<HttpResponse, s3s::HttpError> {
    if let Err(error) = acceptable(&request) {
        return error.to_http_response().map_err(|error| s3s::HttpError::new(Box::new(error)));
    }
    remembering(service.call(request.map(|body| Body::http_body_unsync(Patient::new(body))))).await
}

/// Refuses what `s3s` takes although we must not: links that live too long, the old signatures that
/// have no such limit, and browser forms, which it would collect in memory.
fn acceptable(request: &hyper::Request<Incoming>) -> S3Result<()> {
    for pair in request.uri().query().unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode_str(name).decode_utf8_lossy();
        if name.eq_ignore_ascii_case("x-amz-expires") {
            let seconds = percent_decode_str(value).decode_utf8_lossy().parse::<u64>();
            if seconds.is_ok_and(|seconds| seconds > PRESIGNED_SECONDS) {
                return Err(s3_error!(
                    AuthorizationQueryParametersError,
                    "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be \
                     less than 604800 seconds"
                ));
            }
        }
        if name == "Signature" || name == "AWSAccessKeyId" {
            return Err(old_signature());
        }
    }
    let header = |name| request.headers().get(name).map(hyper::http::HeaderValue::as_bytes).unwrap_or_default();
    if header("authorization").starts_with(b"AWS ") {
        return Err(old_signature());
    }
    if request.method() == hyper::Method::POST && header("content-type").starts_with(b"multipart/form-data") {
        return Err(s3_error!(NotImplemented, "Uploads from browser forms are not implemented"));
    }
    Ok(())
}

fn old_signature() -> S3Error {
    s3_error!(
        InvalidRequest,
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
    )
}
