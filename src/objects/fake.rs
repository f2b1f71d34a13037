//! An S3 server for tests that says what a test wants it to say.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query};
use axum::http::{HeaderMap, Method, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;

use super::{Endpoint, Objects};

/// A request as a test sees it.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    query: HashMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Asked {
    pub(super) fn query(&self, name: &str) -> Option<String> {
        self.query.get(name).cloned()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The running server.
pub(super) struct Fake(String);

impl Fake {
    pub(super) async fn start(answer: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        let handler = move |method: Method, uri: Uri, query: Query<HashMap<String, String>>, headers, body| {
            let answer = Arc::clone(&answer);
            let asked = Asked { method, path: uri.path().to_string(), query: query.0, headers, body };
            async move { answer(&asked) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = TowerToHyperService::new(Router::new().fallback(handler).layer(DefaultBodyLimit::disable()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    // A client that goes away in the middle is what some tests want.
                    let server = auto::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self(url)
    }

    pub(super) fn objects(&self) -> Objects {
        Objects::new(&Endpoint {
            url: self.0.clone(),
            access_key: "AKIAFAKE".into(),
            secret_key: "secret".into(),
            region: "us-east-1".into(),
        })
    }
}

/// A reply with a status, and with an S3 error code or a whole body.
pub(super) fn reply(status: u16, content: &str) -> Response<Body> {
    let body = match content {
        "" => String::new(),
        body if body.starts_with('<') => body.to_string(),
        code => format!("<Error><Code>{code}</Code><Message>as a test wants it</Message></Error>"),
    };
    Response::builder().status(status).header("content-type", "application/xml").body(Body::from(body)).unwrap()
}

/// An object's bytes.
pub(super) fn object(bytes: &[u8]) -> Response<Body> {
    Response::builder().status(200).header("etag", "\"0123\"").body(Body::from(bytes.to_vec())).unwrap()
}

/// A page of a listing, and where it goes on.
pub(super) fn page(keys: &[&str], next: Option<&str>) -> Response<Body> {
    let contents: String =
        keys.iter().map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")).collect();
    let next = next.map_or_else(
        || "<IsTruncated>false</IsTruncated>".to_string(),
        |next| format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{next}</NextContinuationToken>"),
    );
    reply(200, &format!("<ListBucketResult><Name>data</Name>{contents}{next}</ListBucketResult>"))
}
