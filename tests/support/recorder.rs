//! Holds every reply that a test sees against the committed document: the status is one that the operation
//! describes, the body has the described shape, and no member is there that the document does not name. Searches
//! every reply and every log line, of this process and of its children, for the secrets that were planted.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, Once};

use jsonschema::Validator;
use serde_json::{Value, json};

use super::http::Reply;
use super::promise;

struct Operation {
    name: String,
    method: String,
    /// The segments of the path; `None` stands for a parameter.
    path: Vec<Option<String>>,
    /// By status; `default` for errors.
    replies: HashMap<String, Body>,
}

/// What the document says of a reply's body.
enum Body {
    /// There is none.
    Empty,
    /// JSON of this shape.
    Json(Validator),
    /// A stream of frames, which their own tests read.
    Frames,
}

/// The media type of frames.
pub(crate) const EVENT_STREAM: &str = "application/vnd.amazon.eventstream";

static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
    let mut document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let components = document["components"].clone();
    merge(&mut document["components"], &components);
    close(&mut document["components"]);
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let segments = || path.split('/').map(|part| (!part.starts_with('{')).then(|| part.to_string()));
        for (method, operation) in item.as_object().unwrap() {
            let Some(replies) = operation["responses"].as_object() else { continue };
            let replies = replies.iter().map(|(status, reply)| {
                let content = &reply["content"];
                let schema = &content["application/json"]["schema"];
                let body = match (content[EVENT_STREAM].is_null(), schema.is_null()) {
                    (false, _) => Body::Frames,
                    (true, false) => Body::Json(validator(&document["components"], schema)),
                    (true, true) => Body::Empty,
                };
                (status.clone(), body)
            });
            operations.push(Operation {
                name: operation["operationId"].as_str().unwrap_or_default().to_string(),
                method: method.to_uppercase(),
                path: segments().collect(),
                replies: replies.collect(),
            });
        }
    }
    assert!(operations.len() > 20, "the document describes the operations");
    operations
});

/// Makes one schema of those that `allOf` joins, so that their members can be told from others.
fn merge(schema: &mut Value, components: &Value) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::Array(parts)) = members.remove("allOf") {
                for part in parts {
                    let named = part["$ref"].as_str().and_then(|name| name.strip_prefix("#/components"));
                    let part = named.map_or(Some(&part), |pointer| components.pointer(pointer)).unwrap();
                    for (member, schema) in part["properties"].as_object().unwrap() {
                        let properties = members.entry("properties").or_insert_with(|| json!({}));
                        properties[member] = schema.clone();
                    }
                    for required in part["required"].as_array().into_iter().flatten() {
                        let all = members.entry("required").or_insert_with(|| json!([]));
                        all.as_array_mut().unwrap().push(required.clone());
                    }
                }
            }
            members.values_mut().for_each(|member| merge(member, components));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| merge(item, components)),
        _ => {}
    }
}

/// Forbids members that a schema with named members does not name.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.values_mut().for_each(close);
            if members.get("properties").is_some_and(Value::is_object) && !members.contains_key("additionalProperties")
            {
                members.insert("additionalProperties".into(), false.into());
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

fn validator(components: &Value, schema: &Value) -> Validator {
    let whole = json!({ "components": components, "allOf": [schema] });
    jsonschema::draft202012::new(&whole).unwrap()
}

/// The operation at a raw path; one without parameters comes before one with them.
fn find(method: &str, path: &str) -> (bool, Option<&'static Operation>) {
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |operation: &&Operation| {
        operation.path.len() == parts.len()
            && operation.path.iter().zip(&parts).all(|(known, part)| known.as_ref().is_none_or(|known| known == part))
    };
    let mut there: Vec<_> = OPERATIONS.iter().filter(fits).collect();
    there.sort_by_key(|operation| operation.path.iter().filter(|part| part.is_none()).count());
    let exact = there.iter().find(|operation| operation.method == method);
    (!there.is_empty(), exact.copied())
}

/// The name of the operation that a request asks for.
pub(super) fn operation(method: &str, target: &str) -> Option<&'static str> {
    let (_, operation) = find(method, target.split('?').next().unwrap_or_default());
    operation.map(|operation| operation.name.as_str())
}

