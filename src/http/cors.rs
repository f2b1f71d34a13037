//! Cross-origin requests: which web pages may call the API from a browser, and what they may read
//! of a reply. Keys travel in headers and never in cookies, so no origin is given credentials.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// Time that a browser may remember an answer to its preflight.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Headers of replies that clients read.
const EXPOSED: [HeaderName; 7] = [
    HeaderName::from_static("x-amzn-requestid"),
    HeaderName::from_static("x-amzn-errortype"),
    HeaderName::from_static("x-amzn-bedrock-input-token-count"),
    HeaderName::from_static("x-amzn-bedrock-output-token-count"),
    HeaderName::from_static("x-amzn-bedrock-invocation-latency"),
    HeaderName::from_static("x-amzn-bedrock-content-type"),
    header::RETRY_AFTER,
];

/// Answers preflights and marks replies for `origins`; for none there is no layer, which would answer every `OPTIONS`.
pub fn layer(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE);
    Some(layer)
}
