//! `tunesmith bench serve` as a user runs it, on a model small enough to be no measurement.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let shape = super::fixture("llama").join("config.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
    command.args(["bench", "serve", "--shape"]).arg(shape).args(arguments).output().unwrap()
}

#[test]
fn every_request_has_a_length_of_its_range_and_is_answered() {
    let work = ["--prompt-tokens", "3-9", "--new-tokens", "2-6", "--requests-each", "5"];
    let output = bench(
        &[&work[..], &["--concurrency", "1,3", "--adapters", "2", "--rank", "1,3", "--rounds", "2", "--json"]].concat(),
    );
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|cause| panic!("{cause}: {said}"));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["requests"].as_u64().unwrap()).collect::<Vec<_>>(), [5, 15]);
    for row in rows {
        let lengths = row["work"].as_array().unwrap();
        assert_eq!(lengths.len() as u64, row["requests"].as_u64().unwrap());
        let within = |length: &Value| {
            (3..=9).contains(&length[0].as_u64().unwrap()) && (2..=6).contains(&length[1].as_u64().unwrap())
        };
        assert!(lengths.iter().all(within), "{lengths:?}");
        for figure in ["tokensPerSecond", "firstTokenSeconds", "slowestFirstTokenSeconds", "tokenSeconds"] {
            assert!(row[figure].as_f64().unwrap() > 0.0, "{figure} of {row}");
        }
        assert_eq!(row["decodedPerSecond"], Value::Null, "they do not come at once");
    }
    assert_eq!(rows[0]["work"].as_array().unwrap()[..], rows[1]["work"].as_array().unwrap()[..5]);
}

#[test]
fn lengths_that_make_no_work_are_refused_with_what_is_expected() {
    for (wrong, expected) in [
        (["--prompt-tokens", "9-3"], "the lower one first"),
        (["--new-tokens", "1"], "at least two new tokens"),
        (["--requests-each", "0"], "one request"),
        (["--prompt-tokens", "8-60"], "124 tokens together"),
    ] {
        let output = bench(&wrong);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{wrong:?}: {said}");
    }
}
