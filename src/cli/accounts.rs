//! `tunesmith accounts`: who shares a database, and which parts of object storage each may use. Everything is looked up
//! at every request, so what is said here holds at once in every process.

use crate::clock::{Clock, Millis};
use crate::config::{Config, Prefix, is_account_id};
use crate::error::{Error, Result};
use crate::store::Db;
use crate::store::accounts::{self, Assignment, Source};

#[derive(clap::Subcommand)]
pub(super) enum Accounts {
    /// Make an account and print its id
    Create(Create),
    /// List the accounts and what is assigned to each
    List(List),
    /// Refuse all keys of an account from now on; its running jobs go on
    Disable(Named),
    /// Take the keys of a disabled account again
    Enable(Named),
    /// Let an account use a part of object storage beside the buckets that it makes in the embedded store
    Grant(Place),
    /// Take back what was granted
    Withdraw(Place),
}

#[derive(clap::Args)]
pub(super) struct Create {
    #[command(flatten)]
    config: Config,

    /// What people call the account
    #[arg(long)]
    name: String,

    /// Its twelve digits; drawn at random when absent
    #[arg(long = "id", value_parser = account_id)]
    id: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    config: Config,
}

#[derive(clap::Args)]
pub(super) struct Named {
    #[command(flatten)]
    config: Config,

    /// The account's id, as listed
    #[arg(value_parser = account_id)]
    id: String,
}

#[derive(clap::Args)]
pub(super) struct Place {
    #[command(flatten)]
    config: Config,

    /// The account's id, as listed
    #[arg(value_parser = account_id)]
    id: String,

    /// s3://bucket or s3://bucket/folder
    #[arg(required = true)]
    places: Vec<Prefix>,
}

/// Twelve digits.
pub(super) fn account_id(text: &str) -> Result<String, String> {
    match is_account_id(text) {
        true => Ok(text.to_string()),
        false => Err("an account's id has twelve digits".to_string()),
    }
}

impl Accounts {
    pub(super) async fn run(self) -> Result<()> {
        match self {
            Self::Create(create) => create.run().await,
            Self::List(list) => list.run().await,
            Self::Disable(named) => named.set_disabled(true).await,
            Self::Enable(named) => named.set_disabled(false).await,
            Self::Grant(place) => place.grant().await,
            Self::Withdraw(place) => place.withdraw().await,
        }
    }
}

/// The accounts' database, with the configured account in it.
async fn open(config: Config) -> Result<(Config, Clock, Db)> {
    let (config, clock, db) = super::keys::open(config).await?;
    accounts::insert(&db, &config.account_id, "root", clock.now()).await?;
    Ok((config, clock, db))
}

/// Refuses an account that is not there.
pub(super) async fn expect(db: &Db, id: &str) -> Result<accounts::Account> {
    let found = accounts::find(db, id).await?;
    found.ok_or_else(|| {
        Error::not_found(format!(
            "There is no account {id}: `tunesmith accounts list` shows all, `tunesmith accounts create --name NAME --id \
             {id}` makes it"
        ))
    })
}

impl Create {
    async fn run(self) -> Result<()> {
        let name = self.name.trim();
        if name.is_empty() || name.chars().any(char::is_control) || name.chars().count() > 64 {
            return Err(Error::validation("--name must have 1 to 64 characters, all of them visible"));
        }
        let (_, clock, db) = open(self.config).await?;
        let drawn = || {
            let number = u64::from_be_bytes(clock.random::<8>()) % 900_000_000_000 + 100_000_000_000;
            number.to_string()
        };
        let id = self.id.clone().unwrap_or_else(drawn);
        if !accounts::insert(&db, &id, name, clock.now()).await? {
            return Err(Error::validation(format!("There is an account {id} already: choose another --id")));
        }
        println!("{id}");
        Ok(())
    }
}

impl List {
    async fn run(self) -> Result<()> {
        let (config, _, db) = open(self.config).await?;
        println!("{:<12} {:<9} {:<25} {:<24} STORAGE", "ID", "STATE", "CREATED", "NAME");
        for account in accounts::list(&db).await? {
            let state = if account.disabled_at.is_some() { "disabled" } else { "enabled" };
            let mut storage: Vec<_> = accounts::assigned_to(&db, &account.id).await?.iter().map(shown).collect();
            if account.id == config.account_id && config.s3_endpoint.is_some() {
                storage.insert(0, "all that is assigned to no other account".to_string());
            }
            storage.dedup();
            let (created, storage) = (time(account.created_at), storage.join(" "));
            println!("{:<12} {state:<9} {created:<25} {:<24} {storage}", account.id, account.name);
        }
        Ok(())
    }
}

fn shown(assignment: &Assignment) -> String {
    match assignment.folder.as_str() {
        "" => format!("s3://{}", assignment.bucket),
        folder => format!("s3://{}/{folder}", assignment.bucket),
    }
}

fn time(at: Millis) -> String {
    jiff::Timestamp::from_millisecond(at).map_or_else(|_| "?".into(), |time| time.to_string())
}

impl Named {
    async fn set_disabled(self, disabled: bool) -> Result<()> {
        let (config, clock, db) = open(self.config).await?;
        if self.id == config.account_id {
            return Err(Error::validation(format!(
                "{} is the account that TUNESMITH_ACCOUNT_ID names: it cannot be disabled; `tunesmith keys revoke` \
                 refuses single keys",
                self.id
            )));
        }
        expect(&db, &self.id).await?;
        accounts::set_disabled(&db, &self.id, disabled.then(|| clock.now())).await?;
        println!("{} is {}.", self.id, if disabled { "disabled" } else { "enabled" });
        Ok(())
    }
}

impl Place {
    fn assignments(&self) -> impl Iterator<Item = (&Prefix, Assignment)> {
        self.places.iter().map(|place| {
            let (bucket, folder) = (place.bucket().to_string(), place.folder().to_string());
            (place, Assignment { account_id: self.id.clone(), bucket, folder, source: Source::Command })
        })
    }

    async fn grant(self) -> Result<()> {
        let (_, clock, db) = open(self.config.clone()).await?;
        expect(&db, &self.id).await?;
        for (place, assignment) in self.assignments() {
            accounts::assign(&db, &assignment, clock.now()).await?;
            println!("{} may use {place}.", self.id);
        }
        Ok(())
    }

    async fn withdraw(self) -> Result<()> {
        let (_, _, db) = open(self.config.clone()).await?;
        for (place, assignment) in self.assignments() {
            if !accounts::withdraw(&db, &assignment).await? {
                return Err(Error::not_found(format!(
                    "{place} was not granted to {} by `tunesmith accounts grant`: what the file of accounts assigns is \
                     taken back there",
                    self.id
                )));
            }
            println!("{} may no longer use {place} by this grant.", self.id);
        }
        Ok(())
    }
}
