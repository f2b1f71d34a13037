//! What the running program leaves on the machine: files for its owner only, and a log of one line per event.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tunesmith::objects::{Endpoint, Objects, Put, Uri};

use crate::support::http;
use crate::support::process::{ACCESS_KEY, BEARER_KEY, SECRET_KEY, Serve};

#[test]
fn nothing_that_the_program_creates_is_open_to_other_users() {
    crate::jobs::database::block_on(async {
        let serve = Serve::start();
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
    crate::jobs::database::block_on(async {
        let serve = Serve::start();
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
