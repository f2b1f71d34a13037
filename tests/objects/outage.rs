//! The client when the store is away or the connection breaks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tunesmith::error::Kind;
use tunesmith::objects::{Objects, Put, Uri};

use super::servers::{Store, endpoint, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_connections_is_unavailable_within_two_seconds() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let objects = Objects::new(&endpoint(&format!("http://{closed}")));
    let answer = tokio::time::timeout(Duration::from_secs(2), objects.head(&Uri::new("data", "x"))).await;
    let error = answer.expect("an answer within two seconds").unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(!error.message().contains("127.0.0.1"), "the caller does not learn our addresses: {error}");
    assert!(error.log().contains("s3://data/x"), "the log says what was wanted: {}", error.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_requests_and_says_nothing_is_unavailable_to_whoever_waits() {
    // The system takes the connection, nobody the request.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let objects = Objects::new(&endpoint(&format!("http://{}", silent.local_addr().unwrap()))).for_requests();
    let answer = tokio::time::timeout(Duration::from_secs(20), objects.head(&Uri::new("data", "x"))).await;
    let error = answer.expect("an answer, where the client alone would wait for a minute").unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_the_connection_broke() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&folder.path().join("objects")).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    let bytes: Vec<u8> = (0..3_000_000_usize).map(|i| (i * 7 % 253) as u8).collect();
    store.objects.put_bytes(&store.at("large"), bytes.clone(), &Put::default()).await.unwrap();

    let connections = Arc::new(AtomicUsize::new(0));
    let proxy = cutting_proxy(server.address(), 700_000, Arc::clone(&connections)).await;
    let objects = Objects::new(&endpoint(&format!("http://{proxy}")));
    let file = folder.path().join("large");
    let fetched = objects.get_to_file(&store.at("large"), &file).await.unwrap();
    assert_eq!(fetched.size, bytes.len() as u64);
    assert!(std::fs::read(&file).unwrap() == bytes, "every byte once and in its place");
    assert!(connections.load(Ordering::SeqCst) >= 4, "it really was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_during_a_broken_download_is_an_error_and_not_a_mixture() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&folder.path().join("objects")).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    let uri = store.at("large");
    store.objects.put_bytes(&uri, vec![1; 2_000_000], &Put::default()).await.unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let proxy = cutting_proxy(server.address(), 500_000, Arc::clone(&connections)).await;
    let objects = Objects::new(&endpoint(&format!("http://{proxy}")));
    let file = folder.path().join("large");
    let download = tokio::spawn({
        let (uri, file) = (uri.clone(), file.clone());
        async move { objects.get_to_file(&uri, &file).await }
    });
    // Replaced over and over, until the download has met a replacement.
    while !download.is_finished() {
        store.objects.put_bytes(&uri, vec![2; 2_000_000], &Put::default()).await.unwrap();
        store.objects.put_bytes(&uri, vec![1; 2_000_000], &Put::default()).await.unwrap();
    }
    match download.await.unwrap() {
        Ok(_) => {
            let bytes = std::fs::read(&file).unwrap();
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "one version, whole");
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::Conflict, "{}", error.log());
            assert!(!file.exists(), "nothing half-written is left");
        }
    }
}

/// Forwards to `server`, and cuts every connection after `limit` bytes of answers.
async fn cutting_proxy(server: SocketAddr, limit: usize, connections: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut upstream = TcpStream::connect(server).await.unwrap();
                let (mut from_server, mut to_server) = upstream.split();
                let (mut from_client, mut to_client) = client.split();
                let answers = async {
                    let mut buffer = vec![0; 64 << 10];
                    let mut passed = 0;
                    while passed < limit {
                        let room = buffer.len().min(limit - passed);
                        match from_server.read(&mut buffer[..room]).await {
                            Ok(read) if read > 0 => {
                                if to_client.write_all(&buffer[..read]).await.is_err() {
                                    break;
                                }
                                passed += read;
                            }
                            _ => break,
                        }
                    }
                };
                tokio::select! {
                    () = answers => {}
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                }
            });
        }
    });
    address
}
