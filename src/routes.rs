//! Every route, in the order of Bedrock's own list. The router matches the raw path and decodes each
//! segment afterwards, so an ARN with `%2F` in it is one segment.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::bedrock::{deployments, foundation, imported_models, imports, jobs, models, runtime, tags, throughputs};
use crate::http::identify::identify;
use crate::http::policy::Operations;
use crate::http::receive::{Gate, receive};
use crate::http::{cors, docs, health, openapi, reply};

/// The operations, each registered together with its description.
fn operations() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::document())
        .routes(routes!(jobs::create::create, jobs::list::list))
        .routes(routes!(jobs::get::get))
        .routes(routes!(jobs::stop::stop))
        .routes(routes!(models::create::create))
        .routes(routes!(models::get::get, models::delete::delete))
        .routes(routes!(models::list::list))
        .routes(routes!(deployments::create::create, deployments::list::list))
        .routes(routes!(deployments::get::get, deployments::update::update, deployments::delete::delete))
        .routes(routes!(throughputs::create::create))
        .routes(routes!(throughputs::get::get, throughputs::update::update, throughputs::delete::delete))
        .routes(routes!(throughputs::list::list))
        .routes(routes!(imports::create::create, imports::list::list))
        .routes(routes!(imports::get::get))
        .routes(routes!(imported_models::get::get, imported_models::delete::delete))
        .routes(routes!(imported_models::list::list))
        .routes(routes!(tags::tag::tag))
        .routes(routes!(tags::untag::untag))
        .routes(routes!(tags::list::list))
        .routes(routes!(foundation::list::list))
        .routes(routes!(foundation::get::get))
        .routes(routes!(foundation::availability::get))
        .routes(routes!(runtime::invoke::invoke))
        .routes(routes!(runtime::invoke_stream::invoke_with_response_stream))
        .routes(routes!(runtime::converse::converse))
        .routes(routes!(runtime::converse_stream::converse_stream))
        .routes(routes!(runtime::count_tokens::count_tokens))
}

/// The document that describes the operations.
pub fn document() -> OpenApi {
    openapi::with_errors(operations().into_openapi())
}

/// The whole service: operations behind a key; health and the document open.
pub fn router(app: Arc<App>) -> Router {
    let (operations, document) = operations().split_for_parts();
    let gate = Arc::new(Gate::new(Arc::clone(&app), Operations::of(&document)));
    // One copy in memory, however many read it.
    let document = Bytes::from(openapi::text(&openapi::with_errors(document)));
    let router = operations
        .fallback(unknown)
        .method_not_allowed_fallback(other_method)
        // The gate has read the body under the operation's own limit; axum's, of 2 MB, is less than Converse allows.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(gate, receive))
        .merge(
            Router::new()
                .route("/healthz", get(health::healthz))
                .route("/readyz", get(health::readyz))
                .route("/openapi.json", get(|| async move { json(document) }))
                .merge(docs::page()),
        )
        .layer(from_fn_with_state(Arc::clone(&app), identify))
        .with_state(Arc::clone(&app));
    match cors::layer(&app.config.cors_origins) {
        // Outermost: a preflight carries no key.
        Some(layer) => router.layer(layer),
        None => router,
    }
}

async fn unknown() -> impl IntoResponse {
    reply::refuse(StatusCode::NOT_FOUND, "UnknownOperationException", "There is no such operation")
}

/// The router adds `Allow` with the methods there are.
async fn other_method() -> impl IntoResponse {
    let message = "The operations at this path take another method: see the header Allow";
    reply::refuse(StatusCode::METHOD_NOT_ALLOWED, "UnknownOperationException", message)
}

fn json(text: Bytes) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text)
}
