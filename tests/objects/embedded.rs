//! What only our own server promises: nobody gets in without a key, half requests do not stay, and
//! nothing outside its folder is touched.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_s3::presigning::PresigningConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tunesmith::clock::Clock;
use tunesmith::error::Kind;
use tunesmith::objects::embedded::{self, Holder, Keys};
use tunesmith::objects::{Objects, Put, Uri};

use super::servers::{ACCESS_KEY, OneKey, SECRET_KEY, Store, endpoint, holder, settings, start};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_right_key() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    let uri = store.at("secret");
    store.objects.put_bytes(&uri, "secret", &Put::default()).await.unwrap();
    for (access, secret) in [(ACCESS_KEY, "wrong"), ("AKIANOBODY0000000000", SECRET_KEY)] {
        let mut stranger = endpoint(&server.endpoint());
        (stranger.access_key, stranger.secret_key) = (access.into(), secret.into());
        let stranger = Objects::new(&stranger);
        assert_eq!(stranger.get_bytes(&uri, 10).await.unwrap_err().kind(), Kind::AccessDenied);
        assert_eq!(stranger.put_bytes(&uri, "x", &Put::default()).await.unwrap_err().kind(), Kind::AccessDenied);
        assert_eq!(stranger.head(&uri).await.unwrap_err().kind(), Kind::AccessDenied);
        assert!(stranger.list(&uri).next().await.is_err());
    }
    let unsigned = raw(
        server.address(),
        &format!("GET /{}/secret HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", store.bucket),
    )
    .await;
    assert!(unsigned.starts_with("HTTP/1.1 403"), "{unsigned}");
    assert_eq!(store.objects.get_bytes(&uri, 10).await.unwrap(), "secret");
}

struct Revocable(AtomicBool);

