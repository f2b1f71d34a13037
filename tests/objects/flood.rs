//! Connections without a key: however many there are and however slow, they are closed, and others are served.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tunesmith::objects::Put;

use super::servers::{Store, endpoint, start};

/// Connections of each kind.
const SILENT: usize = 500;
const SLOW: usize = 50;
const UNREAD: usize = 50;
/// Deadline of a first request and of a head, with some time to act on it.
const CLOSED: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_connections_are_closed_and_others_are_served_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    let address = server.address();
    let connect = || async move { TcpStream::connect(address).await.unwrap() };

    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(connect().await);
    }
    let mut drips = Vec::new();
    for _ in 0..SLOW {
        let mut stream = connect().await;
        drips.push(tokio::spawn(async move {
            // A head that never ends, a byte each second, until the server has enough.
            for byte in b"GET / HTTP/1.1\r\nhost: a\r\nx: ".iter().chain(std::iter::repeat(&b'x')) {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                let mut answer = [0; 1];
                let answered = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
                if matches!(answered, Ok(Ok(0) | Err(_))) {
                    return;
                }
            }
        }));
    }
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        let mut stream = connect().await;
        unread.push(tokio::spawn(async move {
            // More refusals than the systems hold between them, none of which is read. A client that never reads
            // notices the end by writing.
            let request = "GET /tuning/x HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100);
            while stream.write_all(request.as_bytes()).await.is_ok() {}
        }));
    }

    for number in 0..20 {
        let asked = Instant::now();
        let at = store.at(&format!("meanwhile/{number}"));
        store.objects.put_bytes(&at, "still served", &Put::default()).await.unwrap();
        assert_eq!(store.objects.get_bytes(&at, 100).await.unwrap(), "still served");
        assert!(asked.elapsed() < Duration::from_secs(10), "a client waited {:?}", asked.elapsed());
    }
    for stream in silent.iter_mut() {
        let left = CLOSED.saturating_sub(begun.elapsed());
        let end = tokio::time::timeout(left, stream.read(&mut [0; 64])).await.expect("a silent connection is closed");
        assert!(matches!(end, Ok(0) | Err(_)), "nothing is said to who says nothing: {end:?}");
    }
    for drip in drips {
        let left = CLOSED.saturating_sub(begun.elapsed());
        tokio::time::timeout(left, drip).await.expect("a head that never ends is closed").unwrap();
    }
    for client in unread {
        let left = CLOSED.saturating_sub(begun.elapsed());
        tokio::time::timeout(left, client).await.expect("a connection whose replies are not read is closed").unwrap();
    }
    println!("silent, slow and unread connections were closed after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_of_silent_connections_keeps_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    let address = server.address();
    // More than are served at once; each is replaced as soon as it is closed.
    let silent: Vec<_> = (0..1200)
        .map(|_| {
            tokio::spawn(async move {
                while let Ok(mut stream) = TcpStream::connect(address).await {
                    let _ = stream.read(&mut [0; 1]).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
        })
        .collect();
    for number in 0..10 {
        let asked = Instant::now();
        store.objects.put_bytes(&store.at(&format!("{number}")), "x", &Put::default()).await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(10), "a client waited {:?}", asked.elapsed());
    }
    for task in silent {
        task.abort();
    }
}
