//! What handlers take from a request: path segments decoded after the path was split, the query with
//! AWS's rules, and JSON bodies. A wrong request is a ValidationException in every case.

use std::collections::BTreeMap;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

pub use super::json::parse;
use crate::error::{Error, Result};

/// The one parameter in the path. The router splits the raw path, so an ARN's `%2F` separates nothing.
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::validation("The path holds bytes that are not UTF-8"))?;
        without_nul(&text, "path")?;
        Ok(Self(text))
    }
}

/// The query by name. A literal `+` is a plus sign, not a space: SDKs encode both.
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let decode = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8();
            let decoded = decoded.map_err(|_| Error::validation("The query holds bytes that are not UTF-8"))?;
            without_nul(&decoded, "query")?;
            Ok::<_, Error>(String::from(decoded))
        };
        let mut values = BTreeMap::new();
        for pair in parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.insert(decode(name)?, decode(value)?);
        }
        Ok(Self(values))
    }
}

/// Postgres stores no NUL in text, and no name, filter or token has a use for one.
fn without_nul(text: &str, place: &str) -> Result<()> {
    match text.contains('\0') {
        true => Err(Error::validation(format!("The {place} holds the character U+0000, which no parameter allows"))),
        false => Ok(()),
    }
}

/// A JSON body. No content type is asked for, because not every client sends one; an empty body is `{}`.
/// How deep it may be nested is checked where it is received.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|_| Error::validation("The request body could not be read"))?;
        parse(&body).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_body_nested_ten_thousand_deep_is_refused() {
        let deep = format!("{}{}", "{\"a\":".repeat(10_000), "1");
        assert!(parse::<Value>(deep.as_bytes()).unwrap_err().message().contains("recursion"));
    }

    #[test]
    fn an_empty_body_is_an_empty_object_and_other_json_is_refused() {
        assert_eq!(parse::<Value>(b"").unwrap(), serde_json::json!({}));
        assert!(parse::<Value>(b"[]").is_err());
        assert!(parse::<Value>(b"{\"a\":\"\\u0000\"}").is_err());
        assert!(parse::<Value>(b"{\"a\":\xff}").is_err());
    }

    #[tokio::test]
    async fn a_nul_in_the_query_is_refused() {
        for query in ["nameContains=a%00b", "a%00b=1", "nextToken=%00"] {
            let request = axum::http::Request::get(format!("/x?{query}")).body(()).unwrap();
            let refused = Query::from_request_parts(&mut request.into_parts().0, &()).await.map(drop).unwrap_err();
            assert!(refused.message().contains("U+0000"), "{query}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_plus_in_the_query_is_a_plus() {
        let request = axum::http::Request::get("/x?nameContains=a+b%2Bc&flag").body(()).unwrap();
        let query = Query::from_request_parts(&mut request.into_parts().0, &()).await.unwrap();
        assert_eq!(query.get("nameContains"), Some("a+b+c"));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("absent"), None);
    }
}
