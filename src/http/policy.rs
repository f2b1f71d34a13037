//! What a proved key may do, where it carries a policy: which operations, and which parts of object
//! storage its requests may name. An operation's name is the one under which its route is registered.

use std::collections::HashMap;

use axum::extract::MatchedPath;
use axum::http::Method;
use axum::http::request::Parts;
use serde_json::Value;
use utoipa::openapi::OpenApi;

use super::json::parse;
use super::places::{in_control_plane, in_runtime};
use crate::config::Prefix;
use crate::error::{Error, Kind, Result};
use crate::store::keys::{Key, Policy};

/// The name of every operation, by method and path.
#[derive(Debug, Default)]
pub struct Operations(HashMap<(Method, String), String>);

impl Operations {
    /// Reads them from the document that the routes were registered with.
    pub fn of(document: &OpenApi) -> Self {
        let mut names = HashMap::new();
        for (path, item) in &document.paths.paths {
            for (method, operation) in [
                (Method::GET, &item.get),
                (Method::POST, &item.post),
                (Method::PUT, &item.put),
                (Method::PATCH, &item.patch),
                (Method::DELETE, &item.delete),
            ] {
                if let Some(name) = operation.as_ref().and_then(|operation| operation.operation_id.clone()) {
                    names.insert((method, path.clone()), name);
                }
            }
        }
        Self(names)
    }

    /// Every name, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.0.values().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Refuses what the key's policy does not allow. A key without one may do everything.
    pub(super) fn permit(&self, key: &Key, parts: &Parts, body: &[u8]) -> Result<()> {
        let Some(policy) = &key.policy else { return Ok(()) };
        // What is no route at all is answered as such.
        let Some(path) = parts.extensions.get::<MatchedPath>() else { return Ok(()) };
        let Some(name) = self.0.get(&(parts.method.clone(), path.as_str().to_string())) else {
            return Err(denied(&format!("{} {}", parts.method, path.as_str()), &key.id, "it is no operation"));
        };
        if !may(policy, name) {
            return Err(denied(name, &key.id, "its policy does not allow the operation"));
        }
        if policy.buckets.is_empty() {
            return Ok(());
        }
        let prefixes: Vec<Prefix> = policy.buckets.iter().map(|text| text.parse()).collect::<Result<_>>()?;
        let request: Value = parse(body)?;
        match stranger(&request, parts.uri.path().starts_with("/model/"), &prefixes) {
            Some(uri) => Err(denied(name, &key.id, &format!("its policy does not allow the use of {uri}"))),
            None => Ok(()),
        }
    }
}

fn may(policy: &Policy, name: &str) -> bool {
    let reads = name.starts_with("Get") || name.starts_with("List");
    (reads || !policy.read_only)
        && (policy.operations.is_empty() || policy.operations.iter().any(|allowed| allowed == name))
}

/// The first place named anywhere in the request that lies in none of the prefixes.
fn stranger(request: &Value, runtime: bool, prefixes: &[Prefix]) -> Option<String> {
    let places = if runtime { in_runtime(request) } else { in_control_plane(request) };
    // Whoever uses a place trims it first.
    let held = |uri: &str| prefixes.iter().any(|prefix| prefix.holds(uri.trim()));
    places.into_iter().map(|place| place.uri).find(|uri| !held(uri))
}

fn denied(what: &str, key: &str, why: &str) -> Error {
    let message = format!("User is not authorized to perform: bedrock:{what} with the key {key}: {why}");
    Error::new(Kind::AccessDenied, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reading_is_getting_and_listing_and_a_list_of_operations_narrows_further() {
        let policy = |read_only, operations: &[&str]| Policy {
            read_only,
            operations: operations.iter().map(ToString::to_string).collect(),
            buckets: Vec::new(),
        };
        for (policy, name, allowed) in [
            (policy(true, &[]), "GetCustomModel", true),
            (policy(true, &[]), "ListTagsForResource", true),
            (policy(true, &[]), "InvokeModel", false),
            (policy(true, &[]), "StopModelCustomizationJob", false),
            (policy(false, &["InvokeModel"]), "InvokeModel", true),
            (policy(false, &["InvokeModel"]), "Converse", false),
            (policy(true, &["InvokeModel"]), "InvokeModel", false),
            (policy(false, &[]), "DeleteCustomModel", true),
        ] {
            assert_eq!(may(&policy, name), allowed, "{policy:?} {name}");
        }
    }

    #[test]
    fn a_place_is_found_wherever_it_stands_in_a_request() {
        let prefixes = ["s3://mine/a".parse().unwrap(), "s3://ours".parse().unwrap()];
        let request = |uri: &str| json!({ "a": [{ "b": { "s3Uri": uri } }], "s3Uri": "s3://ours/x", "text": "no" });
        let found = |request: &Value| stranger(request, false, &prefixes);
        assert_eq!(found(&request("s3://mine/a/b")), None);
        assert_eq!(found(&request("s3://mine/b")).unwrap(), "s3://mine/b");
        assert_eq!(found(&json!({ "s3DataSource": { "s3Uri": "rubbish" } })).unwrap(), "rubbish");
        let grader = |uri: &str| json!({ "hyperParameters": { "grader": uri } });
        assert_eq!(found(&grader("s3://theirs/grader.json")).unwrap(), "s3://theirs/grader.json");
        assert_eq!(found(&grader(" s3://ours/grader.json")), None);
        assert_eq!(found(&grader(r#"{"file": "s3://theirs/x"}"#)).unwrap(), "s3://theirs/x");
        assert_eq!(stranger(&json!({ "prompt": "s3://theirs/x" }), true, &prefixes), None);
    }
}
