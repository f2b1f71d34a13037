//! Databases for tests: SQLite in a temporary folder, and Postgres in a schema of the test's own. The
//! Postgres is the one at `TEST_DATABASE_URL`, or one started here from PATH.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use futures::FutureExt;
use sqlx::Connection;
use tunesmith::clock::Clock;
use tunesmith::store::Db;

/// Makes two tests of one promise: `name::sqlite` and `name::postgres`.
macro_rules! on_both {
    ($(#[$meta:meta])* async fn $name:ident($db:ident: Db) $body:block) => {
        $(#[$meta])*
        mod $name {
            use super::*;

            async fn check($db: Db) $body

            #[test]
            fn sqlite() {
                crate::jobs::database::on_sqlite(check);
            }

            #[test]
            fn postgres() {
                crate::jobs::database::on_postgres(check);
            }
        }
    };
}
pub(crate) use on_both;

pub(crate) fn block_on<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

pub(crate) fn on_sqlite<F: Future<Output = ()>>(check: impl FnOnce(Db) -> F) {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let url = format!("sqlite://{}", folder.path().join("inner/tunesmith.db").display());
        let db = Db::connect(&url).await.unwrap();
        db.migrate().await.unwrap();
        check(db).await;
    });
}

pub(crate) fn on_postgres<F: Future<Output = ()>>(check: impl FnOnce(Db) -> F) {
    let Some(url) = postgres() else { return };
    block_on(async {
        let schema = Schema::create(url).await;
        let db = Db::connect(&schema.url).await.unwrap();
        db.migrate().await.unwrap();
        let outcome = AssertUnwindSafe(check(db.clone())).catch_unwind().await;
        db.close().await;
        schema.remove().await;
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A schema of a Postgres database that no other test sees.
pub(crate) struct Schema {
    name: String,
    server: String,
    /// Connects into the schema.
    pub(crate) url: String,
}

impl Schema {
    pub(crate) async fn create(url: &str) -> Self {
        let name = format!("test_{}", Clock::system().id());
        execute(url, format!("CREATE SCHEMA {name}")).await;
        let joint = if url.contains('?') { '&' } else { '?' };
        Self { url: format!("{url}{joint}options[search_path]={name}"), name, server: url.into() }
    }

    pub(crate) async fn remove(self) {
        execute(&self.server, format!("DROP SCHEMA {} CASCADE", self.name)).await;
    }
}

/// Over a connection of its own: a schema may be removed in another runtime than it was created in.
async fn execute(url: &str, sql: String) {
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// The URL of a Postgres server, or `None` where there is none and the run does not insist.
pub(crate) fn postgres() -> Option<&'static str> {
    static URL: OnceLock<Option<String>> = OnceLock::new();
    let url = URL.get_or_init(|| variable("TEST_DATABASE_URL").or_else(start));
    if url.is_none() {
        assert!(
            variable("TEST_REQUIRE_ALL").as_deref() != Some("1"),
            "TEST_REQUIRE_ALL=1, but TEST_DATABASE_URL is not set and no initdb was found"
        );
        eprintln!("no Postgres: set TEST_DATABASE_URL, or put initdb and postgres on the PATH");
    }
    url.as_deref()
}

#[expect(clippy::disallowed_methods, reason = "settings of the test run, which config.rs must not know")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Starts a server in a temporary folder. It lives as long as this process: its guardian shell reads a
/// pipe that closes when we end, however we end.
#[expect(clippy::zombie_processes, reason = "the guardian shell lives as long as this process")]
fn start() -> Option<String> {
    let bin = binaries()?;
    let folder = tempfile::tempdir().unwrap().keep();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = format!(
        "set -e; cd {folder}; {bin}/initdb -D data -U postgres -A trust -E UTF8 >initdb.log 2>&1
         {bin}/postgres -D data -p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
            -c fsync=off >postgres.log 2>&1 & server=$!; read nothing || true; kill -INT $server; wait; rm -rf {folder}",
        folder = folder.display(),
        bin = bin.display(),
    );
    // Postgres refuses to run as root.
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    let mut command = if root {
        assert!(Command::new("chown").arg("postgres").arg(&folder).status().unwrap().success());
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", "sh", "-c", &script]);
        command
    } else {
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        command
    };
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // Held open until the process ends.
    std::mem::forget(child.stdin.take());
    for _ in 0..600 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(format!("postgres://postgres@127.0.0.1:{port}/postgres"));
        }
        assert!(child.try_wait().unwrap().is_none(), "Postgres did not start: see {}", folder.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("Postgres did not listen within 30 s: see {}", folder.display());
}

/// The folder of `initdb`: on the PATH, or where Debian puts it.
fn binaries() -> Option<PathBuf> {
    let path = variable("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = path.split(':').map(PathBuf::from).collect();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    folders.into_iter().find(|folder| Path::join(folder, "initdb").is_file())
}
