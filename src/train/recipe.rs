//! The run, from data to artifact, top to bottom.

use super::{Observer, Outcome, Plan, StopFlag};
use crate::error::Result;

/// Runs `plan`, going on from the newest whole checkpoint in its work folder.
///
/// # Errors
/// When the data or the base model cannot be used (the message says why), or the run diverged.
pub fn run(_plan: &Plan, _observer: &mut dyn Observer, _stop: &StopFlag) -> Result<Outcome> {
    Err(crate::error::Error::internal(anyhow::anyhow!("the recipe has not landed")))
}
