//! Table `service_secrets`: what processes of one database share and no user holds. The first to write a name decides
//! its value; the others read it.

use super::db::{Db, run};
use crate::clock::Millis;
use crate::error::{Error, Result};

/// The secret of that name; `draw` makes it where there is none yet.
pub async fn shared(db: &Db, name: &str, draw: impl FnOnce() -> String, now: Millis) -> Result<String> {
    const INSERT: &str =
        "INSERT INTO service_secrets (name, secret, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    if let Some(secret) = find(db, name).await? {
        return Ok(secret);
    }
    let drawn = draw();
    run!(db, |on| sqlx::query(INSERT).bind(name).bind(&drawn).bind(now).execute(on).await.map(drop))?;
    find(db, name).await?.ok_or_else(|| Error::internal(anyhow::anyhow!("the shared secret {name} vanished")))
}

/// The secret of that name, if there is one.
pub async fn find(db: &Db, name: &str) -> Result<Option<String>> {
    const SQL: &str = "SELECT secret FROM service_secrets WHERE name = $1";
    Ok(run!(db, |on| sqlx::query_scalar(SQL).bind(name).fetch_optional(on).await)?)
}
