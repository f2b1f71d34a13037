//! Every metric against the library that defines it (`tests/golden/similarity.py`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Case {
    input: String,
    reference: String,
    scores: BTreeMap<String, f64>,
}

#[test]
fn every_metric_is_that_of_its_reference_library() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/similarity.json");
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.len() >= 10);
    for Case { input, reference, scores } in &cases {
        for (metric, expected) in scores {
            let got = match metric.as_str() {
                "fuzzy_match" => fuzzy_match(input, reference),
                "bleu" => bleu(input, reference),
                "gleu" => gleu(input, reference),
                "rouge_l" => rouge_l(input, reference),
                rouge_n => rouge(input, reference, rouge_n.strip_prefix("rouge_").unwrap().parse().unwrap()),
            };
            assert!((got - expected).abs() < 1e-9, "{metric} of {input:?} and {reference:?}: {got}, {expected}");
        }
    }
}

#[test]
fn empty_texts_are_alike_and_no_metric_leaves_its_range() {
    assert_eq!(fuzzy_match("", ""), 1.0);
    for metric in [bleu, gleu, rouge_l, fuzzy_match] {
        for (a, b) in [("", ""), ("a", ""), ("", "a"), ("a a a a a", "a")] {
            assert!((0.0..=1.0).contains(&metric(a, b)), "{a:?} {b:?}");
        }
    }
}
