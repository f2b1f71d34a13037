//! `/readyz` is red when something the service needs is not there, and names it.

use clap::Parser;
use serde_json::Value;
use tokio::sync::watch;
use tunesmith::config::{Config, Role};
use tunesmith::service::Service;

use crate::support::http::{self, Reply};
use crate::support::{until, with_app, with_worker};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: Config,
}

fn part<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["parts"].as_array().unwrap().iter().find(|part| part["name"] == name).unwrap_or(&Value::Null)
}

async fn readyz(address: std::net::SocketAddr) -> (u16, Value) {
    let reply: Reply = http::send(address, "GET", "/readyz", &[], b"").await;
    (reply.status, reply.json())
}

#[test]
fn a_healthy_service_names_its_parts_and_a_part_that_panics_makes_it_red_until_it_runs_again() {
    with_worker(&[], async |app| {
        let (status, report) = readyz(app.address).await;
        assert_eq!((status, &report["ready"]), (200, &Value::Bool(true)), "{report}");
        for name in ["database", "object store", "slot cpu", "imports", "housekeeping", "deployments", "periodic tasks"]
        {
            assert_eq!(part(&report, name)["ready"], true, "{name}: {report}");
        }

        let (parts, (stop, stopping)) = (app.service.app.parts.clone(), watch::channel(false));
        let runs = std::sync::atomic::AtomicUsize::new(0);
        let work = move || {
            let first = runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            async move {
                assert!(!first, "a row that nobody expected");
                std::future::pending::<()>().await;
            }
        };
        let task = tokio::spawn(async move { parts.supervise("slot test", stopping, work).await });
        let red = until("the part is missed", async || {
            let (status, report) = readyz(app.address).await;
            (status == 503).then_some(report)
        })
        .await;
        assert_eq!((&red["ready"], &part(&red, "slot test")["ready"]), (&Value::Bool(false), &Value::Bool(false)));
        assert!(!red.to_string().contains("nobody expected"), "strangers learn no causes: {red}");
        let green = until("the part runs again", async || {
            let (status, report) = readyz(app.address).await;
            (status == 200).then_some(report)
        })
        .await;
        assert_eq!(part(&green, "slot test")["restarts"], 1, "{green}");
        task.abort();
        drop(stop);
        app
    });
}

#[test]
fn a_database_that_is_away_is_named_and_the_process_is_still_alive() {
    with_app(async |app| {
        app.service.app.db.close().await;
        let red = until("the database is missed", async || {
            let (status, report) = readyz(app.address).await;
            (status == 503).then_some(report)
        })
        .await;
        assert_eq!(part(&red, "database")["ready"], false, "{red}");
        assert_eq!(part(&red, "database")["reason"], "does not answer");
        assert_eq!(http::send(app.address, "GET", "/healthz", &[], b"").await.status, 200);
        app
    });
}

#[test]
fn an_object_store_that_is_away_or_refuses_the_key_is_named() {
    crate::jobs::database::block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data").display().to_string();
        let line = |more: &[&str]| {
            let common = ["test", "--listen=127.0.0.1:0", "--s3-listen=127.0.0.1:0", "--data-dir", &data];
            Line::parse_from(common.iter().chain(more)).config
        };
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = format!("--s3-endpoint=http://127.0.0.1:{port}");
        let service =
            Service::start(line(&[&endpoint, "--s3-access-key=a", "--s3-secret-key=b"]), Role::Api).await.unwrap();
        let (status, report) = readyz(service.api.unwrap()).await;
        assert_eq!((status, &part(&report, "object store")["ready"]), (503, &Value::Bool(false)), "{report}");
        assert_eq!(part(&report, "object store")["reason"], "does not answer");
        assert_eq!(part(&report, "database")["ready"], true, "{report}");
        service.stop().await;

        // Another service's embedded store, which does not know the key: waiting would not help.
        let other = folder.path().join("other").display().to_string();
        let config =
            Line::parse_from(["test", "--listen=127.0.0.1:0", "--s3-listen=127.0.0.1:0", "--data-dir", &other]);
        let store = Service::start(config.config, Role::Api).await.unwrap();
        let endpoint = format!("--s3-endpoint={}", store.s3_endpoint().unwrap());
        let refused =
            Service::start(line(&[&endpoint, "--s3-access-key=AKIANOBODY", "--s3-secret-key=hunter2"]), Role::Api);
        let refusal = refused.await.err().expect("the start is refused");
        for said in ["object store", &endpoint["--s3-endpoint=".len()..], "AWS_SECRET_ACCESS_KEY"] {
            assert!(refusal.message().contains(said), "{said}: {refusal}");
        }
        assert!(!refusal.message().contains("hunter2"), "{refusal}");
        store.stop().await;
    });
}
