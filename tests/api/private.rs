//! What the running program leaves on the machine: files for its owner only, and a log of one line per event.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tunesmith::objects::{Endpoint, Objects, Put, Uri};
use tunesmith::store::{Db, keys};

use crate::support::http;
use crate::support::process::{ACCESS_KEY, BEARER_KEY, SECRET_KEY, Serve};

#[test]
fn nothing_that_the_program_creates_is_open_to_other_users() {
    // It has a runtime of its own.
    let serve = Serve::start();
    crate::jobs::database::block_on(async {
        let objects = Objects::new(&Endpoint {
            url: serve.s3().to_string(),
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            region: "us-east-1".into(),
        });
        objects.ensure_bucket("private").await.unwrap();
        objects.put_bytes(&Uri::new("private", "a"), "secret", &Put::default()).await.unwrap();
        let mut seen = 0;
        expect_closed(&serve.data_dir(), &mut seen);
        assert!(seen > 10, "{seen} files and folders");
    });
}

fn expect_closed(path: &Path, seen: &mut u32) {
    // A journal or a staging file may go away while we look.
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return };
    *seen += 1;
    let mode = metadata.permissions().mode();
    assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            expect_closed(&entry.unwrap().path(), seen);
        }
    }
}

#[test]
fn a_member_name_with_a_newline_makes_no_line_of_its_own_in_the_log() {
    // It has a runtime of its own.
    let serve = Serve::start();
    crate::jobs::database::block_on(async {
        let headers = [("authorization".to_string(), format!("Bearer {BEARER_KEY}"))];
        let body = r#"{"hyperParameters":{"x\nINFO fake":null}}"#;
        let reply = http::send(serve.address(), "POST", "/model-customization-jobs", &headers, body.as_bytes()).await;
        assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());
        let log = crate::support::until("the request is logged", async || {
            Some(serve.log()).filter(|log| log.contains("INFO fake"))
        })
        .await;
        assert!(log.lines().all(|line| !line.starts_with("INFO fake")), "{log}");
    });
}

/// A process without presets, killed when dropped.
struct Bare {
    child: Child,
    folder: tempfile::TempDir,
}

impl Bare {
    /// Starts `tunesmith <arguments>` in a folder of its own and waits until it is ready.
    fn start(arguments: &[&str]) -> Self {
        Self::start_in(None, arguments)
    }

    /// The same in the data folder of another.
    fn start_in(data: Option<&Path>, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        let own = folder.path().join("data");
        command.args(arguments).arg("--data-dir").arg(data.unwrap_or(&own));
        command.arg("--ready-file").arg(folder.path().join("ready"));
        for name in ["ROOT_ACCESS_KEY", "ROOT_SECRET_KEY", "ROOT_BEARER_KEY", "MODELS", "ROLE"] {
            command.env_remove(format!("TUNESMITH_{name}"));
        }
        command.env_remove("DATABASE_URL").env_remove("S3_ENDPOINT").stdin(Stdio::null());
        let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let begun = std::time::Instant::now();
        while !folder.path().join("ready").exists() {
            let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "it ended early: {log}");
            assert!(begun.elapsed() < http::PATIENCE, "{log}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self { child, folder }
    }

    /// Everything it said, on both streams, once it has said `mark`.
    async fn said(&self, mark: &str) -> String {
        crate::support::until(mark, async || {
            Some(std::fs::read_to_string(self.folder.path().join("log")).unwrap()).filter(|log| log.contains(mark))
        })
        .await
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_first_start_says_where_its_keys_are_and_never_what_they_are() {
    crate::jobs::database::block_on(async {
        let serve = Bare::start(&["serve", "--listen=127.0.0.1:0", "--s3-listen=127.0.0.1:0", "--log=debug"]);
        let path = serve.folder.path().join("data/credentials").canonicalize().unwrap();
        let said = serve.said("The API listens on").await;
        assert!(said.contains(&format!("export AWS_SHARED_CREDENTIALS_FILE={}", path.display())), "{said}");
        let text = std::fs::read_to_string(&path).unwrap();
        let secrets: Vec<_> = text.lines().filter_map(|line| line.split_once(" = ")).map(|(_, value)| value).collect();
        assert_eq!(secrets.len(), 3, "{path:?}");
        for secret in secrets {
            assert!(!said.contains(secret), "a key is shown");
        }
    });
}

#[test]
fn a_worker_makes_no_root_keys() {
    // It has a runtime of its own.
    let serve = Serve::start();
    crate::jobs::database::block_on(async {
        let db = Db::connect(&format!("sqlite://{}", serve.data_dir().join("tunesmith.db").display())).await.unwrap();
        let ids = async || {
            let keys = keys::list(&db, crate::support::ACCOUNT).await.unwrap();
            keys.into_iter().map(|key| key.id).collect::<Vec<_>>()
        };
        let before = ids().await;
        assert_eq!(before.len(), 2, "the preset pair and the preset bearer key: {before:?}");
        let address = serve.s3().strip_prefix("http://").unwrap();
        let worker = ["worker", "--s3-listen", address, "--devices=cpu"];
        drop(Bare::start_in(Some(&serve.data_dir()), &worker));
        assert_eq!(ids().await, before);
        assert!(!serve.data_dir().join("credentials").exists());
    });
}
