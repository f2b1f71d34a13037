//! The memory of requests: bodies share a budget, values are counted, and tokens are counted in turns.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::http::{self, parse, read_all};
use crate::support::{TINY, segment, until, with_app};

#[test]
fn bodies_in_flight_share_a_budget_and_what_is_above_it_is_told_to_come_back() {
    with_app(async |app| {
        let (_, key) = app.root_bearer().remove(0);
        // All but the last byte: each is held in memory, and none can be judged yet.
        let length = 20_000_000;
        let head = format!(
            "POST /model/a/invoke HTTP/1.1\r\nhost: a\r\nauthorization: {key}\r\ncontent-length: {length}\r\n\r\n"
        );
        let half = vec![b' '; length - 1];
        let mut held = Vec::new();
        let refused = loop {
            assert!(held.len() < 20, "the budget is 256 MiB");
            let mut stream = TcpStream::connect(app.address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            // Broken off by the refusal, for which nothing more is read.
            let sent = stream.write_all(&half).await;
            let mut byte = [0];
            let refused = tokio::time::timeout(Duration::from_millis(500), stream.peek(&mut byte)).await;
            if sent.is_err() || refused.is_ok() {
                break parse(&read_all(stream).await);
            }
            held.push(stream);
        };
        assert!(held.len() >= 6, "{}", held.len());
        assert_eq!((refused.status, refused.error()), (503, "ServiceUnavailableException"), "{}", refused.text());
        drop(held);
        until("there is room again", async || {
            (app.call("GET", "/foundation-models", None).await.status == 200).then_some(())
        })
        .await;
        app
    });
}

#[test]
fn a_body_of_too_many_values_is_refused_before_it_is_parsed() {
    with_app(async |app| {
        let headers = app.root_bearer();
        let body = format!("{{\"messages\": [{}0]}}", "0,".repeat(1_000_000));
        let reply = http::send(app.address, "POST", "/model/a/converse", &headers, body.as_bytes()).await;
        assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());
        assert!(reply.message().contains("200000 values"), "{}", reply.message());
        app
    });
}

#[test]
fn counting_tokens_takes_turns_and_refuses_what_no_model_reads() {
    with_app(async |app| {
        let target = format!("/model/{}/count-tokens", segment(TINY));
        let input = |text: String| json!({ "input": { "converse": { "messages": [{ "role": "user", "content": [{ "text": text }] }] } } });
        let counting = app.service.app.counting.clone();
        let turns = u32::try_from(counting.available_permits()).unwrap();
        let taken = counting.acquire_many_owned(turns).await.unwrap();
        let reply = app.call("POST", &target, Some(&input("a".into()))).await;
        assert_eq!((reply.status, reply.error()), (429, "ThrottlingException"), "{}", reply.text());
        drop(taken);
        assert_eq!(app.call("POST", &target, Some(&input("a".into()))).await.status, 200);

        let headers = app.root_bearer();
        let long = input("a b ".repeat(2_000_000)).to_string();
        let reply = http::send(app.address, "POST", &target, &headers, long.as_bytes()).await;
        assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());
        assert!(reply.message().contains("more than 1048576 tokens"), "{}", reply.message());
        app
    });
}
