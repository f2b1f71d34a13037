//! A proxy in front of the service that keeps every reply, for clients that are programs of their own. It forwards
//! HTTP/1.1 as HTTP/1.1 and h2c as h2c, and changes nothing that a signature covers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};

use super::http::Reply;

/// A reply, and the request line that it answers.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) reply: Reply,
}

/// Listens until it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Exchange>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Proxy {
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = all.clone();
                let answer = service_fn(move |request| forward(upstream, request, seen.clone()));
                tokio::spawn(async move {
                    // A client that goes away is no fault of the service.
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { address, seen, runtime: Some(runtime) }
    }

    /// What went through since the last call.
    pub(crate) fn take(&self) -> Vec<Exchange> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn forward(
    upstream: SocketAddr,
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Exchange>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let method = request.method().to_string();
    let target = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    match pass(upstream, request).await {
        Ok(response) => {
            let (head, body) = response.into_parts();
            let named = head.headers.iter();
            let named = named.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()));
            let reply = Reply::new(head.status.as_u16(), named.collect(), body.to_vec());
            seen.lock().unwrap().push(Exchange { method, target, reply });
            Ok(Response::from_parts(head, Full::new(body)))
        }
        Err(fault) => {
            // No operation describes it, so that it fails the test that holds replies against the document.
            let reply = Reply::new(599, Vec::new(), fault.into_bytes());
            seen.lock().unwrap().push(Exchange { method, target, reply });
            Ok(Response::builder().status(599).body(Full::default()).unwrap())
        }
    }
}

/// Sends one request on a connection of its own, by the protocol that it came with.
async fn pass(upstream: SocketAddr, request: Request<Incoming>) -> Result<Response<Bytes>, String> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|fault| format!("the client's body: {fault}"))?.to_bytes();
    let two = head.version == Version::HTTP_2;
    let request = Request::from_parts(head, Full::new(body));
    let stream = TcpStream::connect(upstream).await.map_err(|fault| format!("the service: {fault}"))?;
    let broken = |fault: hyper::Error| format!("the service: {fault:?}");
    let response = if two {
        let stream = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.map_err(broken)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(broken)?
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(broken)?
    };
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(broken)?.to_bytes();
    Ok(Response::from_parts(head, body))
}
