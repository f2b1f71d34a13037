//! The document that describes the API, and the page that hands it out. It is generated from the
//! handlers; `openapi/openapi.json` is a copy that a test compares.

use utoipa::ToSchema;
use utoipa::openapi::schema::{SchemaType, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, Header, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder,
    Schema, SecurityRequirement,
};

/// The body of every error; its name is in the header `x-amzn-errortype`.
#[derive(ToSchema)]
#[schema(as = Error)]
#[expect(dead_code, reason = "only its schema is used: errors are written by `reply`")]
struct ErrorBody {
    /// What went wrong, in a sentence.
    message: String,
    /// What it is about, where the exception has such a member.
    #[schema(rename = "resourceName")]
    resource_name: Option<String>,
}

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

/// Gives every operation the reply that each of them may give: an error.
#[must_use]
pub fn with_errors(mut document: OpenApi) -> OpenApi {
    let schema = <ErrorBody as utoipa::PartialSchema>::schema();
    document.components.get_or_insert_default().schemas.insert("Error".into(), schema);
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.responses.responses.insert("default".into(), error().into());
        }
    }
    for schema in document.components.get_or_insert_default().schemas.values_mut() {
        forbid_null(schema);
    }
    document
}

/// What is required is not null. Members of requests are all `Option`s in the code, because a missing one is
/// answered in the contract's words; the document would take that for "may be null".
fn forbid_null(schema: &mut RefOr<Schema>) {
    let RefOr::T(Schema::Object(object)) = schema else { return };
    for name in &object.required {
        let Some(member) = object.properties.get_mut(name) else { continue };
        let single = match member {
            RefOr::T(Schema::OneOf(choice)) => {
                choice.items.retain(|item| !is_null(item));
                (choice.items.len() == 1).then(|| choice.items.remove(0))
            }
            RefOr::T(Schema::Object(inner)) => {
                without_null(&mut inner.schema_type);
                None
            }
            RefOr::T(Schema::Array(inner)) => {
                without_null(&mut inner.schema_type);
                None
            }
            _ => None,
        };
        if let Some(single) = single {
            *member = single;
        }
    }
}

fn is_null(schema: &RefOr<Schema>) -> bool {
    matches!(schema, RefOr::T(Schema::Object(object)) if matches!(object.schema_type, SchemaType::Type(Type::Null)))
}

fn without_null(types: &mut SchemaType) {
    if let SchemaType::Array(all) = types {
        all.retain(|one| !matches!(one, Type::Null));
        if let [one] = all.as_slice() {
            *types = SchemaType::Type(one.clone());
        }
    }
}

fn error() -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
    ResponseBuilder::new()
        .description("An error: its name is in x-amzn-errortype")
        .header("x-amzn-errortype", Header::default())
        .content("application/json", content)
        .build()
}

/// The document as committed: pretty, with a newline at the end.
pub fn text(document: &OpenApi) -> String {
    // The document is built from string keys and plain values, which serde_json always writes.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}
