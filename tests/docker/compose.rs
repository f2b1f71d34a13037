//! Reads `docker/compose.yaml` the way Compose does where no variable is set: `${NAME:-default}` becomes
//! its default and `$$` a dollar sign.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The file as JSON, or `None` where no Python with PyYAML is at hand and the run does not insist.
pub(super) fn parsed() -> Option<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/compose.yaml");
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let output = Command::new("python3").args(["-c", script]).arg(path).output();
    match output {
        Ok(output) if output.status.success() => Some(serde_json::from_slice(&output.stdout).unwrap()),
        other => {
            super::missing(&format!("python3 with PyYAML ({other:?})"));
            None
        }
    }
}

/// The text after interpolation with no variable set.
pub(super) fn interpolated(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else {
            let end = rest.find('}').unwrap_or_else(|| panic!("{text:?}: only ${{NAME:-default}} and $$ are used"));
            let (_, default) =
                rest[1..end].split_once(":-").unwrap_or_else(|| panic!("{text:?}: a variable without a default"));
            out.push_str(default);
            rest = &rest[end + 1..];
        }
    }
    out.push_str(rest);
    out
}

/// A list of words (`command`, `entrypoint`, a health check), interpolated.
pub(super) fn words(value: &Value) -> Vec<String> {
    let list = value.as_array().unwrap_or_else(|| panic!("{value} is not a list"));
    list.iter().map(|word| interpolated(word.as_str().unwrap())).collect()
}

/// A service's environment, interpolated.
pub(super) fn environment(service: &Value) -> Vec<(String, String)> {
    let table = service["environment"].as_object().unwrap();
    table.iter().map(|(name, value)| (name.clone(), interpolated(value.as_str().unwrap()))).collect()
}

#[test]
fn interpolation_fills_defaults_and_keeps_dollars() {
    assert_eq!(interpolated("http://${HOST:-minio}:9000 $$BUCKET"), "http://minio:9000 $BUCKET");
}
