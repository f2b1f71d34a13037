//! SIGTERM is clean: a checkpoint, the job given back, exit 0, and the next process goes on at once.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::process::{House, until};
use super::{ADAPTER, tiny, uninterrupted};
use crate::jobs::database::block_on;
use crate::support::http::{parse, read_all};
use crate::support::segment;

#[test]
fn a_drained_job_goes_on_where_it_was_without_waiting_for_the_lease() {
    block_on(async {
        let house = House::new().await;
        let process = house.start(&["serve"]);
        house.upload_data().await;
        let (adapter, _) = uninterrupted(&house, &tiny::job(1)).await;

        let spec = tiny::job(2);
        house.submit(&spec).await;
        house.at_step(&spec, 40).await;
        assert_eq!(process.terminate().await.code(), Some(0));
        let drained = house.job(&spec).await;
        assert_eq!((drained.worker, drained.lease_until, drained.strikes), (None, None, 0));
        assert_eq!(house.events(&spec).await, ["Created", "Claimed", "Released"]);

        let process = house.start(&["serve"]);
        until("the next process has the job", async || (house.job(&spec).await.attempt == 2).then_some(())).await;
        house.completed(&spec).await;
        assert!(process.log().contains("going on from a checkpoint"), "the work was not repeated from the start");
        assert!(house.output(&spec, ADAPTER).await == adapter, "the adapter's bits differ");
    });
}

/// A service with a request under way that no flag reaches: its thread waits for a file that nobody writes.
async fn hangs(house: &House, grace: u64) -> (super::process::Process, TcpStream) {
    let key = "a-bearer-key-for-drain-tests";
    let process = house.start(&["serve", &format!("--grace-seconds={grace}"), &format!("--root-bearer-key={key}")]);
    until("the API answers", async || TcpStream::connect(house.api()).await.ok()).await;
    house.upload_data().await;
    let tokenizer = house.models().join(tiny::MODEL).join("tokenizer.json");
    std::fs::remove_file(&tokenizer).unwrap();
    assert!(Command::new("mkfifo").arg(&tokenizer).status().unwrap().success());
    let (target, body) = (format!("/model/{}/invoke", segment(tiny::MODEL)), r#"{"prompt": "1+1="}"#);
    let mut stream = TcpStream::connect(house.api()).await.unwrap();
    let request = format!(
        "POST {target} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(500), stream.peek(&mut byte)).await;
    assert!(early.is_err(), "the request hangs: {early:?}");
    (process, stream)
}

#[test]
fn a_thread_that_hangs_does_not_outlast_the_grace_period_and_its_caller_is_answered() {
    block_on(async {
        let house = House::new().await;
        let (process, stream) = hangs(&house, 4).await;
        let begun = Instant::now();
        let answered = tokio::spawn(read_all(stream));
        assert_eq!(process.terminate().await.code(), Some(0));
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(6), "{waited:?} with a grace of 4 s");
        let reply = parse(&answered.await.unwrap());
        assert_eq!((reply.status, reply.error()), (503, "ServiceUnavailableException"), "{}", reply.text());
    });
}

#[test]
fn a_second_interrupt_means_now_whatever_hangs() {
    block_on(async {
        let house = House::new().await;
        let (process, _stream) = hangs(&house, 600).await;
        process.interrupt();
        until("the drain has begun", async || process.log().contains("draining").then_some(())).await;
        let begun = Instant::now();
        process.interrupt();
        process.ended().await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_job_whose_download_hangs_is_given_back_within_the_grace_period() {
    block_on(async {
        let house = House::new().await;
        // Takes connections and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("--s3-endpoint=http://{}", silent.local_addr().unwrap());
        let held = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = silent.accept().await {
                held.push(tokio::spawn(async move { while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} }));
            }
        });
        let spec = tiny::job(1);
        house.submit(&spec).await;
        let process =
            house.start(&["worker", &endpoint, "--s3-access-key=a", "--s3-secret-key=b", "--grace-seconds=4"]);
        until("the job is claimed", async || (house.job(&spec).await.attempt == 1).then_some(())).await;
        let begun = Instant::now();
        assert_eq!(process.terminate().await.code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?} with a grace of 4 s", begun.elapsed());
        let job = house.job(&spec).await;
        assert_eq!((job.worker, job.lease_until, job.strikes), (None, None, 0));
        assert_eq!(house.events(&spec).await, ["Created", "Claimed", "Released"]);
        held.abort();
    });
}
