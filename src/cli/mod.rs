//! The command line: one file per command. Settings are flags with environment variables of the same
//! meaning; each command's `--help` explains them.

mod accounts;
mod bench;
mod demo;
mod doctor;
mod estimate;
mod inspect;
mod job;
mod keys;
mod logging;
mod migrate;
mod models;
mod openapi;
mod scratch;
mod serve;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Kind, Result};

/// A self-hosted service with the wire contract of Amazon Bedrock's model-customization API
#[derive(Parser)]
#[command(name = "tunesmith", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logging: logging::Logging,
}

#[derive(Subcommand)]
enum Command {
    /// Tune the starter model on support tickets, from nothing to its answers, in one go
    Demo(demo::Demo),
    /// Run the service: the API, the trainer, or both
    Serve(serve::Serve),
    /// Run only the trainer, against a database and an object store that API processes share
    Worker(serve::Worker),
    /// Bring the database's schema up to this version and exit
    Migrate(migrate::Migrate),
    /// Check what the service stands on: database, object store, folders, devices, memory; exit code 1 when one fails
    Doctor(doctor::Doctor),
    /// Train from a job file on this machine, without the service
    Train(train::Args),
    /// Measure how fast this machine trains
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Say what a job file will take before it runs: tokens, memory and time
    Estimate(estimate::Args),
    /// Add, list and revoke the keys that open the API
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Make, list and disable accounts, and assign parts of object storage to them
    #[command(subcommand)]
    Accounts(accounts::Accounts),
    /// Look at the base models, and merge adapters into them
    #[command(subcommand)]
    Models(models::Models),
    /// Print the OpenAPI document of the API
    Openapi,
    /// Inspect a model that a caller brought, as the importer does
    #[command(hide = true)]
    InspectModel(inspect::InspectModel),
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    rest_between_operations();
    let Cli { command, logging } = Cli::parse();
    // A progress bar and log lines do not share a terminal well.
    logging.start(match command {
        Command::Demo(_) => "warn",
        // Its table says everything, and stays one.
        Command::Doctor(_) => "off",
        _ => "info",
    });
    if command.keeps_data() {
        create_files_for_the_owner_only();
        raise_open_files();
    }
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A person at a terminal may know the cause; only callers over the wire may not.
            match error.cause().filter(|_| error.kind() == Kind::Validation) {
                Some(cause) => eprintln!("tunesmith: {} ({cause})", error.message()),
                None => eprintln!("tunesmith: {}", error.message()),
            }
            tracing::debug!(cause = %error.log(), "the command failed");
            ExitCode::FAILURE
        }
    }
}

/// Between two of its element-wise operations candle's own threads spin for a while, and take from ours, which
/// do everything else, a tenth of the machine: they are told to sleep at once.
#[expect(unsafe_code, reason = "candle reads this from the environment alone")]
#[expect(clippy::disallowed_methods, reason = "no setting of ours")]
fn rest_between_operations() {
    const SPINS: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(SPINS).is_none() {
        // SAFETY: this is the first thing that the process does: no other thread reads the environment yet.
        unsafe { std::env::set_var(SPINS, "1") };
    }
}

/// Everything this process creates from now on is closed to other users: database, objects, caches, checkpoints.
#[expect(unsafe_code, reason = "the standard library has no call for it")]
fn create_files_for_the_owner_only() {
    // SAFETY: umask(2) cannot fail and touches no memory; no other thread creates files yet.
    unsafe { libc::umask(0o077) };
}

/// Open files up to the hard limit: the connections of both listeners alone may be more than the usual soft limit of
/// 1,024, and a service without descriptors can neither answer nor write a checkpoint.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(cause) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!("the limit of open files stays at {:?}: {cause}", limit.current);
    }
}

impl Command {
    /// Whether the command writes into the service's data folder, rather than files that its user asked for.
    fn keeps_data(&self) -> bool {
        use Command::{Accounts, Demo, Doctor, Keys, Migrate, Serve, Worker};
        matches!(self, Demo(_) | Doctor(_) | Serve(_) | Worker(_) | Migrate(_) | Keys(_) | Accounts(_))
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo(demo) => block_on(demo.run()),
        Command::Serve(serve) => block_on_with(serve.blocking_threads(), serve.run()),
        Command::Worker(worker) => block_on_with(worker.blocking_threads(), worker.run()),
        Command::Migrate(migrate) => block_on(migrate.run()),
        Command::Doctor(doctor) => block_on(doctor.run()),
        Command::Train(args) => train::run(&args),
        Command::Bench(bench) => bench.run(),
        Command::Estimate(args) => estimate::run(&args),
        Command::Keys(keys) => block_on(keys.run()),
        Command::Accounts(accounts) => block_on(accounts.run()),
        Command::Models(models) => models.run(),
        Command::Openapi => {
            openapi::run();
            Ok(())
        }
        Command::InspectModel(inspection) => inspection.run(),
    }
}

/// `NAME=VALUE`, for `--set`.
fn hyper_parameter(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_string(), value.to_string()))
}

/// Threads that may block, for files and the embedded stores: what the runtime has by itself.
const BLOCKING_THREADS: usize = 512;

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    block_on_with(0, work)
}

/// Runs `work` with so many threads more that may block. Answers take theirs for as long as they last, and must leave
/// enough for files and for the embedded stores.
fn block_on_with(more: usize, work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().max_blocking_threads(BLOCKING_THREADS.saturating_add(more)).build()?;
    let ended = runtime.block_on(work);
    // A thread that blocks cannot be told to end: it ends with the process, which does not wait for it.
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
