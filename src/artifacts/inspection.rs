//! Inspection of models that callers brought, inside a process that does nothing else. Its memory and its processor
//! time are limited by the operating system, so that a file which no check foresaw ends this process and not the
//! service. What was found is a [`Verdict`] on standard output.

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::received::{Received, check_adapter, check_model};
use crate::error::{Error, Kind, Result};

/// Address space beyond the memory that may be written: the program itself, and what allocators reserve and leave
/// untouched.
const RESERVED: u64 = 4 << 30;

/// What an inspection found.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// A whole model that can be served.
    Model(Received),
    /// An adapter that fits its base.
    Adapter,
    /// Neither; the message says what its owner has to mend.
    Refused(String),
    /// The inspection itself failed; the cause is for the log.
    Failed(String),
}

/// Limits this process for good: to `memory` bytes that it may write to, and to `seconds` of processor time. It may
/// write no file and leaves no dump of its memory.
///
/// # Errors
/// When the operating system refuses.
pub fn confine(memory: u64, seconds: u64) -> Result<()> {
    for (resource, most, grace) in [
        (Resource::Data, memory, 0),
        (Resource::As, memory.saturating_add(RESERVED), 0),
        // The soft limit sends a signal that names the reason, the hard one ends the process whatever it does.
        (Resource::Cpu, seconds, 5),
        (Resource::Fsize, 0, 0),
        (Resource::Core, 0, 0),
    ] {
        let allowed = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit = Rlimit { current: Some(most.min(allowed)), maximum: Some((most + grace).min(allowed)) };
        setrlimit(resource, limit).map_err(|cause| Error::internal(cause).at(format!("limiting {resource:?}")))?;
    }
    Ok(())
}

/// Checks the whole model in `dir`, or the adapter in it against the base in `base`.
pub fn inspect(dir: &Path, base: Option<&Path>) -> Verdict {
    let found = match base {
        Some(base) => check_adapter(dir, base).map(|()| Verdict::Adapter),
        None => check_model(dir).map(Verdict::Model),
    };
    found.unwrap_or_else(|error| match error.kind() {
        Kind::Internal | Kind::Unavailable => Verdict::Failed(error.log()),
        _ => Verdict::Refused(error.message().to_string()),
    })
}
