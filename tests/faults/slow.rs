//! Slow clients: half-open heads, bodies of a byte a second, replies that nobody reads, HTTP/2 windows of 0. None of
//! them keeps what an honest client needs. `TUNESMITH_TEST_SLOW_CLIENTS=500` is the full size.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tunesmith::config::{Config, Role};
use tunesmith::service::Service;

use super::tiny;
use crate::jobs::database::block_on;
use crate::support::http::{self, Reply};
use crate::support::{segment, until};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: Config,
}

/// A service with a model that goes on for hundreds of tokens.
struct Served {
    service: Service,
    address: SocketAddr,
    bearer: String,
    _folder: tempfile::TempDir,
}

impl Served {
    async fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (data, models) = (folder.path().join("data"), tiny::models(folder.path()));
        let common = ["test", "--listen=127.0.0.1:0", "--s3-listen=127.0.0.1:0"];
        let folders = ["--data-dir", data.to_str().unwrap(), "--models", models.to_str().unwrap()];
        let arguments = common.iter().chain(&folders).chain(more);
        let service = Service::start(Line::parse_from(arguments).config, Role::Api).await.unwrap();
        let key = service.keys.as_ref().and_then(|keys| keys.bearer_key.clone()).unwrap();
        let bearer = format!("Bearer {}", key.expose());
        Self { address: service.api.unwrap(), service, bearer, _folder: folder }
    }

    async fn send(&self, method: &str, target: &str, body: &str) -> Reply {
        let headers = [("authorization".to_string(), self.bearer.clone())];
        http::send(self.address, method, target, &headers, body.as_bytes()).await
    }

    /// An HTTP/2 connection whose streams may be sent nothing.
    async fn windowless(&self) -> (http2::SendRequest<Full<Bytes>>, tokio::task::JoinHandle<()>) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(0).adaptive_window(false);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        (sender, tokio::spawn(async move { drop(connection.await) }))
    }

    fn request(&self, method: &str, target: &str, body: &str) -> hyper::Request<Full<Bytes>> {
        hyper::Request::builder()
            .method(method)
            .uri(format!("http://{}{target}", self.address))
            .header("authorization", &self.bearer)
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .unwrap()
    }
}

fn ask(tokens: usize) -> String {
    json!({ "prompt": "1+1=", "max_gen_len": tokens, "temperature": 0 }).to_string()
}

fn stream_target() -> String {
    format!("/model/{}/invoke-with-response-stream", segment(tiny::MODEL))
}

#[test]
fn readers_that_take_nothing_lose_their_places_and_an_honest_client_is_answered() {
    block_on(async {
        let served = Served::start(&["--answers=4", "--stall-seconds=2"]).await;
        let invoke = format!("/model/{}/invoke", segment(tiny::MODEL));
        let long = served.send("POST", &invoke, &ask(200)).await.json();
        assert!(long["generation_token_count"].as_u64().unwrap() > 150, "more than any queue holds: {long}");

        let (mut sender, connection) = served.windowless().await;
        let mut unread: Vec<hyper::Response<Incoming>> = Vec::new();
        for _ in 0..4 {
            let reply = sender.send_request(served.request("POST", &stream_target(), &ask(200))).await.unwrap();
            assert_eq!(reply.status(), 200);
            unread.push(reply);
        }
        let door = served.service.app.door.clone();
        until("the places are free", async || (door.under_way() == 0).then_some(())).await;
        assert_eq!(served.send("POST", &invoke, &ask(1)).await.status, 200);
        let begun = Instant::now();
        tokio::time::timeout(http::PATIENCE, connection).await.expect("an unread connection is closed").unwrap();
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        drop(unread);
        served.service.stop().await;
    });
}

/// What a slow client is.
#[derive(Debug, Clone, Copy)]
enum Slow {
    Head,
    Body,
    Reader,
    Window,
}

