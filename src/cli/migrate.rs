//! `tunesmith migrate`: for deployments that bring up the schema in a step of its own; `serve` does it too.

use crate::config::Config;
use crate::error::Result;
use crate::store::Db;

#[derive(clap::Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    config: Config,
}

impl Migrate {
    pub(super) async fn run(self) -> Result<()> {
        let config = self.config.checked()?;
        config.open_data_dir()?;
        let db = Db::connect(config.database().expose()).await?;
        db.migrate().await?;
        println!("The database is up to date.");
        db.close().await;
        Ok(())
    }
}
