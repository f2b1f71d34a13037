//! The edges of S3 as clients that are not ours rely on them: each part of `tests/clients/s3_edges.py` is a promise.

use std::process::Command;

use super::servers::{ACCESS_KEY, ACCOUNT, SECRET_KEY, not_run, start};

/// Runs a part of the script against a server of its own.
async fn check(part: &'static str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/s3_edges.py");
    let has_boto3 = Command::new("python3").args(["-c", "import boto3"]).output().is_ok_and(|run| run.status.success());
    if !has_boto3 {
        return not_run("python3 with boto3 is not on PATH");
    }
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let port = server.address().port().to_string();
    let run = tokio::task::spawn_blocking(move || {
        Command::new("python3").arg(script).args([part, &port, ACCESS_KEY, SECRET_KEY, ACCOUNT]).output().unwrap()
    });
    let run = run.await.unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    println!("{said}");
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_in_the_host_is_served_and_a_host_that_could_be_either_is_refused() {
    check("hosts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_signature_version_2_open_what_they_name_until_they_expire() {
    check("links").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn features_that_were_never_used_are_answered_as_s3_does() {
    check("unused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_owner_and_another_region_are_refused() {
    check("owners").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_of_allowed_origins_may_call() {
    check("cors").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_kept_with_objects_and_buckets() {
    check("tags").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_parts_has_a_checksum_of_the_whole() {
    check("checksums").await;
}
