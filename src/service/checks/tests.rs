//! Settings that do not go together, and dependencies that are not there, are named.

use super::*;

fn config(folder: &Path, more: &[&str]) -> Config {
    let folder = folder.display().to_string();
    Config::of(&[&["--data-dir", &folder], more].concat())
}

const POSTGRES: &str = "--database-url=postgres://tune:hunter2@127.0.0.1:1/jobs";
const S3: [&str; 3] = ["--s3-endpoint=http://127.0.0.1:1", "--s3-access-key=A", "--s3-secret-key=hunter2"];

#[test]
fn processes_that_could_not_work_together_are_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let verdict = |role, more: &[&str]| topology(&config(folder.path(), more), role);
    let alone = verdict(Role::Worker, &[]);
    assert!(alone.verdict == Verdict::Fail && alone.lasting, "{alone:?}");
    assert!(alone.sentence().contains("DATABASE_URL") && alone.sentence().contains("of its own"), "{alone:?}");
    let named = format!("--database-url=sqlite://{}/not-yet.db", folder.path().display());
    assert_eq!(verdict(Role::Worker, &[&named]).verdict, Verdict::Warn, "the API may be about to make it");
    let far = verdict(Role::Worker, &[POSTGRES]);
    assert!(far.verdict == Verdict::Warn && far.sentence().contains("S3_ENDPOINT"), "{far:?}");
    let api = verdict(Role::Api, &[]);
    assert!(api.verdict == Verdict::Warn && api.sentence().contains("same data folder"), "{api:?}");
    let api = verdict(Role::Api, &[POSTGRES]);
    assert!(api.verdict == Verdict::Warn && api.sentence().contains("S3_ENDPOINT"), "{api:?}");
    for role in [Role::Api, Role::Worker, Role::All] {
        assert_eq!(verdict(role, &[&[POSTGRES], &S3[..]].concat()).verdict, Verdict::Ok);
    }
    assert_eq!(verdict(Role::All, &[]).verdict, Verdict::Ok);
    // An API process has made the database before.
    std::fs::write(folder.path().join("tunesmith.db"), "").unwrap();
    assert_eq!(verdict(Role::Worker, &[]).verdict, Verdict::Ok);
}

#[tokio::test]
async fn what_does_not_answer_is_named_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &[&[POSTGRES], &S3[..]].concat());
    let checks = all(&config, Role::All).await;
    let find = |name: &str| checks.iter().find(|check| check.name == name).unwrap();
    for name in ["database", "object store"] {
        let check = find(name);
        assert!(check.verdict == Verdict::Fail && !check.lasting, "it may come back: {check:?}");
        assert!(check.found.contains("127.0.0.1:1") && check.advice.is_some(), "{check:?}");
    }
    assert_eq!(find("data folder").verdict, Verdict::Ok);
    assert!(!format!("{checks:?}").contains("hunter2"), "{checks:?}");
}

#[tokio::test]
async fn a_disk_or_a_quota_that_is_full_stops_no_start_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("objects")).unwrap();
    let config = config(folder.path(), &["--s3-listen=127.0.0.1:0"]);
    let full = crate::durable::faults::fail_nth(folder.path(), 1);
    for check in [data_folder(folder.path()), embedded(&config)] {
        assert!(check.verdict == Verdict::Fail && !check.lasting, "the start goes on: {check:?}");
        assert!(check.sentence().contains("is full") && check.sentence().contains("Free space"), "{check:?}");
    }
    drop(full);
    assert!(embedded(&config).verdict == Verdict::Ok);
    for kind in [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded] {
        assert!(is_full(&kind.into()));
    }
    assert!(!is_full(&std::io::ErrorKind::PermissionDenied.into()));
}

/// A store that takes no address for its own.
async fn foreign() -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let body = "<Error><Code>InvalidHostHeader</Code><Message>The host may name a bucket</Message></Error>";
            let reply = format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: \
                 close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    url
}

#[tokio::test]
async fn a_store_that_does_not_know_its_address_refuses_the_start_with_its_own_sentence() {
    let url = foreign().await;
    let endpoint =
        Endpoint { url: url.clone(), access_key: "A".into(), secret_key: "s".into(), region: "us-east-1".into() };
    let check = object_store(&Objects::new(&endpoint), &url, None).await;
    assert!(check.verdict == Verdict::Fail && check.lasting, "{check:?}");
    let said = check.sentence();
    assert!(said.contains("InvalidHostHeader") && said.contains("The host may name a bucket"), "{said}");
    assert!(said.contains("S3_ENDPOINT") && said.contains(&url), "{said}");
}

#[test]
fn folders_devices_and_memory_that_cannot_be_used_are_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let data = data_folder(&folder.path().join("file"));
    assert!(data.verdict == Verdict::Fail && data.sentence().contains("TUNESMITH_DATA_DIR"), "{data:?}");
    let none = config(folder.path(), &["--models=/nowhere"]);
    let models = models_folder(&none).unwrap();
    assert!(models.verdict == Verdict::Fail && models.sentence().contains("TUNESMITH_MODELS"), "{models:?}");
    let none = config(folder.path(), &["--devices=abacus"]);
    assert_eq!(devices(&none).verdict, Verdict::Fail);
    let much = config(folder.path(), &["--memory=9000TiB"]);
    let memory = memory(&much, Role::All);
    assert!(memory.verdict == Verdict::Warn && memory.sentence().contains("more than there are"), "{memory:?}");
}
