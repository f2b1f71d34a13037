//! Hostile clients: slow heads, large, compressed and deeply nested bodies.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::http::{self, parse, read_all};
use crate::support::{with_app, with_settings};

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
        let mut headers = app.root_bearer();
        for (target, depth) in
            [("/model-customization-jobs", 65), ("/model-customization-jobs", 160_000), ("/model/a/invoke", 4_000_000)]
        {
            let deep = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
            let reply = http::send(app.address, "POST", target, &headers, deep.as_bytes()).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());
            assert!(reply.message().contains("64 levels"), "{}", reply.message());
        }

        for encodings in [&["gzip"][..], &["br"], &["identity", "gzip"], &["identity, deflate"]] {
            let kept = headers.len();
            headers.extend(encodings.iter().map(|encoding| ("content-encoding".into(), encoding.to_string())));
            let reply = http::send(app.address, "POST", "/model-customization-jobs", &headers, b"\x1f\x8b").await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"));
            assert!(reply.message().contains("Content-Encoding"), "{}", reply.message());
            headers.truncate(kept);
        }
        app
    });
}

#[test]
fn what_is_wrong_in_a_body_is_said_with_its_place() {
    with_app(async |app| {
        for (body, said) in [
            (r#"{"jobName": 7}"#, "Value '7' at 'jobName' failed to satisfy constraint: Member must be a string"),
            (r#"{"jobName": null}"#, "Value null at 'jobName' failed to satisfy constraint: Member must not be null"),
            (r#"{"jobTags": [{"key": []}]}"#, "at 'jobTags.1.member.key' failed to satisfy constraint"),
            (
                r#"{"hyperParameters": {"epochCount": 1}}"#,
                "at 'hyperParameters.epochCount' failed to satisfy constraint",
            ),
            (r#"{"jobName": "a", "jobName": "b"}"#, "the member 'jobName' stands twice"),
            (r#"{"jobName": "a""#, "is not valid JSON"),
            ("[]", "must be a JSON object"),
        ] {
            let headers = app.signed(&app.root, "POST", "/model-customization-jobs", body, 0);
            let reply = http::send(app.address, "POST", "/model-customization-jobs", &headers, body.as_bytes()).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{body}");
            assert!(reply.message().contains(said), "{body}: {}", reply.message());
            assert!(reply.header("x-amzn-requestid").is_some());
        }
        app
    });
}

#[test]
fn a_key_that_calls_too_often_is_told_when_to_come_back_and_others_are_not() {
    // One more call is earned in a hundred seconds: the test is over before.
    with_settings(&["--rate-limit=0.01", "--rate-burst=3"], async |app| {
        let stranger = app.stranger().await;
        for _ in 0..3 {
            assert_eq!(app.call("GET", "/foundation-models", None).await.status, 200);
        }
        let reply = app.call("GET", "/foundation-models", None).await;
        assert_eq!((reply.status, reply.error()), (429, "ThrottlingException"));
        let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=100).contains(&wait), "{wait}");
        // A forged signature takes nothing from the key it names.
        let mut forged = stranger.clone();
        forged.secret_key.push('x');
        for _ in 0..5 {
            assert_eq!(app.call_as(&forged, "GET", "/foundation-models", None).await.status, 403);
        }
        assert_eq!(app.call_as(&stranger, "GET", "/foundation-models", None).await.status, 200);
        assert_eq!(http::send(app.address, "GET", "/healthz", &[], b"").await.status, 200);
        app
    });
}
