//! `tunesmith keys`: who may call. Keys are looked up at every request, so a revoked key is refused at
//! once by every process.

use std::time::Duration;

use clap::ValueEnum;

use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::http::credentials::{draw_bearer, draw_pair};
use crate::store::Db;
use crate::store::keys::{self, Key, KeyKind};

#[derive(clap::Subcommand)]
pub(super) enum Keys {
    /// Make a key and print its secret, once
    Add(Add),
    /// List the account's keys, without their secrets
    List(List),
    /// Refuse a key from now on
    Revoke(Revoke),
}

#[derive(clap::Args)]
pub(super) struct Add {
    #[command(flatten)]
    config: Config,

    /// An access key pair that signs requests, or a bearer key
    #[arg(value_enum, default_value = "pair")]
    kind: Kind,

    /// What the key is for
    #[arg(long, default_value = "")]
    note: String,

    /// Refuse the key after this many hours; without it the key lasts until it is revoked
    #[arg(long)]
    expires_in_hours: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Pair,
    Bearer,
}

#[derive(clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    config: Config,
}

#[derive(clap::Args)]
pub(super) struct Revoke {
    #[command(flatten)]
    config: Config,

    /// The key's id, as listed
    id: String,
}

impl Keys {
    pub(super) async fn run(self) -> Result<()> {
        match self {
            Self::Add(add) => add.run().await,
            Self::List(list) => list.run().await,
            Self::Revoke(revoke) => revoke.run().await,
        }
    }
}

async fn open(config: Config) -> Result<(Config, Clock, Db)> {
    let config = config.checked()?;
    let db = Db::connect(config.database().expose()).await?;
    db.migrate().await?;
    Ok((config, Clock::system(), db))
}

impl Add {
    async fn run(self) -> Result<()> {
        let (config, clock, db) = open(self.config).await?;
        let now = clock.now();
        let lifetime = self.expires_in_hours.map(|hours| Duration::from_secs(u64::from(hours) * 3600));
        let key = |id: String, kind| Key {
            id,
            account_id: config.account_id.clone(),
            kind,
            note: self.note.clone(),
            created_at: now,
            expires_at: lifetime.map(|lifetime| now + lifetime.as_millis() as Millis),
            revoked_at: None,
        };
        match self.kind {
            Kind::Pair => {
                let (id, secret) = draw_pair(&clock);
                keys::insert_signing(&db, &key(id.clone(), KeyKind::SigV4), secret.expose()).await?;
                // The one time it is shown.
                println!("AWS_ACCESS_KEY_ID={id}\nAWS_SECRET_ACCESS_KEY={}", secret.expose());
            }
            Kind::Bearer => {
                let secret = draw_bearer(&clock);
                let id = format!("bearer-{}", clock.id());
                keys::insert_bearer(&db, &key(id.clone(), KeyKind::Bearer), secret.expose()).await?;
                println!("# {id}\nAWS_BEARER_TOKEN_BEDROCK={}", secret.expose());
            }
        }
        Ok(())
    }
}

impl List {
    async fn run(self) -> Result<()> {
        let (config, clock, db) = open(self.config).await?;
        let now = clock.now();
        println!("{:<24} {:<7} {:<9} {:<25} NOTE", "ID", "KIND", "STATE", "CREATED");
        for key in keys::list(&db, &config.account_id).await? {
            let state = match (key.revoked_at, key.is_valid(now)) {
                (Some(_), _) => "revoked",
                (None, false) => "expired",
                (None, true) => "valid",
            };
            let created =
                jiff::Timestamp::from_millisecond(key.created_at).map_or_else(|_| "?".into(), |t| t.to_string());
            println!("{:<24} {:<7} {state:<9} {created:<25} {}", key.id, key.kind.as_str(), key.note);
        }
        Ok(())
    }
}

impl Revoke {
    async fn run(self) -> Result<()> {
        let (config, clock, db) = open(self.config).await?;
        if !keys::revoke(&db, &config.account_id, &self.id, clock.now()).await? {
            return Err(Error::not_found(format!("There is no valid key {:?}; see `tunesmith keys list`", self.id)));
        }
        println!("{} is revoked.", self.id);
        Ok(())
    }
}
