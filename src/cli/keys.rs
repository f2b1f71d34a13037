//! `tunesmith keys`: who may call. Keys are looked up at every request, so a revoked key is refused at
//! once by every process.

use std::time::Duration;

use crate::clock::{Clock, Millis};
use crate::config::{Config, Prefix};
use crate::error::{Error, Result};
use crate::http::credentials::{self, draw_bearer, draw_pair, draw_temporary};
use crate::http::policy::Operations;
use crate::routes;
use crate::store::Db;
use crate::store::keys::{self, Key, KeyKind, Policy};

/// What a temporary pair lives when nothing is said, and at most (AWS, GetSessionToken).
const TEMPORARY: (Duration, Duration) = (Duration::from_secs(12 * 3600), Duration::from_secs(36 * 3600));
/// What a bearer key with an end lives at most (AWS, short-term Bedrock API keys).
const SHORT_TERM: Duration = Duration::from_secs(12 * 3600);

#[derive(clap::Subcommand)]
pub(super) enum Keys {
    /// Make a key and print its secret, once
    #[command(visible_alias = "add")]
    Create(Create),
    /// List the account's keys, without their secrets
    List(List),
    /// Refuse a key from now on
    Revoke(Revoke),
    /// Draw new root keys, revoke those before them, and keep them in the data folder's file
    Rotate(Rotate),
}

#[derive(clap::Args)]
pub(super) struct Create {
    #[command(flatten)]
    config: Config,

    /// Whose the key is; the account that TUNESMITH_ACCOUNT_ID names when absent
    #[arg(long = "account", value_name = "ID", value_parser = super::accounts::account_id)]
    account: Option<String>,

    /// A bearer key instead of an access key pair
    #[arg(long, conflicts_with = "temporary")]
    bearer: bool,

    /// A pair that comes with a session token and always ends: after 12 hours, or --ttl up to 36 hours
    #[arg(long)]
    temporary: bool,

    /// Refuse the key after this time (90s, 30m, 12h), a bearer key after at most 12 hours; without it a key that
    /// is not temporary lasts until it is revoked
    #[arg(long, value_parser = ttl)]
    ttl: Option<Duration>,

    /// What the key is for
    #[arg(long, default_value = "")]
    note: String,

    /// Allow only operations that get or list
    #[arg(long)]
    read_only: bool,

    /// Allow only this operation (GetModelCustomizationJob); may be repeated
    #[arg(long = "operation", value_name = "OPERATION")]
    operations: Vec<String>,

    /// Allow requests to name only this part of object storage (s3://bucket/folder); may be repeated
    #[arg(long = "bucket", value_name = "S3_URI")]
    buckets: Vec<Prefix>,
}

/// `12h`, `1h 30m`, `90s`.
fn ttl(text: &str) -> Result<Duration, String> {
    let span = text.parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    span.filter(|span| !span.is_zero()).ok_or_else(|| "write a time such as 90s, 30m or 12h".to_string())
}

#[derive(clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    config: Config,

    /// Whose keys; the account that TUNESMITH_ACCOUNT_ID names when absent
    #[arg(long = "account", value_name = "ID", value_parser = super::accounts::account_id)]
    account: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct Revoke {
    #[command(flatten)]
    config: Config,

    /// Whose the key is; the account that TUNESMITH_ACCOUNT_ID names when absent
    #[arg(long = "account", value_name = "ID", value_parser = super::accounts::account_id)]
    account: Option<String>,

    /// The key's id, as listed
    id: String,
}

#[derive(clap::Args)]
pub(super) struct Rotate {
    #[command(flatten)]
    config: Config,
}

impl Keys {
    pub(super) async fn run(self) -> Result<()> {
        match self {
            Self::Create(create) => create.run().await,
            Self::List(list) => list.run().await,
            Self::Revoke(revoke) => revoke.run().await,
            Self::Rotate(rotate) => rotate.run().await,
        }
    }
}

pub(super) async fn open(config: Config) -> Result<(Config, Clock, Db)> {
    let config = config.checked()?;
    config.open_data_dir()?;
    let db = Db::connect(config.database().expose()).await?;
    db.migrate().await?;
    Ok((config, Clock::system(), db))
}

impl Create {
    /// The key's time to live, within what AWS allows for its kind.
    fn lifetime(&self) -> Result<Option<Duration>> {
        let (usual, most, what) = match (self.temporary, self.bearer) {
            (true, _) => (Some(TEMPORARY.0), TEMPORARY.1, "temporary credentials live"),
            (false, true) => (None, SHORT_TERM, "a bearer key with an end lives"),
            (false, false) => return Ok(self.ttl),
        };
        match self.ttl.or(usual) {
            Some(ttl) if ttl > most => {
                Err(Error::validation(format!("{what} at most {} hours: give a shorter --ttl", most.as_secs() / 3600)))
            }
            ttl => Ok(ttl),
        }
    }

