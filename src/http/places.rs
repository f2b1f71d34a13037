//! Where in object storage a request wants to go. No list of members says so, because the next one would be forgotten:
//! in the control plane every string that is an `s3://` URI counts, however deep it stands, also inside JSON that is sent
//! as a string (a grader among the hyperparameters). Tags are words about a resource, and prompts are words for a model:
//! in them a URI is text.

use serde_json::Value;

/// Lists of tags: their keys and values name nothing.
const TAGS: [&str; 5] = ["tags", "jobTags", "customModelTags", "modelTags", "importedModelTags"];
/// What is written; the rest is read.
const WRITTEN: &str = "outputDataConfig";

/// A place that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As it was sent; a member that must hold a URI may hold something else.
    pub uri: String,
    /// Whether the request wants to write there.
    pub written: bool,
}

/// The places of a request to the control plane.
pub fn in_control_plane(request: &Value) -> Vec<Place> {
    let mut found = Vec::new();
    walk(request, "", false, false, &mut found);
    found
}

/// The places of a request to the runtime, where only a member that is called a URI is one.
pub fn in_runtime(request: &Value) -> Vec<Place> {
    let mut found = Vec::new();
    walk(request, "", false, true, &mut found);
    found
}

fn walk(value: &Value, name: &str, written: bool, by_name: bool, found: &mut Vec<Place>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, name, written, by_name, found)),
        Value::Object(members) => {
            for (name, value) in members.iter().filter(|(name, _)| by_name || !TAGS.contains(&name.as_str())) {
                walk(value, name, written || name == WRITTEN, by_name, found);
            }
        }
        Value::String(text) => {
            let named = name.to_ascii_lowercase().ends_with("uri");
            if named || !by_name && is_uri(text) {
                found.push(Place { uri: text.clone(), written });
            } else if !by_name && let Some(inside) = json_inside(text) {
                walk(&inside, "", written, by_name, found);
            }
        }
        _ => {}
    }
}

fn is_uri(text: &str) -> bool {
    text.trim_start().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("s3://"))
}

/// A JSON document that was sent as a string.
fn json_inside(text: &str) -> Option<Value> {
    let text = text.trim();
    // Characters of a URI may be spelled as escapes, so its text is no sign.
    let begins = text.starts_with('{') || text.starts_with('[') || text.starts_with('"');
    serde_json::from_str(text).ok().filter(|_| begins)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn uris(places: &[Place]) -> Vec<&str> {
        places.iter().map(|place| place.uri.as_str()).collect()
    }

    #[test]
    fn every_uri_of_a_control_plane_request_is_found_wherever_it_stands() {
        let grader = json!({ "type": "multi", "graders": [{ "input": "\u{73}3://g/deep", "also": ["s3://g/list"] }] });
        let request = json!({
            "trainingDataConfig": { "s3Uri": "s3://a/train" },
            "outputDataConfig": { "s3Uri": "s3://o/out" },
            "hyperParameters": { "grader": grader.to_string(), "other": " S3://h/x", "escaped": "[\"\\u00733://e/x\"]" },
            "anything": [[{ "new": "s3://n/x" }]],
            "odd": { "uri": "rubbish" },
            "jobTags": [{ "key": "source", "value": "s3://tag/x" }],
            "jobName": "s3-like", "text": "see s3://inside/a sentence",
        });
        let mut found = in_control_plane(&request);
        found.sort_by(|a, b| a.uri.cmp(&b.uri));
        assert_eq!(
            uris(&found),
            [
                " S3://h/x",
                "rubbish",
                "s3://a/train",
                "s3://e/x",
                "s3://g/deep",
                "s3://g/list",
                "s3://n/x",
                "s3://o/out"
            ]
        );
        assert_eq!(
            found.iter().filter(|place| place.written).map(|place| place.uri.as_str()).collect::<Vec<_>>(),
            ["s3://o/out"]
        );
    }

    #[test]
    fn in_a_prompt_a_uri_is_text_and_in_a_member_of_that_name_it_is_a_place() {
        let request = json!({ "messages": [{ "content": [
            { "text": "s3://b/said" },
            { "image": { "source": { "s3Location": { "uri": "s3://b/fetched" } } } },
        ] }] });
        assert_eq!(uris(&in_runtime(&request)), ["s3://b/fetched"]);
    }
}
