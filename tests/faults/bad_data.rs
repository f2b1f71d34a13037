//! Bad data is explained, not endured: each fault is named with its line, in little memory, whatever the size.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use tunesmith::objects::{Put, Uri};
use tunesmith::store::Status;

use super::process::{House, Process, on_each, within};
use crate::support::promise::{Promise, full, times};

const GOOD: &str = "{\"prompt\": \"1+1=\", \"completion\": \"2\"}\n";

on_each! {
    async fn bad_lines_are_named_and_millions_of_lines_take_little_memory(house: House) {
        let lines = times(50_000, 10_000_000);
        let mut promise = Promise::new(16, "bad_lines_are_named", house.on_what());
        let _api = house.start(&["serve", "--role", "api"]);
        let worker = house.start_in("log-worker", &["worker"]);
        house.upload_data().await;
        let idle = memory(&worker);
        let long = if full() { 65 << 20 } else { 1 << 20 };
        let good = |count: usize| GOOD.repeat(count).into_bytes();
        let mut cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
            ("bad UTF-8", [good(3), b"{\"prompt\": \"\xff\", \"completion\": \"2\"}\n".to_vec()].concat(), vec!["4"]),
            ("no JSON", [good(2), b"prompt\n".to_vec()].concat(), vec!["3"]),
            ("a missing member", [good(5), b"{\"prompt\": \"1\"}\n".to_vec()].concat(), vec!["6"]),
            ("an empty file", Vec::new(), vec![]),
        ];
        if full() {
            let line = [b"{\"prompt\": \"".to_vec(), vec![b'a'; long], b"\", \"completion\": \"2\"}\n".to_vec()].concat();
            cases.push(("a line of 65 MiB", [good(1), line].concat(), vec!["2"]));
        }
        let folder = tempfile::tempdir().unwrap();
        let mut names = Vec::new();
        for (n, (name, bytes, said)) in cases.into_iter().enumerate() {
            let path = folder.path().join("case.jsonl");
            std::fs::write(&path, bytes).unwrap();
            let message = refused(&house, &path, &format!("case-{n}")).await;
            assert!(said.iter().all(|word| message.contains(word)), "{name}: {message}");
            assert!(!message.contains("unexpected error"), "{name}: {message}");
            names.push(name);
        }
        let path = folder.path().join("large.jsonl");
        let mut file = BufWriter::new(std::fs::File::create(&path).unwrap());
        for _ in 0..lines {
            file.write_all(GOOD.as_bytes()).unwrap();
        }
        file.write_all(b"no record\n").unwrap();
        drop(file);
        let message = refused(&house, &path, "large").await;
        assert!(message.contains(&(lines + 1).to_string()), "{message}");
        let most = memory(&worker);
        promise.tried(format!("{}, and {lines} good lines before a bad one", names.join(", ")));
        promise.found(format!("each Failed with its line; the worker held {most} MB at most ({idle} MB when idle)"));
        assert!(most <= 200, "{most} MB");
        promise.held();
    }
}

/// The message of a job over this file, which must fail.
async fn refused(house: &House, path: &Path, name: &str) -> String {
    let key = format!("{name}.jsonl");
    house.objects.put_file(&Uri::new(&house.bucket, &*key), path, &Put::default()).await.unwrap();
    let mut request = house.request(name, 20);
    request["trainingDataConfig"]["s3Uri"] = format!("s3://{}/{key}", house.bucket).into();
    let spec = house.create(&request).await;
    let job = within(Duration::from_secs(1500), &format!("{name} ends"), async || {
        Some(house.job(&spec).await).filter(|job| job.status.is_end())
    })
    .await;
    assert_eq!(job.status, Status::Failed, "{name}");
    job.failure_message.unwrap_or_default()
}

/// The most that a process has held, in MB.
fn memory(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}
