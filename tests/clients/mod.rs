//! Unmodified clients against the real binary: boto3, the AWS CLI, the JavaScript SDK, the calls of Terraform's
//! provider, and whatever schemathesis thinks of.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::process::Serve;
use crate::support::promise;

/// Whether a client is installed. Under `tests/run` all must be.
fn installed(program: &str, arguments: &[&str]) -> bool {
    let found = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    assert!(found || std::env::var_os("TEST_REQUIRE_ALL").is_none(), "{program} {arguments:?} does not work");
    found
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// The installed packages of the JavaScript SDK.
fn modules() -> Option<PathBuf> {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/javascript/node_modules");
    let sdk = modules.join("@aws-sdk").display().to_string();
    (installed("node", &["--version"]) && installed("ls", &[&sdk])).then_some(modules)
}

/// A script with the packages in reach: they are looked for beside it and above.
fn javascript(serve: &Serve, modules: &Path, name: &str) -> Command {
    let place = serve.scratch();
    let link = place.join("node_modules");
    if !link.exists() {
        std::os::unix::fs::symlink(modules, link).unwrap();
    }
    let copy = place.join(name);
    std::fs::copy(script("javascript").join(name), &copy).unwrap();
    let mut command = Command::new("node");
    command.arg(copy);
    command
}

/// Lets the deserialiser of the JavaScript SDK read every reply that another client got.
fn read(serve: &Serve, modules: &Path, replies: &str) {
    assert!(replies.lines().count() > 5, "the replies are recorded");
    let file = serve.scratch().join("replies.jsonl");
    std::fs::write(&file, replies).unwrap();
    serve.run(javascript(serve, modules, "read.mjs").arg(file));
}

/// Runs a client; what it was told must be as the document says, and the JavaScript SDK must read it too.
fn run(command: &mut Command) {
    let serve = Serve::start();
    let replies = serve.run(command);
    if let Some(modules) = modules() {
        read(&serve, &modules, &replies);
    }
}

#[test]
fn boto3_makes_the_whole_journey() {
    if !installed("python3", &["-c", "import boto3"]) {
        return;
    }
    run(Command::new("python3").arg(script("journey.py")));
}

#[test]
fn every_tuning_method_is_trained_asked_and_tuned_further() {
    if !installed("python3", &["-c", "import boto3"]) {
        return;
    }
    run(Command::new("python3").arg(script("methods.py")));
}

#[test]
fn boto3_distills_an_imported_model_and_logged_answers() {
    if !installed("python3", &["-c", "import boto3"]) {
        return;
    }
    run(Command::new("python3").arg(script("distillation.py")));
}

#[test]
fn the_aws_cli_makes_the_whole_journey() {
    if !installed("aws", &["--version"]) {
        return;
    }
    run(Command::new("bash").arg(script("cli.sh")));
}

#[test]
fn every_constraint_of_the_service_models_is_enforced_on_every_operation() {
    if !installed("python3", &["-c", "import botocore"]) {
        return;
    }
    run(Command::new("python3").arg(script("constraints.py")));
}

#[test]
fn boto3_finds_what_clients_rely_on() {
    if !installed("python3", &["-c", "import boto3"]) {
        return;
    }
    run(Command::new("python3").arg(script("conformance.py")));
}

#[test]
fn the_javascript_sdk_finds_what_clients_rely_on() {
    let Some(modules) = modules() else { return };
    let serve = Serve::start();
    let replies = serve.run(&mut javascript(&serve, &modules, "conformance.mjs"));
    read(&serve, &modules, &replies);
}

#[test]
fn the_calls_of_terraforms_provider_see_no_drift() {
    if !installed("python3", &["-c", "import boto3"]) {
        return;
    }
    run(Command::new("python3").arg(script("terraform.py")));
}

#[test]
fn schemathesis_finds_no_request_that_is_answered_against_the_document() {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/schemathesis/bin/schemathesis");
    if !installed(&tool.display().to_string(), &["--version"]) {
        return;
    }
    // A part of the cases that tests/clients/schemathesis.sh runs when nothing is said, and that the promises take.
    let examples = if promise::full() { "300" } else { "10" };
    run(Command::new("bash").arg(script("schemathesis.sh")).arg(examples).env("SCHEMATHESIS", tool));
}
