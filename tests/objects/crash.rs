//! The server is killed with SIGKILL in the middle of its work, over and over. Whatever it
//! acknowledged must be there, whole; what it had not acknowledged is there whole or not at all.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::error::Kind;
use tunesmith::objects::{Objects, Put, Uri};

use crate::support::promise::{Promise, full};

use super::checks::md5;
use super::servers::{endpoint, setting, start};

const KILLS: usize = 25;
const WRITERS: u64 = 4;
const KEYS: u64 = 12;
const BUCKET: &str = "crash";

/// What a key may hold: what was acknowledged last, and what was attempted since without an answer.
#[derive(Default)]
struct Expected {
    acknowledged: Option<u64>,
    attempted: Vec<Option<u64>>,
}

type World = Arc<Mutex<HashMap<String, Expected>>>;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_sigkill_and_nothing_is_torn() {
    let seed = setting("TEST_SEED").and_then(|seed| seed.parse().ok()).unwrap_or_else(|| Clock::system().seed());
    println!("TEST_SEED={seed}");
    let mut random = Random(seed | 1);
    let folder = tempfile::tempdir().unwrap();
    let world = World::default();
    let mut acknowledged = 0;
    let mut promise = Promise::new(4, "what_the_embedded_store_acknowledged", "embedded S3").seeded(seed);
    let enough = if full() { 10_000 } else { 0 };
    let mut kills = 0;
    while kills < KILLS || acknowledged < enough {
        kills += 1;
        let mut server = Process::start(folder.path());
        let objects = Objects::new(&endpoint(&server.url));
        objects.ensure_bucket(BUCKET).await.unwrap();
        check(&objects, &world).await;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(objects.clone(), Arc::clone(&world), writer, random.next())))
            .collect();
        // The moment of the kill is the experiment, not a wait for something.
        tokio::time::sleep(Duration::from_millis(20 + random.next() % 400)).await;
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for writer in writers {
            acknowledged += writer.await.unwrap();
        }
        println!("{kills} kills: {acknowledged} writes acknowledged so far");
    }
    let server = Process::start(folder.path());
    check(&Objects::new(&endpoint(&server.url)), &world).await;
    drop(server);

    // A last start sweeps; then every file belongs to a row and every row to a file.
    let server = start(folder.path()).await;
    let pool =
        sqlx::SqlitePool::connect(&format!("sqlite://{}", folder.path().join("index.db").display())).await.unwrap();
    let mut known: Vec<String> = sqlx::query_scalar("SELECT file FROM pieces").fetch_all(&pool).await.unwrap();
    let entries = std::fs::read_dir(folder.path().join("files")).unwrap();
    let mut files: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    known.sort();
    files.sort();
    assert_eq!(files, known, "no strays and no holes");
    server.stop(Duration::from_secs(5)).await;
    assert!(acknowledged > KILLS as u64, "the writers really wrote: {acknowledged}");
    promise.tried(format!("{acknowledged} acknowledged puts, replacements and deletions under {kills} SIGKILLs"));
    promise.found(format!("0 lost, 0 torn, every ETag of its bytes; {} files, 0 strays", files.len()));
    promise.held();
}

/// Writes, replaces and deletes the keys of one writer until the server is gone. Gives how many were acknowledged.
async fn write(objects: Objects, world: World, writer: u64, seed: u64) -> u64 {
    let mut random = Random(seed | 1);
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    loop {
        let key = format!("{writer}/{}", random.next() % KEYS);
        let uri = Uri::new(BUCKET, &key);
        let kind = random.next() % 20;
        let value = (kind > 2).then(|| random.next());
        world.lock().unwrap().entry(key.clone()).or_default().attempted.push(value);
        let written = match value {
            None => objects.delete(&uri).await,
            // Now and then in parts.
            Some(value) if kind == 3 => {
                let file = folder.path().join("parts");
                std::fs::write(&file, content(value, 17 << 20)).unwrap();
                objects.put_file(&uri, &file, &Put::default()).await.map(drop)
            }
            Some(value) => {
                objects.put_bytes(&uri, content(value, 1 + (value % 200_000) as usize), &Put::default()).await
            }
        };
        match written {
            Ok(()) => {
                acknowledged += 1;
                let mut world = world.lock().unwrap();
                let expected = world.get_mut(&key).unwrap();
                expected.acknowledged = value;
                expected.attempted.clear();
            }
            Err(error) => {
                assert_ne!(error.kind(), Kind::Validation, "{}", error.log());
                return acknowledged;
            }
        }
    }
}

/// Every key holds what it may hold, whole, and its ETag is of its bytes. What is found counts as acknowledged.
async fn check(objects: &Objects, world: &World) {
    let keys: Vec<String> = world.lock().unwrap().keys().cloned().collect();
    for key in keys {
        let uri = Uri::new(BUCKET, &key);
        let found = match objects.get_bytes(&uri, 1 << 30).await {
            Ok(bytes) => {
                let etag = objects.head(&uri).await.unwrap().etag;
                match etag.split_once('-') {
                    None => assert_eq!(etag, md5(&bytes), "{key} is torn"),
                    Some((_, parts)) => assert_eq!(parts, "2", "{key}"),
                }
                let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert!(bytes == content(value, bytes.len()), "{key} holds one value, whole");
                Some(value)
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::NotFound, "{key}: {}", error.log());
                None
            }
        };
        let mut world = world.lock().unwrap();
        let expected = world.get_mut(&key).unwrap();
        let allowed = found == expected.acknowledged || expected.attempted.contains(&found);
        assert!(allowed, "{key} holds {found:?}, acknowledged was {:?}", expected.acknowledged);
        *expected = Expected { acknowledged: found, attempted: Vec::new() };
    }
}

/// At least eight bytes that tell which value they are, in every stretch of them.
fn content(value: u64, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = value.to_le_bytes().to_vec();
    let mut random = Random(value | 1);
    while bytes.len() < length {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(length.max(8));
    bytes
}

/// Marsaglia's xorshift: small, and the same everywhere for a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The server in a process of its own: this test binary, told to be the server.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "objects::crash::the_server_that_is_killed", "--ignored", "--nocapture"])
            .env("TEST_CRASH_FOLDER", folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines
            .find_map(|line| line.unwrap().split_once("listens at ").map(|(_, url)| url.to_string()))
            .expect("the server says where it listens");
        Self { child, url }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: the process that the test above starts and kills"]
async fn the_server_that_is_killed() {
    let Some(folder) = setting("TEST_CRASH_FOLDER") else { return };
    let server = start(Path::new(&folder)).await;
    println!("listens at {}", server.endpoint());
    std::future::pending::<()>().await;
}
