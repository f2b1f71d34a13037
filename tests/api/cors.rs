//! Browsers of other origins: allowed where the operator says so, and nowhere else.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::http::{self, Reply, parse, read_all};
use crate::support::{with_app, with_settings};

const PAGE: &str = "https://console.example.net";

/// What a browser asks before a call. It is no operation of the document, so it is sent as it is.
async fn preflight(address: SocketAddr, origin: &str) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "OPTIONS /model-customization-jobs HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\norigin: {origin}\r\n\
         access-control-request-method: POST\r\naccess-control-request-headers: authorization,x-amz-date\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    parse(&read_all(stream).await)
}

#[test]
fn pages_of_an_allowed_origin_may_call_and_read_the_headers_that_clients_read() {
    with_settings(&["--cors-origins=https://console.example.net,https://other.example.net"], async |app| {
        let reply = preflight(app.address, PAGE).await;
        assert_eq!(reply.status, 200, "a preflight carries no key");
        assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
        assert_eq!(reply.header("access-control-allow-methods"), Some("POST"));
        assert!(reply.header("access-control-allow-headers").unwrap().contains("authorization"));

        // Also where the call itself is refused: a page is told why.
        let origin = [("origin".to_string(), PAGE.to_string())];
        let reply = http::send(app.address, "GET", "/model-customization-jobs", &origin, b"").await;
        assert_eq!(reply.status, 403);
        assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
        let exposed = reply.header("access-control-expose-headers").unwrap().to_ascii_lowercase();
        assert!(exposed.contains("x-amzn-requestid") && exposed.contains("x-amzn-errortype"), "{exposed}");
        assert!(reply.header("access-control-allow-credentials").is_none());

        let reply = preflight(app.address, "https://elsewhere.example.org").await;
        assert!(reply.header("access-control-allow-origin").is_none());
        app
    });
}

#[test]
fn no_page_may_call_where_nothing_is_said() {
    with_app(async |app| {
        let reply = preflight(app.address, PAGE).await;
        assert_ne!(reply.status, 200);
        assert!(reply.header("access-control-allow-origin").is_none());
        app
    });
}
