//! A caller of a service that may be killed, cut off or away: signs as SDKs do, and tells a reply that came whole
//! from none.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::{self, Reply};
use super::{Pair, recorder};

/// The headers that sign a request to `address` as of `time`; `target` is the raw path and query.
pub(crate) fn signed(
    address: SocketAddr,
    pair: &Pair,
    (method, target): (&str, &str),
    body: &str,
    time: SystemTime,
) -> Vec<(String, String)> {
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Double;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    let identity = Credentials::from_keys(&pair.access_key, &pair.secret_key, pair.session_token.clone()).into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name("bedrock")
        .time(time)
        .settings(settings)
        .build()
        .unwrap();
    let url = format!("http://{address}{target}");
    let request = SignableRequest::new(method, url, [].into_iter(), SignableBody::Bytes(body.as_bytes())).unwrap();
    let (instructions, _) = sign(request, &params.into()).unwrap().into_parts();
    let (headers, _) = instructions.into_parts();
    headers.iter().map(|header| (header.name().to_string(), header.value().to_string())).collect()
}

/// Whoever calls one service with one pair of keys.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) pair: Pair,
    /// How long a reply may take.
    pub(crate) patience: Duration,
}

impl Client {
    /// One request; `None` when no whole reply came. A reply is held against the document.
    pub(crate) async fn try_call(&self, method: &str, target: &str, body: Option<&Value>) -> Option<Reply> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let headers = signed(self.address, &self.pair, (method, target), &body, SystemTime::now());
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in &headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.ok()?;
            stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.ok()?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.ok()?;
            Some(bytes)
        };
        let bytes = tokio::time::timeout(self.patience, exchange).await.ok()??;
        let reply = whole(&bytes)?;
        recorder::check(method, target, &reply);
        Some(reply)
    }

    /// The same request until it is answered by something else than an outage.
    pub(crate) async fn call(&self, method: &str, target: &str, body: Option<&Value>) -> Reply {
        super::until(&format!("{method} {target} is answered"), async || {
            let reply = self.try_call(method, target, body).await;
            reply.filter(|reply| !matches!(reply.status, 429 | 500 | 502 | 503 | 504))
        })
        .await
    }
}

/// The reply in `bytes`, if its end came too.
fn whole(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body = &bytes[end + 4..];
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let came = match length {
        Some(length) => body.len() >= length,
        None => !head.contains("transfer-encoding: chunked") || body.ends_with(b"0\r\n\r\n"),
    };
    came.then(|| http::parse(bytes))
}
