//! `tunesmith serve` and `tunesmith worker`: the same service with another role.

use std::path::PathBuf;

use crate::config::{Config, Role};
use crate::error::Result;
use crate::service;

#[derive(clap::Args)]
pub(super) struct Serve {
    #[command(flatten)]
    config: Config,

    /// What this process does; many of each may share one Postgres and one S3
    #[arg(long, env = "TUNESMITH_ROLE", value_enum, default_value = "all")]
    role: Role,

    /// Write the bound addresses to this file as JSON once the service is ready, for scripts that ask for port 0
    #[arg(long, env = "TUNESMITH_READY_FILE")]
    ready_file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(super) struct Worker {
    #[command(flatten)]
    config: Config,

    /// Write a JSON object to this file once the worker is ready
    #[arg(long, env = "TUNESMITH_READY_FILE")]
    ready_file: Option<PathBuf>,
}

impl Serve {
    /// Threads that answers may take.
    pub(super) fn blocking_threads(&self) -> usize {
        self.config.serving.blocking_threads()
    }

    pub(super) async fn run(self) -> Result<()> {
        service::run(self.config.checked()?, self.role, self.ready_file).await
    }
}

impl Worker {
    /// As [`Serve::blocking_threads`].
    pub(super) fn blocking_threads(&self) -> usize {
        self.config.serving.blocking_threads()
    }

    pub(super) async fn run(self) -> Result<()> {
        service::run(self.config.checked()?, Role::Worker, self.ready_file).await
    }
}
