//! Our server against an unmodified boto3.

use std::process::Command;

use super::servers::{ACCESS_KEY, SECRET_KEY, not_run, start};

#[tokio::test(flavor = "multi_thread")]
async fn boto3_finds_an_s3_server() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/s3_embedded.py");
    let has_boto3 = Command::new("python3").args(["-c", "import boto3"]).output().is_ok_and(|run| run.status.success());
    if !has_boto3 {
        return not_run("python3 with boto3 is not on PATH");
    }
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let endpoint = server.endpoint();
    let run = tokio::task::spawn_blocking(move || {
        Command::new("python3").arg(script).args([&endpoint, ACCESS_KEY, SECRET_KEY]).output().unwrap()
    });
    let run = run.await.unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    println!("{said}");
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
}
