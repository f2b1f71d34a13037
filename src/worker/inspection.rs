//! Inspection of models that callers brought, from the importer's side: a child process of the same program with
//! limits of its own. Whatever its files do to it, the importer gets a verdict or a named failure, and the child is
//! gone when the importer stops waiting.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tracing::warn;

use crate::artifacts::Verdict;
use crate::config::{ByteSize, InspectionSettings};
use crate::error::{Error, Result};

/// Bytes that are read of what the child says; a verdict has a few hundred.
const MAX_OUTPUT: u64 = 64 << 10;
/// Characters of its complaints that are logged.
const MAX_LOGGED: usize = 1000;
/// Signals that Linux sends for too much processor time.
const SIGXCPU: i32 = 24;

/// How long an inspection may go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    /// Seconds on processors.
    pub(super) processor: u64,
    /// On the clock.
    pub(super) wall: Duration,
}

impl Time {
    /// For a model of so many bytes: every one of its weights is read once.
    pub(super) fn for_bytes(bytes: u64) -> Self {
        Self { processor: 120 + bytes / 50_000_000, wall: Duration::from_secs(300 + bytes / 10_000_000) }
    }
}

/// Inspects the whole model in `dir`, or the adapter in it against the base in `base`.
///
/// # Errors
/// `Validation` when the model is refused, or its inspection took more than it may; `Internal` when there was no
/// verdict for another reason.
pub(super) async fn inspect(
    settings: &InspectionSettings,
    dir: &Path,
    base: Option<&Path>,
    time: Time,
) -> Result<Verdict> {
    let mut command = Command::new(settings.program()?);
    command.arg("inspect-model").arg("--dir").arg(dir);
    if let Some(base) = base {
        command.arg("--base").arg(base);
    }
    command.args(["--memory".into(), settings.inspection_memory.0.to_string()]);
    command.args(["--seconds".into(), time.processor.to_string()]);
    // Nothing that this process knows by its environment: keys, addresses, passwords.
    command.env_clear().envs(settings.loader_path.as_ref().map(|path| ("LD_LIBRARY_PATH", path)));
    // One heap and one thread: what the check itself takes is all that counts.
    command.env("MALLOC_ARENA_MAX", "1").env("RAYON_NUM_THREADS", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);

    let mut child = command.spawn().map_err(|cause| Error::internal(cause).at("starting an inspection"))?;
    // Held until the end: the child ends with it.
    let held = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async { tokio::try_join!(beginning(stdout), beginning(stderr), child.wait()) };
    let Ok(ended) = tokio::time::timeout(time.wall, ended).await else {
        return Err(Error::validation(format!(
            "The inspection of the model took more than {} seconds and was ended",
            time.wall.as_secs()
        )));
    };
    drop(held);
    let (stdout, stderr, status) = ended?;
    let log: String =
        String::from_utf8_lossy(&stderr).trim().chars().take(MAX_LOGGED).flat_map(char::escape_debug).collect();
    if !log.is_empty() {
        warn!("an inspection said: {log}");
    }
    if !status.success() {
        return Err(ended_early(status, settings.inspection_memory, time).because(anyhow::anyhow!("{status}: {log}")));
    }
    match serde_json::from_slice(&stdout)? {
        Verdict::Refused(message) => Err(Error::validation(message)),
        Verdict::Failed(cause) => Err(Error::internal(anyhow::anyhow!(cause))),
        found => Ok(found),
    }
}

/// What the owner of a model is told whose inspection ended without a verdict.
fn ended_early(status: ExitStatus, memory: ByteSize, time: Time) -> Error {
    if status.signal() == Some(SIGXCPU) {
        return Error::validation(format!(
            "The inspection of the model took more than {} seconds of processor time and was ended",
            time.processor
        ));
    }
    Error::validation(format!(
        "The inspection of the model ended unexpectedly. A file asks for more than the {memory} of memory that an \
         inspection may take, or is damaged in a way that is not known; most often it is tokenizer.json"
    ))
}

/// The beginning of what a pipe gives. The rest is read and dropped, so that nobody waits for a reader.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(MAX_OUTPUT).read_to_end(&mut bytes).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}