#[async_trait::async_trait]
impl Keys for Revocable {
    async fn holder(&self, access_key: &str) -> tunesmith::error::Result<Option<Holder>> {
        let revoked = self.0.load(Ordering::SeqCst);
        Ok((access_key == ACCESS_KEY && !revoked).then(holder))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_stops_working_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Arc::new(Revocable(AtomicBool::new(false)));
    let settings = settings(folder.path());
    let server = embedded::start(&settings, keys.clone(), Clock::system()).await.unwrap();
    let store = Store::new(&endpoint(&server.endpoint())).await;
    keys.0.store(true, Ordering::SeqCst);
    assert_eq!(store.objects.head(&store.at("x")).await.unwrap_err().kind(), Kind::AccessDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_presigned_link_opens_one_object_for_a_week_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    store.objects.put_bytes(&store.at("shared"), "for all", &Put::default()).await.unwrap();
    let lasting = |seconds| PresigningConfig::expires_in(Duration::from_secs(seconds)).unwrap();
    let link = store.s3.get_object().bucket(&store.bucket).key("shared").presigned(lasting(604_800)).await.unwrap();
    let address = server.address();
    let get = |path: String| async move {
        raw(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")).await
    };
    let path = link.uri().strip_prefix(&server.endpoint()).unwrap().to_string();
    let answer = get(path.clone()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("for all"), "{answer}");
    let other = get(path.replace("/shared?", "/other?")).await;
    assert!(other.starts_with("HTTP/1.1 403"), "{other}");
    for longer in ["X-Amz-Expires=604801", "x-amz-%45xpires=9999999999"] {
        let longer = get(path.replace("X-Amz-Expires=604800", longer)).await;
        assert!(!longer.starts_with("HTTP/1.1 200"), "{longer}");
    }
    let refused = get(path.replace("X-Amz-Expires=604800", "X-Amz-Expires=604801")).await;
    assert!(refused.contains("AuthorizationQueryParametersError"), "{refused}");
    let old = get(format!("/{}/shared?AWSAccessKeyId={ACCESS_KEY}&Expires=9999999999&Signature=x", store.bucket)).await;
    assert!(old.contains("AuthorizationQueryParametersError"), "{old}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_sent_request_is_closed_and_others_are_served_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let mut half = Vec::new();
    for _ in 0..100 {
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        connection.write_all(b"GET / HTTP/1.1\r\nhost: x").await.unwrap();
        half.push(connection);
    }
    let store = Store::new(&endpoint(&server.endpoint())).await;
    store.objects.put_bytes(&store.at("x"), "x", &Put::default()).await.unwrap();
    for mut connection in half {
        // Ends when the server closes it, with or without an answer; the limit is the test's.
        let closed = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "the server closes it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_implemented_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    let status = |response: Option<&aws_sdk_s3::config::http::HttpResponse>| response.unwrap().status().as_u16();
    let policy = store.s3.put_bucket_policy().bucket(&store.bucket).policy("{}").send().await.unwrap_err();
    assert_eq!(status(policy.raw_response()), 501);
    let legal_hold = store.s3.get_object_legal_hold().bucket(&store.bucket).key("x").send().await.unwrap_err();
    assert_eq!(status(legal_hold.raw_response()), 501);
    // Encryption that is asked for and cannot be had is refused, not left out.
    let put = Put { kms_key: Some("arn:aws:kms:us-east-1:000000000000:key/x"), ..Put::default() };
    assert!(store.objects.put_bytes(&store.at("encrypted"), "x", &put).await.is_err());
    assert_eq!(store.objects.head(&store.at("encrypted")).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_survive_a_restart_and_a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    store.objects.put_bytes(&store.at("kept"), "kept", &Put::default()).await.unwrap();
    let settings = settings(folder.path());
    let second = embedded::start(&settings, Arc::new(OneKey), Clock::system()).await;
    let error = second.map(drop).unwrap_err();
    assert!(error.message().contains("Another process uses the folder"), "{error}");
    let bucket = store.bucket.clone();
    drop(store);
    server.stop(Duration::from_secs(5)).await;
    let server = start(folder.path()).await;
    let objects = Objects::new(&endpoint(&server.endpoint()));
    assert_eq!(objects.get_bytes(&Uri::new(bucket, "kept"), 10).await.unwrap(), "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_leads_out_of_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("objects");
    let server = start(&folder).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    std::fs::write(outside.path().join("private"), "private").unwrap();
    for key in [
        "../private",
        "../../private",
        "..%2f..%2fprivate",
        "%2e%2e/private",
        "/../private",
        "a\0b",
        "lock",
        "index.db",
    ] {
        store.objects.put_bytes(&store.at(key), "public", &Put::default()).await.unwrap();
        assert_eq!(store.objects.get_bytes(&store.at(key), 10).await.unwrap(), "public", "{key:?}");
    }
    let too_long = store.objects.put_bytes(&store.at(&"k".repeat(1025)), "x", &Put::default()).await.unwrap_err();
    assert_eq!(too_long.kind(), Kind::Validation);
    // On the wire, as no client would write them.
    for path in ["/../private", "/%2e%2e/private", "//private", "/bucket/../../private"] {
        let answer =
            raw(server.address(), &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
    }
    assert_eq!(std::fs::read_to_string(outside.path().join("private")).unwrap(), "private");
    // A link in place of an object's file is not followed.
    let secret = store.at("secret");
    store.objects.put_bytes(&secret, "0123456", &Put::default()).await.unwrap();
    for entry in std::fs::read_dir(folder.join("files")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(outside.path().join("private"), &path).unwrap();
    }
    let read = store.objects.get_bytes(&secret, 10).await;
    assert!(read.as_ref().map_or(true, |bytes| bytes != "private"), "{read:?}");
    let names: Vec<_> = std::fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing new outside: {names:?}");
}

/// Sends `request` as it is and reads to the end.
async fn raw(address: std::net::SocketAddr, request: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_where_an_object_is_needed_is_the_callers_fault() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    let bucket = Uri::parse(&format!("s3://{}", store.bucket)).unwrap();
    for error in [
        store.objects.head(&bucket).await.map(drop).unwrap_err(),
        store.objects.probe_read(&bucket).await.map(drop).unwrap_err(),
        store.objects.get_bytes(&bucket, 100).await.map(drop).unwrap_err(),
        store.objects.open(&bucket).await.map(drop).unwrap_err(),
        store.objects.get_to_file(&bucket, &folder.path().join("file")).await.map(drop).unwrap_err(),
        store.objects.put_bytes(&bucket, "x", &Put::default()).await.unwrap_err(),
        store.objects.delete(&bucket).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Validation, "{error}");
    }
}
