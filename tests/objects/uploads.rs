//! Large objects up and down by every S3 client that there is in a package, unmodified, against our server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::servers::{ACCESS_KEY, SECRET_KEY, Store, endpoint, not_run, setting, start};

/// Folders of the clients' packages.
fn tools(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools").join(name)
}

/// Clients that need packages which do not go together with those of the other tests.
const APART: [&str; 5] = ["boto3-crt", "minio", "s3fs", "obstore", "pyarrow"];

async fn check(client: &'static str) {
    let apart = tools("s3clients/bin/python");
    let python = if APART.contains(&client) { apart.display().to_string() } else { "python3".to_string() };
    let needed = match client {
        "boto3-crt" => "import awscrt.s3, boto3",
        "minio" => "import minio",
        "s3fs" => "import s3fs",
        "obstore" => "import obstore",
        "pyarrow" => "import pyarrow.fs",
        "aws-cli-2" => "import subprocess; subprocess.check_call(['/usr/bin/aws', '--version'])",
        "rclone" => "import subprocess; subprocess.check_call(['/usr/bin/rclone', 'version'])",
        _ => "import boto3",
    };
    let installed = Command::new(&python).args(["-c", needed]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !installed.is_ok_and(|status| status.success()) {
        return not_run(&format!("{client} is not installed"));
    }
    let folder = tempfile::tempdir().unwrap();
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let mut command = Command::new(&python);
    if client == "lib-storage" {
        let modules = tools("javascript/node_modules");
        if !modules.join("@aws-sdk/lib-storage").exists() {
            return not_run("lib-storage is not installed");
        }
        // Packages are looked for beside the script.
        std::os::unix::fs::symlink(modules, scratch.join("node_modules")).unwrap();
        let copy = scratch.join("uploads.mjs");
        std::fs::copy(script.join("javascript/uploads.mjs"), &copy).unwrap();
        command.env("S3_UPLOADS_JAVASCRIPT", copy);
    }
    let server = start(&folder.path().join("objects")).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    store.objects.ensure_bucket("uploads").await.unwrap();
    let megabytes = setting("TEST_UPLOAD_MEGABYTES").unwrap_or_else(|| "20".to_string());
    let port = server.address().port().to_string();
    command.arg(script.join("s3_uploads.py")).args([client, &port, ACCESS_KEY, SECRET_KEY]).arg(scratch).arg(megabytes);
    let run = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    println!("{said}");
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
}

macro_rules! clients {
    ($($name:ident: $client:literal,)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            check($client).await;
        }
    )*};
}

clients! {
    boto3_sends_and_fetches_large_objects: "boto3",
    boto3_does_with_the_bucket_in_the_host: "boto3-hosted",
    boto3_does_with_the_common_runtime: "boto3-crt",
    version_1_of_the_aws_cli_does: "aws-cli-1",
    version_2_of_the_aws_cli_does: "aws-cli-2",
    rclone_does: "rclone",
    lib_storage_does: "lib-storage",
    minio_py_does: "minio",
    s3fs_does: "s3fs",
    obstore_does: "obstore",
    pyarrow_does: "pyarrow",
}