    /// What the key may do; `None` is everything.
    fn policy(&self) -> Result<Option<Policy>> {
        let operations = Operations::of(&routes::document());
        let names = operations.names();
        if let Some(unknown) = self.operations.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(Error::validation(format!(
                "There is no operation {unknown:?} for --operation: use one of {}",
                names.join(", ")
            )));
        }
        let policy = Policy {
            read_only: self.read_only,
            operations: self.operations.clone(),
            buckets: self.buckets.iter().map(Prefix::to_string).collect(),
        };
        Ok((policy != Policy::default()).then_some(policy))
    }

    async fn run(self) -> Result<()> {
        let (lifetime, policy) = (self.lifetime()?, self.policy()?);
        let (config, clock, db) = open(self.config).await?;
        let now = clock.now();
        let account_id = match self.account {
            Some(id) if id != config.account_id => super::accounts::expect(&db, &id).await?.id,
            _ => config.account_id,
        };
        let key = |id: &str, kind| Key {
            id: id.to_string(),
            account_id: account_id.clone(),
            kind,
            note: self.note.clone(),
            created_at: now,
            expires_at: lifetime.map(|lifetime| now.saturating_add(lifetime.as_millis() as Millis)),
            revoked_at: None,
            policy: policy.clone().map(Into::into),
        };
        // The one time any of them is shown.
        if self.bearer {
            let secret = draw_bearer(&clock);
            let id = format!("bearer-{}", clock.id());
            keys::insert_bearer(&db, &key(&id, KeyKind::Bearer), secret.expose()).await?;
            println!("# {id}\nAWS_BEARER_TOKEN_BEDROCK={}", secret.expose());
        } else if self.temporary {
            let (id, secret, token) = draw_temporary(&clock);
            keys::insert_temporary(&db, &key(&id, KeyKind::SigV4), secret.expose(), token.expose()).await?;
            println!("AWS_ACCESS_KEY_ID={id}\nAWS_SECRET_ACCESS_KEY={}", secret.expose());
            println!("AWS_SESSION_TOKEN={}", token.expose());
        } else {
            let (id, secret) = draw_pair(&clock);
            keys::insert_signing(&db, &key(&id, KeyKind::SigV4), secret.expose()).await?;
            println!("AWS_ACCESS_KEY_ID={id}\nAWS_SECRET_ACCESS_KEY={}", secret.expose());
        }
        Ok(())
    }
}

impl List {
    async fn run(self) -> Result<()> {
        let (config, clock, db) = open(self.config).await?;
        let now = clock.now();
        println!("{:<24} {:<7} {:<8} {:<25} {:<25} {:<12} NOTE", "ID", "KIND", "STATE", "CREATED", "ENDS", "MAY");
        for key in keys::list(&db, self.account.as_ref().unwrap_or(&config.account_id)).await? {
            let state = match (key.revoked_at, key.is_valid(now)) {
                (Some(_), _) => "revoked",
                (None, false) => "expired",
                (None, true) => "valid",
            };
            let (id, kind, may) = (&key.id, key.kind.as_str(), may(key.policy.as_deref()));
            let (created, ends) = (shown(key.created_at), key.expires_at.map_or_else(|| "never".into(), shown));
            println!("{id:<24} {kind:<7} {state:<8} {created:<25} {ends:<25} {may:<12} {}", key.note);
        }
        Ok(())
    }
}

fn shown(time: Millis) -> String {
    jiff::Timestamp::from_millisecond(time).map_or_else(|_| "?".into(), |time| time.to_string())
}

/// A policy in a word for each limit.
fn may(policy: Option<&Policy>) -> String {
    let Some(policy) = policy else { return "everything".into() };
    let read_only = policy.read_only.then(|| "read".to_string());
    let limits: Vec<_> = read_only.iter().chain(&policy.operations).chain(&policy.buckets).cloned().collect();
    limits.join(",")
}

impl Revoke {
    async fn run(self) -> Result<()> {
        let (config, clock, db) = open(self.config).await?;
        if !keys::revoke(&db, self.account.as_ref().unwrap_or(&config.account_id), &self.id, clock.now()).await? {
            return Err(Error::not_found(format!("There is no valid key {:?}; see `tunesmith keys list`", self.id)));
        }
        println!("{} is revoked.", self.id);
        Ok(())
    }
}

impl Rotate {
    async fn run(self) -> Result<()> {
        let (config, clock, db) = open(self.config).await?;
        if config.root_access_key.is_some() || config.root_bearer_key.is_some() {
            return Err(Error::validation(
                "The root keys are preset by TUNESMITH_ROOT_*: to rotate, set others there and restart the service",
            ));
        }
        let path = credentials::rotate(&config, &clock, &db).await?;
        let path = path.canonicalize().unwrap_or(path);
        println!("The root keys before are revoked. The new ones are in a file for its owner only. To use them:");
        println!("export AWS_SHARED_CREDENTIALS_FILE={}", path.display());
        Ok(())
    }
}
