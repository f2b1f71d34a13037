//! `tunesmith models`: which base models this installation has, and why a folder was left out.

use crate::config::Config;
use crate::error::Result;
use crate::models::{Customization, Registry};
use crate::service;

#[derive(clap::Subcommand)]
pub(super) enum Models {
    /// List the base models, and the folders that cannot be used with the reason
    List(List),
}

#[derive(clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    config: Config,
}

impl Models {
    pub(super) fn run(self) -> Result<()> {
        let Self::List(List { config }) = self;
        let registry = Registry::open(&service::model_folders(&config.checked()?)?)?;
        println!("{:<44} {:>8} {:<5} CUSTOMIZATIONS", "ID", "CONTEXT", "CHAT");
        for model in registry.all() {
            let customizations: Vec<_> = model.customizations.iter().copied().map(Customization::name).collect();
            let chat = if model.chat { "yes" } else { "no" };
            println!("{:<44} {:>8} {chat:<5} {}", model.id, model.context_length, customizations.join(", "));
        }
        for left_out in registry.unreadable() {
            println!("left out: {}: {}", left_out.dir.display(), left_out.reason);
        }
        Ok(())
    }
}