/// Secrets of this test: none may be in a reply or in a log.
static PLANTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
/// Log lines of this process that told one.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Log lines of this process.
static HEARD: AtomicUsize = AtomicUsize::new(0);

/// From now on `secret` may not be seen.
pub(crate) fn plant(secret: &str) {
    assert!(secret.len() >= 8, "too short to be searched for: {secret:?}");
    PLANTED.lock().unwrap().insert(secret.to_string());
}

/// The planted secret in `text`, if one is there.
fn secret(text: &str) -> Option<String> {
    PLANTED.lock().unwrap().iter().find(|secret| text.contains(secret.as_str())).cloned()
}

/// Counts for the ledger: one short line each, because every test is a process of its own.
fn count(what: &str, line: &str) {
    let Some(folder) = promise::folder() else { return };
    let path = folder.join(what);
    let kept = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::File::options().create(true).append(true).open(path))
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    assert!(kept.is_ok(), "the count of {what} is kept: {kept:?}");
}

/// Searches what a child process has logged; gives how many lines it was. The first lines of a first start show its
/// keys to whoever started it, and are left out by `shown`.
pub(crate) fn search_log(path: &Path, shown: impl Fn(&str) -> bool) -> usize {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines = text.lines().filter(|line| !shown(line));
    let lines: Vec<&str> = lines.collect();
    for line in &lines {
        let told = secret(line);
        assert!(told.is_none(), "a planted secret is in {}: {line}", path.display());
    }
    count("log-lines", &lines.len().to_string());
    lines.len()
}

/// Reads what the service logs in this process.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::new("info,tunesmith=debug");
        // A test that has a subscriber of its own keeps it.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(|| Ear).try_init();
    });
}

/// Hears one log line of this process.
struct Ear;

impl Write for Ear {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        if secret(&line).is_some() {
            TOLD.lock().unwrap().push(line.trim_end().to_string());
        }
        HEARD.fetch_add(1, Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Fails the test when a log line of this process held a planted secret.
pub(crate) fn nothing_told() {
    count("log-lines", &HEARD.swap(0, Ordering::Relaxed).to_string());
    let told = TOLD.lock().unwrap();
    assert!(told.is_empty(), "planted secrets are in the log: {told:?}");
}

/// Fails the test when `reply` is not what the document says of the operation at `target`.
pub(super) fn check(method: &str, target: &str, reply: &Reply) {
    let path = target.split('?').next().unwrap_or_default();
    let place = format!("{method} {path} → {}: {}", reply.status, reply.text());
    let told = reply.headers().find_map(|(_, value)| secret(&value.to_string())).or_else(|| secret(&reply.text()));
    assert!(told.is_none(), "a planted secret is in a reply: {place}");
    count("replies", &format!("{} {}", operation(method, target).unwrap_or("-"), reply.status));
    // What is refused before it is understood has no request id.
    if reply.header("x-amzn-requestid").is_none() {
        return assert!(reply.status >= 400, "a reply without x-amzn-requestid: {place}");
    }
    let (known, operation) = find(method, path);
    let Some(operation) = operation else {
        let open = ["/healthz", "/readyz", "/openapi.json"].contains(&path) || path.starts_with("/docs");
        let refusal = if known { vec![403, 405] } else { vec![403, 404, 413, 400] };
        return assert!(open || refusal.contains(&reply.status), "no operation, but {place}");
    };
    let status = if reply.status >= 400 { "default".to_string() } else { reply.status.to_string() };
    let Some(described) = operation.replies.get(&status) else {
        panic!("the document does not describe this status: {place}");
    };
    let validator = match described {
        Body::Empty => {
            return assert!(reply.body.is_empty() || reply.body == b"{}", "a body that is not described: {place}");
        }
        Body::Frames => return assert_eq!(reply.header("content-type"), Some(EVENT_STREAM), "{place}"),
        Body::Json(validator) => validator,
    };
    assert_eq!(reply.header("content-type"), Some("application/json"), "{place}");
    let faults: Vec<String> =
        validator.iter_errors(&reply.json()).map(|fault| format!("{} at {}", fault, fault.instance_path())).collect();
    assert!(faults.is_empty(), "not as the document describes it: {}\n{place}", faults.join("; "));
}
