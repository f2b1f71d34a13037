//! `tunesmith doctor` with the real binary: a table or JSON, an exit code, and no secrets.

use std::process::Command;

use serde_json::Value;

fn doctor(folder: &std::path::Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tunesmith"))
        .arg("doctor")
        .args(arguments)
        .arg("--data-dir")
        .arg(folder)
        .args(["--listen=127.0.0.1:0", "--s3-listen=127.0.0.1:0"])
        .env_remove("DATABASE_URL")
        .env_remove("S3_ENDPOINT")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn a_healthy_installation_passes_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (passed, text) = doctor(folder.path(), &["--json"]);
    assert!(passed, "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["ok"], true, "{text}");
    let names: Vec<&str> =
        report["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    for name in ["topology", "data folder", "devices", "memory", "database", "object store", "API address"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the database is not made either");
    let (passed, table) = doctor(folder.path(), &[]);
    assert!(passed && table.contains("ok    data folder"), "{table}");
}

#[test]
fn what_is_wrong_is_named_with_advice_an_exit_code_and_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = [
        "--database-url=postgres://tune:hunter2@127.0.0.1:1/jobs?sslpassword=hunter3",
        "--s3-endpoint=http://127.0.0.1:1",
        "--s3-access-key=AKIATEST",
        "--s3-secret-key=hunter4",
        "--devices=abacus",
        "--models=/nowhere",
    ];
    let (passed, text) = doctor(folder.path(), &wrong);
    assert!(!passed, "{text}");
    for said in [
        "FAIL  database",
        "postgres://tune:***@127.0.0.1:1/jobs?sslpassword=***",
        "FAIL  object store",
        "S3_ENDPOINT",
        "FAIL  devices",
        "TUNESMITH_DEVICES",
        "FAIL  models folder",
        "4 checks failed",
    ] {
        assert!(text.contains(said), "{said:?} is not in:\n{text}");
    }
    assert!(!text.contains("hunter"), "{text}");

    let (passed, text) = doctor(folder.path(), &["--role=worker"]);
    assert!(!passed && text.contains("a database of its own"), "{text}");
}
