//! Browsers of other origins: allowed where the operator says so, and nowhere else.

use crate::support::http;
use crate::support::{with_app, with_settings};

const PAGE: &str = "https://console.example.net";

fn preflight(origin: &str) -> Vec<(String, String)> {
    [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,x-amz-date,x-amz-target-header"),
    ]
    .map(|(name, value)| (name.to_string(), value.to_string()))
    .to_vec()
}

#[test]
fn pages_of_an_allowed_origin_may_call_and_read_the_headers_that_clients_read() {
    with_settings(&["--cors-origins=https://console.example.net,https://other.example.net"], async |app| {
        let reply = http::send(app.address, "OPTIONS", "/model-customization-jobs", &preflight(PAGE), b"").await;
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

        let elsewhere = preflight("https://elsewhere.example.org");
        let reply = http::send(app.address, "OPTIONS", "/model-customization-jobs", &elsewhere, b"").await;
        assert!(reply.header("access-control-allow-origin").is_none());
        app
    });
}

#[test]
fn no_page_may_call_where_nothing_is_said() {
    with_app(async |app| {
        let reply = http::send(app.address, "OPTIONS", "/model-customization-jobs", &preflight(PAGE), b"").await;
        assert_ne!(reply.status, 200);
        assert!(reply.header("access-control-allow-origin").is_none());
        app
    });
}
