//! Unmodified clients against the real binary: boto3, the AWS CLI, the JavaScript SDK, the calls of Terraform's
//! provider, and whatever schemathesis thinks of.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::process::Serve;

/// Whether a client is installed. Under `tests/run` all must be.
fn installed(program: &str, arguments: &[&str]) -> bool {
    let found = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    assert!(found || std::env::var_os("TEST_REQUIRE_ALL").is_none(), "{program} {arguments:?} does not work");
    found
}

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name).display().to_string()
}

#[test]
fn boto3_makes_the_whole_journey() {
    if !installed("python3", &["-c", "import boto3"]) {
        return;
    }
    Serve::start().run(Command::new("python3").arg(script("journey.py")));
}

#[test]
fn the_aws_cli_makes_the_whole_journey() {
    if !installed("aws", &["--version"]) {
        return;
    }
    Serve::start().run(Command::new("bash").arg(script("cli.sh")));
}

#[test]
fn every_constraint_of_the_service_models_is_enforced_on_every_operation() {
    if !installed("python3", &["-c", "import botocore"]) {
        return;
    }
    Serve::start().run(Command::new("python3").arg(script("constraints.py")));
}

#[test]
fn boto3_finds_what_clients_rely_on() {
    if !installed("python3", &["-c", "import boto3"]) {
        return;
    }
    Serve::start().run(Command::new("python3").arg(script("conformance.py")));
}

#[test]
fn the_javascript_sdk_finds_what_clients_rely_on() {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/javascript/node_modules");
    if !installed("node", &["--version"]) || !installed("ls", &[&modules.join("@aws-sdk").display().to_string()]) {
        return;
    }
    // Modules are looked for beside the script and above it.
    let serve = Serve::start();
    let place = serve.scratch();
    std::os::unix::fs::symlink(modules, place.join("node_modules")).unwrap();
    let copy = place.join("conformance.mjs");
    std::fs::copy(script("javascript/conformance.mjs"), &copy).unwrap();
    serve.run(Command::new("node").arg(copy));
}

#[test]
fn the_calls_of_terraforms_provider_see_no_drift() {
    if !installed("python3", &["-c", "import boto3"]) {
        return;
    }
    Serve::start().run(Command::new("python3").arg(script("terraform.py")));
}

#[test]
fn schemathesis_finds_no_request_that_is_answered_against_the_document() {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/schemathesis/bin/schemathesis");
    if !installed(&tool.display().to_string(), &["--version"]) {
        return;
    }
    // A part of the cases that tests/clients/schemathesis.sh runs when nothing is said.
    Serve::start().run(Command::new("bash").arg(script("schemathesis.sh")).arg("10").env("SCHEMATHESIS", tool));
}
