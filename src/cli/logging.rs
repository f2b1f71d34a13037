//! How much is logged, and in which form.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The settings of the log, which every command has.
#[derive(clap::Args)]
pub(super) struct Logging {
    /// What to log: a level, or levels by module such as `info,tunesmith::http=debug`; `info` when absent,
    /// and `warn` for commands that show their own progress
    #[arg(long, env = "TUNESMITH_LOG", global = true)]
    log: Option<String>,

    /// Lines for people, or JSON objects for machines
    #[arg(long, env = "TUNESMITH_LOG_FORMAT", value_enum, default_value = "text", global = true)]
    log_format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Logging {
    /// Starts logging to standard error; standard output belongs to what a command prints.
    /// `usual` is the level where none was asked for.
    pub(super) fn start(&self, usual: &str) {
        let wanted = self.log.as_deref().unwrap_or(usual);
        let filter = EnvFilter::try_new(wanted).unwrap_or_else(|cause| {
            eprintln!("tunesmith: --log {wanted:?} cannot be read ({cause}); logging at {usual}");
            EnvFilter::new(usual)
        });
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
            Format::Json => lines.json().init(),
        }
    }
}
