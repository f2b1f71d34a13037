//! Hostile clients: slow heads, large, compressed and deeply nested bodies.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::http::{self, parse, read_all};
use crate::support::with_app;

#[test]
fn half_open_heads_are_closed_while_others_are_served() {
    with_app(async |app| {
        let begun = Instant::now();
        let mut slow = Vec::new();
        for opening in
            ["", "GET /heal", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /healthz HTTP/1.1\r\nhost: a\r\n"]
        {
            for _ in 0..10 {
                let mut stream = TcpStream::connect(app.address).await.unwrap();
                stream.write_all(opening.as_bytes()).await.unwrap();
                slow.push((opening, stream));
            }
        }
        assert_eq!(http::send(app.address, "GET", "/healthz", &[], b"").await.status, 200);
        for (opening, stream) in slow {
            read_all(stream).await;
            let waited = begun.elapsed();
            assert!(waited < Duration::from_secs(15), "{opening:?} was open for {waited:?}");
        }
        assert!(begun.elapsed() >= Duration::from_secs(4), "a head may take its five seconds");
        app
    });
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    with_app(async |app| {
        for (target, length) in [("/model-customization-jobs", 1_000_001), ("/model/a/invoke", 25_000_001)] {
            let mut stream = TcpStream::connect(app.address).await.unwrap();
            let head = format!("POST {target} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            // No byte of the body is sent.
            let reply = parse(&read_all(stream).await);
            assert_eq!((reply.status, reply.error()), (413, "RequestEntityTooLargeException"), "{target}");
        }
        app
    });
}

#[test]
fn compressed_and_deeply_nested_bodies_are_refused() {
    with_app(async |app| {
        let key = format!("Bearer {}", app.service.keys.bearer_key.expose());
        let mut headers = vec![("authorization".to_string(), key)];
        let deep = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
        let reply = http::send(app.address, "POST", "/model-customization-jobs", &headers, deep.as_bytes()).await;
        assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());

        headers.push(("content-encoding".into(), "gzip".into()));
        let reply = http::send(app.address, "POST", "/model-customization-jobs", &headers, b"\x1f\x8b").await;
        assert_eq!((reply.status, reply.error()), (400, "ValidationException"));
        assert!(reply.message().contains("Content-Encoding"), "{}", reply.message());
        app
    });
}