/// Keeps a slow client of this kind at the service; a connection that is closed is opened again. Gives how often.
async fn pester(served: &Served, slow: Slow, until: Instant) -> u64 {
    let mut closed = 0;
    while Instant::now() < until {
        let one = async {
            let opened = TcpStream::connect(served.address).await;
            let Ok(mut stream) = opened else { return };
            match slow {
                Slow::Head => {
                    let _ = stream.write_all(b"POST /model-customization-jobs HTTP/1.1\r\nhost: a\r\n").await;
                    wait_for_the_end(stream).await;
                }
                Slow::Body => {
                    let head = format!(
                        "POST {} HTTP/1.1\r\nhost: a\r\nauthorization: {}\r\ncontent-length: 10000\r\n\r\n",
                        stream_target(),
                        served.bearer
                    );
                    let _ = stream.write_all(head.as_bytes()).await;
                    while stream.write_all(b"{").await.is_ok() {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
                Slow::Reader => {
                    let many = "GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n".repeat(200);
                    let _ = stream.write_all(many.as_bytes()).await;
                    // Notices the end by writing, because it never reads.
                    while stream.write_all(b"\r\n").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                }
                Slow::Window => {
                    drop(stream);
                    let (mut sender, connection) = served.windowless().await;
                    let mut unread = Vec::new();
                    for n in 0..16 {
                        let request = match n % 2 {
                            0 => served.request("GET", "/openapi.json", ""),
                            _ => served.request("POST", &stream_target(), &ask(100)),
                        };
                        match sender.send_request(request).await {
                            Ok(reply) => unread.push(reply),
                            Err(_) => break,
                        }
                    }
                    drop(connection.await);
                }
            }
        };
        let left = until.saturating_duration_since(Instant::now());
        if tokio::time::timeout(left, one).await.is_ok() {
            closed += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    closed
}

/// Until the server closes the connection.
async fn wait_for_the_end(mut stream: TcpStream) {
    let mut bytes = [0; 1024];
    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

/// The latency that all but one in a hundred requests of an honest client stay below.
async fn honest(served: &Served, requests: usize, until: Instant) -> (Duration, usize) {
    let mut latencies = Vec::new();
    let invoke = format!("/model/{}/invoke", segment(tiny::MODEL));
    while latencies.len() < requests || Instant::now() < until {
        let begun = Instant::now();
        let reply = match latencies.len() % 4 {
            // The others' answers are under way: one that is told to come back was answered as well.
            0 => served.send("POST", &invoke, &ask(1)).await,
            _ => served.send("GET", "/foundation-models", "").await,
        };
        latencies.push(begun.elapsed());
        assert!(matches!(reply.status, 200 | 429), "{}: {}", reply.status, reply.text());
    }
    latencies.sort();
    (latencies[latencies.len() * 99 / 100], latencies.len())
}

#[test]
fn slow_clients_of_every_kind_hold_up_no_honest_one() {
    let size = std::env::var("TUNESMITH_TEST_SLOW_CLIENTS").ok().and_then(|text| text.parse().ok());
    let (clients, full) = (size.unwrap_or(40_usize), size.is_some());
    let (stall, lasts) = if full { (30, Duration::from_secs(90)) } else { (3, Duration::from_secs(12)) };
    block_on(async {
        let served = std::sync::Arc::new(Served::start(&[&format!("--stall-seconds={stall}")]).await);
        honest(&served, 50, Instant::now()).await;
        let (idle, _) = honest(&served, 200, Instant::now()).await;

        let end = Instant::now() + lasts;
        let mut slow = JoinSet::new();
        for n in 0..clients {
            let (served, kind) = (served.clone(), [Slow::Head, Slow::Body, Slow::Reader, Slow::Window][n % 4]);
            slow.spawn(async move { (n % 4, pester(&served, kind, end).await) });
        }
        let (busy, requests) = honest(&served, 200, end).await;
        let mut closed = [0; 4];
        while let Some(ended) = slow.join_next().await {
            let (kind, times) = ended.unwrap();
            closed[kind] += times;
        }
        let report: Value = json!({
            "clients": clients, "honestRequests": requests, "p99IdleMs": idle.as_secs_f64() * 1e3,
            "p99Ms": busy.as_secs_f64() * 1e3, "closedHeads": closed[0], "closedBodies": closed[1],
            "closedReaders": closed[2], "closedWindows": closed[3],
        });
        println!("slow clients: {report}");
        // Beside a whole suite of tests the tail is long for other reasons; the full size is for a quiet machine. One
        // that is held up waits for as long as the slow clients last.
        let floor = if full { Duration::from_millis(10) } else { lasts / 2 };
        assert!(busy <= (2 * idle).max(floor), "{report}");
        for (kind, times) in closed.iter().enumerate().filter(|(kind, _)| full || *kind != 1) {
            assert!(*times as usize >= clients / 4, "each was closed at least once ({kind}): {report}");
        }
        let door = served.service.app.door.clone();
        until("no place is kept", async || (door.under_way() == 0).then_some(())).await;
        let served = std::sync::Arc::into_inner(served).unwrap();
        served.service.stop().await;
    });
}
