//! The composed service, started natively: the same words on the command line, the same environment, with
//! the names `postgres` and `minio` pointing at servers of this test.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::compose;
use crate::jobs::database::{Schema, block_on, postgres, variable};

const DATA: &str = r#"{"prompt": "The tea kettle is cold.", "completion": "Kitchen."}
{"prompt": "The garden hose leaks.", "completion": "Garden."}
"#;

#[test]
fn the_composed_service_tunes_a_model_with_a_real_postgres_and_a_foreign_s3_server() {
    let (Some(file), Some(database)) = (compose::parsed(), postgres()) else { return };
    let Some(storage) = moto() else { return };
    let schema = block_on(Schema::create(database));
    let folder = tempfile::tempdir().unwrap();
    let api = free_address();
    let native = |text: String| {
        let url = regex::Regex::new("^postgres://.*").unwrap().replace(&text, &schema.url).into_owned();
        url.replace("http://minio:9000", &format!("http://{}", storage.address))
            .replace("0.0.0.0:8080", &api.to_string())
            .replace("127.0.0.1/8080", &format!("127.0.0.1/{}", api.port()))
    };
    let services = &file["services"];

    // The init step makes the bucket, and does no harm the second time.
    let bucket = &services["bucket"];
    let storage_environment: Vec<_> =
        compose::environment(bucket).into_iter().map(|(name, value)| (name, native(value))).collect();
    for _ in 0..2 {
        let words = [compose::words(&bucket["entrypoint"]), compose::words(&bucket["command"])].concat();
        run(&words, &storage_environment);
    }
    let data = folder.path().join("train.jsonl");
    std::fs::write(&data, DATA.repeat(4)).unwrap();
    let put = ["aws", "s3api", "put-object", "--bucket", "tunesmith", "--key", "train.jsonl", "--body"];
    run(&[&put[..], &[data.to_str().unwrap()]].concat(), &storage_environment);

    // The service itself, and the health check that Compose would ask.
    let service = &services["tunesmith"];
    let environment: Vec<_> =
        compose::environment(service).into_iter().map(|(name, value)| (name, native(value))).collect();
    let log = folder.path().join("log");
    let mut running = start(&compose::words(&service["command"]), &environment, folder.path(), &log);
    let check: Vec<String> = compose::words(&service["healthcheck"]["test"]).into_iter().map(native).collect();
    assert_eq!(check[0], "CMD");
    wait("the health check to pass", &mut running, &log, || succeeds(&check[1..]));

    let key = &environment.iter().find(|(name, _)| name == "TUNESMITH_ROOT_BEARER_KEY").unwrap().1;
    let job = json!({
        "jobName": "composed", "customModelName": "composed-model",
        "roleArn": "arn:aws:iam::000000000000:role/tuner",
        "baseModelIdentifier": "tunesmith.starter-v1:0",
        "trainingDataConfig": {"s3Uri": "s3://tunesmith/train.jsonl"},
        "outputDataConfig": {"s3Uri": "s3://tunesmith/outputs/"},
        "hyperParameters": {"epochCount": "1", "batchSize": "8"},
    });
    let (status, created) = call(api, key, "POST", "/model-customization-jobs", &job.to_string());
    assert_eq!(status, 201, "{created}");
    wait("the job to end", &mut running, &log, || {
        let (_, job) = call(api, key, "GET", "/model-customization-jobs/composed", "");
        assert_ne!(job["status"], "Failed", "{job}");
        job["status"] == "Completed"
    });
    let listed = run(&["aws", "s3api", "list-objects-v2", "--bucket", "tunesmith"], &storage_environment);
    assert!(listed.contains("adapter/adapter_model.safetensors"), "{listed}");

    // What `docker stop` sends.
    run(&["kill", "-TERM", &running.0.id().to_string()], &[]);
    assert!(running.0.wait().unwrap().success(), "the service ends in good order: {}", text(&log));
    block_on(schema.remove());
}

/// A child process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Storage {
    address: SocketAddr,
    _server: Running,
}

/// moto's S3 server, or `None` where it is not installed and the run does not insist.
fn moto() -> Option<Storage> {
    let address = free_address();
    let server = Command::new("moto_server")
        .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(server) = server else {
        super::missing("moto_server");
        return None;
    };
    let mut server = Running(server);
    wait("moto to listen", &mut server, Path::new("/dev/null"), || TcpStream::connect(address).is_ok());
    Some(Storage { address, _server: server })
}

fn start(words: &[String], environment: &[(String, String)], folder: &Path, log: &Path) -> Running {
    let log = std::fs::File::create(log).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_tunesmith"))
        .args(words)
        .env_clear()
        .envs(environment.iter().cloned())
        // The image sets it; the volume is mounted there.
        .env("TUNESMITH_DATA_DIR", folder.join("data"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Running(child)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn command(words: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new(words[0].as_ref());
    command.args(words[1..].iter().map(AsRef::as_ref));
    command
}

fn succeeds(words: &[String]) -> bool {
    command(words).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

/// Runs a command with only `environment` (and the PATH) around it, and gives back what it printed.
fn run(words: &[impl AsRef<str>], environment: &[(String, String)]) -> String {
    let output = command(words)
        .env_clear()
        .env("PATH", variable("PATH").unwrap())
        .envs(environment.iter().cloned())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// Waits for a state, as long as the process lives and at most two minutes.
fn wait(what: &str, running: &mut Running, log: &Path, mut reached: impl FnMut() -> bool) {
    for _ in 0..1200 {
        if reached() {
            return;
        }
        if let Some(status) = running.0.try_wait().unwrap() {
            panic!("waiting for {what}, the process ended with {status}: {}", text(log));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{what}: not within two minutes: {}", text(log));
}

fn text(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

/// One HTTP request on a connection of its own.
fn call(address: SocketAddr, key: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not HTTP: {reply:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}
