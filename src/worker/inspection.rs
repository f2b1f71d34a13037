//! Inspection of models that callers brought, from the importer's side: a child process of the same program with
//! limits of its own. Whatever its files do to it, the importer gets a verdict or a named failure, and the child is
//! gone when the importer stops waiting.

use std::io::ErrorKind;
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
/// Signals that ask a process to end: somebody meant the service and reached its child as well.
const ENDINGS: [i32; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];
/// The exit status of a child that could not begin: it was not allowed to limit itself, or got no thread.
const NOT_BEGUN: i32 = 1;
/// Memory that an inspection of an adapter may take, by the bytes of its files: a tensor stands there as it is in its
/// file, as it was read and as the numbers that are looked at.
const ADAPTER_TIMES: u64 = 6;

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
/// `Validation` when the model is refused, or its inspection took more than it may; `Unavailable` when the child could
/// not be started at this moment, or was told to end; `Internal` when there was no verdict for another reason.
pub(super) async fn inspect(
    settings: &InspectionSettings,
    dir: &Path,
    base: Option<&Path>,
    bytes: u64,
) -> Result<Verdict> {
    let (time, memory) = (Time::for_bytes(bytes), memory_of(settings, base.is_some(), bytes));
    let mut command = Command::new(settings.program()?);
    command.arg("inspect-model").arg("--dir").arg(dir);
    if let Some(base) = base {
        command.arg("--base").arg(base);
    }
    command.args(["--memory".into(), memory.0.to_string()]);
    command.args(["--seconds".into(), time.processor.to_string()]);
    // Nothing that this process knows by its environment: keys, addresses, passwords.
    command.env_clear().envs(settings.loader_path.as_ref().map(|path| ("LD_LIBRARY_PATH", path)));
    // One heap and one thread: what the check itself takes is all that counts.
    command.env("MALLOC_ARENA_MAX", "1").env("RAYON_NUM_THREADS", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // A Ctrl-C at the terminal is the service's alone: it decides what becomes of the inspection.
    command.process_group(0);

    let mut child = command.spawn().map_err(|cause| match cause.kind() {
        // Processes or memory are short for the moment.
        ErrorKind::WouldBlock | ErrorKind::OutOfMemory => Error::unavailable(cause).at("starting an inspection"),
        _ => Error::internal(cause).at("starting an inspection"),
    })?;
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
        return Err(ended_early(status, memory, time).because(anyhow::anyhow!("{status}: {log}")));
    }
    match serde_json::from_slice(&stdout)? {
        Verdict::Refused(message) => Err(Error::validation(message)),
        Verdict::Failed(cause) => Err(Error::internal(anyhow::anyhow!(cause))),
        found => Ok(found),
    }
}

/// Memory limit of an inspection. Adapters are held whole, and a large one takes more than the setting says.
fn memory_of(settings: &InspectionSettings, adapter: bool, bytes: u64) -> ByteSize {
    let setting = settings.inspection_memory.0;
    ByteSize(if adapter { setting.max(setting / 4 + bytes.saturating_mul(ADAPTER_TIMES)) } else { setting })
}

/// What the owner of a model is told whose inspection ended without a verdict.
fn ended_early(status: ExitStatus, memory: ByteSize, time: Time) -> Error {
    if status.signal().is_some_and(|signal| ENDINGS.contains(&signal)) {
        return Error::unavailable(anyhow::anyhow!("the inspection was told to end"));
    }
    if status.code() == Some(NOT_BEGUN) {
        return Error::internal(anyhow::anyhow!("the inspection could not begin"));
    }
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
