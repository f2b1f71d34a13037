//! Formulas of graders: whatever one holds, it is computed or refused by name.

use std::collections::BTreeMap;

use serde_json::json;
use tunesmith::graders::{BuiltIn, Spec};
use tunesmith::train::{Grader, Sample, StopFlag};

/// Takes any bytes.
pub(crate) fn body(bytes: &[u8]) {
    let formula = String::from_utf8_lossy(bytes);
    let check = json!({"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "a"});
    let text = json!({"type": "multi", "graders": {"a": check, "b": check}, "calculate_output": formula}).to_string();
    let Ok(spec) = Spec::parse(&text) else { return };
    let grader = BuiltIn::new(spec, BTreeMap::new()).unwrap();
    let item = serde_json::Map::new();
    let sample = Sample { id: "1", messages: &[], output: "a", item: &item };
    let graded = grader.grade(&[sample], &StopFlag::default()).unwrap();
    assert!(graded.iter().all(|graded| graded.as_ref().map_or(true, |grade| grade.reward.is_finite())));
}
