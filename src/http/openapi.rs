//! The document that describes the API, and the page that hands it out. It is generated from the
//! handlers; `openapi/openapi.json` is a copy that a test compares.

use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement};

/// The document before any operation is added.
pub fn document() -> OpenApi {
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let signature = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
        "Authorization",
        "AWS Signature Version 4 for the service `bedrock`",
    )));
    let mut components = Components::new();
    components.add_security_scheme("bearer", bearer);
    components.add_security_scheme("sigv4", signature);
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Tunesmith")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("The wire contract of Amazon Bedrock's model-customization API, self-hosted.")),
        )
        .components(Some(components))
        .security(Some([
            SecurityRequirement::new("sigv4", Vec::<String>::new()),
            SecurityRequirement::new("bearer", Vec::<String>::new()),
        ]))
        .build()
}

/// The document as committed: pretty, with a newline at the end.
pub fn text(document: &OpenApi) -> String {
    // The document is built from string keys and plain values, which serde_json always writes.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}
