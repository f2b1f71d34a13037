//! A database whose host has vanished: packets go nowhere, and no connection is closed. Whoever asks it gets an answer
//! within a bound, and everything works again when the host is back.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tunesmith::clock::Clock;
use tunesmith::error::Kind;
use tunesmith::jobs::{Held, Queue, sweep};
use tunesmith::store::jobs;
use tunesmith::store::{Db, Status};

use super::database::{Schema, block_on, postgres};
use super::{ACCOUNT, model_of, spec};

const LEASE: Duration = Duration::from_secs(60);
/// What the store promises of a statement, and something for a busy machine.
const BOUND: Duration = Duration::from_secs(30);

/// Forwards bytes to Postgres, or swallows them.
pub(crate) struct Line {
    pub(crate) port: u16,
    silent: Arc<watch::Sender<bool>>,
}

impl Line {
    pub(crate) async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = Arc::new(watch::Sender::new(false));
        let state = silent.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, state) = (server.clone(), state.clone());
                tokio::spawn(async move {
                    let server = TcpStream::connect(server).await.unwrap();
                    let (client, server) = (client.into_split(), server.into_split());
                    tokio::join!(
                        forward(client.0, server.1, state.subscribe()),
                        forward(server.0, client.1, state.subscribe())
                    );
                });
            }
        });
        Self { port, silent }
    }

    pub(crate) fn silence(&self, silent: bool) {
        self.silent.send_replace(silent);
    }
}

/// Bytes of a connection that was up while the line was silent are lost for good: it never speaks again.
async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut silent: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = silent.wait_for(|silent| *silent) => Ok(1),
        };
        if *silent.borrow() {
            // Neither closed nor answered.
            std::future::pending::<()>().await;
        }
        match read {
            Ok(1..) if to.write_all(&buffer[..read.unwrap_or(0)]).await.is_ok() => {}
            _ => return,
        }
    }
}

#[test]
fn a_postgres_that_falls_silent_hangs_neither_a_slot_nor_the_sweep_and_loses_no_job() {
    let Some(url) = postgres() else { return };
    block_on(async {
        let schema = Schema::create(url).await;
        let server = url.split('@').nth(1).unwrap().split('/').next().unwrap();
        let line = Line::to(server.to_string()).await;
        let through = schema.url.replace(server, &format!("127.0.0.1:{}", line.port));
        let (db, clock) = (Db::connect(&through).await.unwrap(), Clock::system());
        db.migrate().await.unwrap();
        let queue = Queue::new(db.clone(), clock.clone(), LEASE);
        jobs::insert(&db, &spec(1), &[]).await.unwrap();
        let claim = queue.claim("a").await.unwrap().unwrap();

        // Silent in the middle of statements: more at once than there are connections.
        let busy = (0..40).map(|_| {
            let db = db.clone();
            tokio::spawn(async move { while db.ping().await.is_ok() {} })
        });
        let busy: Vec<_> = busy.collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        line.silence(true);
        let within = async |what: &str, asked: &mut (dyn Future<Output = Kind> + Unpin)| {
            let kind = tokio::time::timeout(BOUND, asked).await.unwrap_or_else(|_| panic!("{what} hangs"));
            assert_eq!(kind, Kind::Unavailable, "{what}");
        };
        let kind = |error: tunesmith::error::Error| error.kind();
        within("a claim", &mut Box::pin(async { queue.claim("b").await.err().map(kind).unwrap() })).await;
        within("a renewal", &mut Box::pin(async { claim.renew().await.err().map(kind).unwrap() })).await;
        within(
            "the sweep",
            &mut Box::pin(async { sweep::sweep(&db, &clock, clock.database()).await.err().map(kind).unwrap() }),
        )
        .await;
        for task in busy {
            tokio::time::timeout(BOUND, task).await.expect("a statement hangs").unwrap();
        }

        // The places of the connections that were lost are free again.
        line.silence(false);
        let begun = clock.monotonic();
        while let Err(error) = claim.renew().await {
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(clock.monotonic().duration_since(begun) < BOUND, "it does not come back: {}", error.log());
        }
        assert_eq!(claim.renew().await.unwrap(), Some(Status::InProgress));
        assert_eq!(claim.complete(&model_of(&claim.job, 5)).await.unwrap(), Held::Yes);
        assert_eq!(jobs::find(&db, ACCOUNT, "job-1").await.unwrap().unwrap().status, Status::Completed);
        schema.remove().await;
    });
}

#[test]
fn every_connection_to_postgres_has_its_limits_and_a_migration_has_none() {
    let Some(url) = postgres() else { return };
    block_on(async {
        let schema = Schema::create(url).await;
        let db = Db::connect(&schema.url).await.unwrap();
        let Db::Postgres(pool) = &db else { panic!("{}", schema.url) };
        let limit = async |name: &str| -> String {
            let sql = sqlx::AssertSqlSafe(format!("SHOW {name}"));
            sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
        };
        assert_eq!(limit("statement_timeout").await, "15s");
        assert_eq!(limit("lock_timeout").await, "5s");
        assert_eq!(limit("idle_in_transaction_session_timeout").await, "15s");
        // A statement that is too slow is an outage, and no fault of the caller's or ours.
        let mut one = pool.acquire().await.unwrap();
        sqlx::query("SET statement_timeout = 50").execute(&mut *one).await.unwrap();
        let slow: sqlx::Error = sqlx::query("SELECT pg_sleep(5)").execute(&mut *one).await.unwrap_err();
        assert_eq!(tunesmith::error::Error::from(slow).kind(), Kind::Unavailable);
        one.close().await.unwrap();

        // A migration that waits for a lock waits longer than a statement may: for one that another process is at.
        db.migrate().await.unwrap();
        let mut other = pool.begin().await.unwrap();
        sqlx::query("LOCK TABLE _sqlx_migrations").execute(&mut *other).await.unwrap();
        let begun = Clock::system().monotonic();
        let release = async move {
            while Clock::system().monotonic().duration_since(begun) < Duration::from_secs(6) {
                tokio::time::sleep(Duration::from_millis(500)).await;
                sqlx::query("SELECT 1").execute(&mut *other).await.unwrap();
            }
            other.rollback().await.unwrap();
        };
        let (migrated, ()) = tokio::join!(db.migrate(), release);
        migrated.unwrap();

        // What the operator's URL says stands.
        let own = format!("{}&options[lock_timeout]=1s", schema.url);
        let Db::Postgres(own) = Db::connect(&own).await.unwrap() else { panic!("{}", schema.url) };
        let limit: String = sqlx::query_scalar("SHOW lock_timeout").fetch_one(&own).await.unwrap();
        assert_eq!(limit, "1s");
        own.close().await;
        db.close().await;
        schema.remove().await;
    });
}
