//! The page at `/docs`: Swagger UI over `/openapi.json`. All of it comes out of this binary, and the page's
//! policy forbids the browser to load anything from elsewhere.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware::map_response;
use axum::response::Response;
use utoipa_swagger_ui::{Config, SwaggerUi};

/// Swagger UI styles elements in place and draws its icons from `data:` URLs.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
);

/// The routes of the page.
pub fn page<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // The validator is swagger.io's: it would be sent the document's address.
    let config = Config::from("/openapi.json").validator_url("none").persist_authorization(true);
    let pages: Router<S> = SwaggerUi::new("/docs").config(config).into();
    pages.layer(map_response(async |mut reply: Response| {
        reply.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY);
        reply
    }))
}
