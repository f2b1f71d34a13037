//! Runs jobs. [`pool`] has one slot per device, each of which claims a job and hands it to [`run`],
//! which brings the data, trains on a thread of its own and publishes the result, while [`lease`] renews
//! the claim behind it. What ends an attempt early is one flag ([`halt`]); what was being done is kept in
//! `checkpoints`.

mod checkpoints;
mod halt;
mod import_files;
mod imports;
mod inspection;
mod lease;
mod observer;
mod pool;
mod presence;
mod reporter;
mod retry;
mod run;
mod scratch;
mod stages;
mod transfer;

use std::sync::Arc;

pub use pool::Pool;

use crate::app::App;
use crate::error::Result;
use crate::jobs::Queue;
use crate::train::TrainingDevice;

/// What every attempt of this process shares.
#[derive(Debug)]
struct Worker {
    app: Arc<App>,
    queue: Queue,
    presence: presence::Presence,
}

/// The devices that a setting names, each of which becomes a slot.
///
/// # Errors
/// `Validation` for a device that this build or this machine does not have.
pub fn devices(setting: &str) -> Result<Vec<String>> {
    Ok(TrainingDevice::parse(setting)?.iter().map(ToString::to_string).collect())
}
