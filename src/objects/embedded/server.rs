//! The listener, and the few requests that `s3s` would take but we do not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpResponse, S3Result, s3_error};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::addressing::{Domains, host};
use super::body::Patient;
use super::index::Index;
use super::operations::Operations;
use super::walls::{Gate, remembering};
use super::{Keys, Settings, signatures};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::net::{self, Limits};

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
    let domains = Domains::new(&settings.domains)?;
    let operations = Operations::open(settings, clock.clone()).await?;
    let index = operations.index();
    let gate = Gate { keys, index: index.clone() };
    let listener = TcpListener::bind(settings.listen).await.map_err(|cause| {
        Error::validation(format!(
            "The embedded S3 server cannot listen on {}: {cause}. Set TUNESMITH_S3_LISTEN to a free address",
            settings.listen
        ))
    })?;
    let address = listener.local_addr()?;
    let mut builder = S3ServiceBuilder::new(operations);
    builder.set_auth(gate.clone());
    builder.set_access(gate.clone());
    builder.set_host(domains.clone());
    let answers = Arc::new(Answers { service: builder.build(), index, domains, gate, clock });
    let (stop, stopped) = oneshot::channel();
    // Until it is told how long requests may take to end; dropped without a word, it ends at once.
    let stopped = async move { stopped.await.unwrap_or_default() };
    let answer = move |request| {
        let answers = Arc::clone(&answers);
        async move { answers.answer(request).await }
    };
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

/// What answers requests.
struct Answers {
    service: S3Service,
    index: Index,
    domains: Domains,
    gate: Gate,
    clock: Clock,
}

impl Answers {
    async fn answer(&self, request: hyper::Request<Incoming>) -> Result<HttpResponse, s3s::HttpError> {
        let bucket = self.domains.bucket_of(&request);
        if request.method() == hyper::Method::OPTIONS {
            return or_error(self.index.preflight(bucket, &request).await);
        }
        let origin = request.headers().get(hyper::header::ORIGIN).cloned();
        let method = request.method().clone();
        let waits = request.headers().contains_key(hyper::header::EXPECT) && request.version() < hyper::Version::HTTP_2;
        let answer = async {
            match self.accepted(request).await {
                Ok(request) => self.service.call(request).await,
                Err(error) => or_error(Err(error)),
            }
        };
        let mut response = remembering(answer).await?;
        if waits && response.status().is_client_error() {
            // Who waited to be asked for its body does not send it any more, and what it sends next is no body.
            response.headers_mut().insert(hyper::header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let (Some(origin), Some(bucket)) = (origin, bucket) {
            self.index.allow_origin(&bucket, &method, &origin, response.headers_mut()).await;
        }
        Ok(response)
    }

    /// Refuses what `s3s` takes although we must not: signatures that cover too little, links that live too long,
    /// and browser forms, which it would collect in memory.
    async fn accepted(&self, mut request: hyper::Request<Incoming>) -> S3Result<hyper::Request<Body>> {
        let content_type = request.headers().get(hyper::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        let form = content_type.is_some_and(|given| given.to_ascii_lowercase().starts_with(b"multipart/form-data"));
        if request.method() == hyper::Method::POST && form {
            return Err(s3_error!(NotImplemented, "Uploads from browser forms are not implemented"));
        }
        let hosted = match host(&request) {
            Some(host) => self.domains.bucket(host)?,
            None => None,
        };
        signatures::check(&mut request, hosted.as_deref(), &self.gate, self.clock.now()).await?;
        Ok(request.map(|body| Body::http_body_unsync(Patient::new(body))))
    }
}

fn or_error(answer: S3Result<HttpResponse>) -> Result<HttpResponse, s3s::HttpError> {
    answer.or_else(|error| error.to_http_response().map_err(|error| s3s::HttpError::new(Box::new(error))))
}
