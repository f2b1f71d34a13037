//! How the process ends: the signals that tell it to, what the grace period is spent on, and the end that comes when it is
//! over, whatever the other threads are busy with.

use std::sync::mpsc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::error::Result;

/// The end of the grace period that is left to the object store and the database, and how much of a short one.
const LAST: Duration = Duration::from_secs(3);
const LAST_PART: u32 = 4;
/// How long before the API is cut off answers under way are told to end.
const CLOSING: Duration = Duration::from_secs(1);
/// What the line of the log may take that says that the grace period is over, and how much of a short one: whoever reads
/// the log may hang.
const LAST_LINE: Duration = Duration::from_millis(100);
const LAST_LINE_PART: u32 = 10;

/// How the grace period is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ending {
    /// Until answers and jobs under way are told that they cannot go on.
    pub(super) answers: Duration,
    /// Until everything that works is cut off.
    pub(super) work: Duration,
    /// What is left then.
    pub(super) last: Duration,
}

impl Ending {
    pub(super) fn within(grace: Duration) -> Self {
        let last = LAST.min(grace / LAST_PART);
        let work = grace - last;
        Self { answers: work - CLOSING.min(work / LAST_PART), work, last }
    }
}

/// What the process was told by signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    /// To go on.
    Nothing,
    /// To drain: the grace period has begun.
    Drain,
    /// To end at once: a second Ctrl-C.
    Now,
}

/// What signals have told the process.
pub(super) struct Signals(watch::Receiver<Told>);

impl Signals {
    /// Listens to SIGTERM and Ctrl-C from now on. The grace period begins with the first of them, also while the process
    /// starts or is too busy to hear of it.
    ///
    /// # Errors
    /// When the system does not let it listen.
    pub(super) fn listen(grace: Duration) -> Result<Self> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (tell, told) = watch::channel(Told::Nothing);
        tokio::spawn(async move {
            let what = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "interrupted",
            };
            // Before the log, which may hang.
            end_after(grace, 0);
            tell.send_replace(Told::Drain);
            info!("{what}: draining");
            interrupt.recv().await;
            tell.send_replace(Told::Now);
            // Told for as long as somebody listens.
            tell.closed().await;
        });
        Ok(Self(told))
    }

    /// Ends when the process was told this, or more.
    pub(super) async fn told(&mut self, what: Told) {
        if self.0.wait_for(|told| *told >= what).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Ends the process with this exit code when the grace period is over, whatever its other threads are busy with: neither a
/// log that nobody reads nor what libraries do at the end of a process holds it up.
pub(super) fn end_after(grace: Duration, code: i32) {
    let line = LAST_LINE.min(grace / LAST_LINE_PART);
    let watchdog = std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        std::thread::sleep(grace - line);
        let (said, heard) = mpsc::channel::<()>();
        let say = std::thread::Builder::new().spawn(move || {
            warn!("the grace period is over: the process ends now, and unfinished work is left to its leases");
            drop(said);
        });
        if say.is_ok() {
            // Ends when it is said, or late.
            let _ = heard.recv_timeout(line);
        }
        exit_now(code)
    });
    if let Err(cause) = watchdog {
        warn!("the grace period is not enforced: {cause}");
    }
}

#[expect(unsafe_code, reason = "the exit of the standard library waits for what other threads hold")]
fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) touches no memory and does not return; what is written durably is on the disk by then.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn every_grace_period_is_spent_in_order_and_never_exceeded() {
        for seconds in [0, 1, 2, 5, 30, 600] {
            let grace = Duration::from_secs(seconds);
            let ending = Ending::within(grace);
            assert!(ending.answers <= ending.work, "{ending:?}");
            assert_eq!(ending.work + ending.last, grace, "{ending:?}");
        }
        let usual = Ending::within(Duration::from_secs(30));
        assert_eq!((usual.answers.as_secs(), usual.work.as_secs(), usual.last.as_secs()), (26, 27, 3));
    }

    #[test]
    fn the_end_comes_with_its_exit_code_though_the_log_and_the_exit_of_another_thread_hang() {
        let this = std::env::current_exe().unwrap();
        let child = Command::new(this)
            .args(["--exact", "--ignored", "--nocapture", "service::ending::tests::hangs"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(child.code(), Some(7));
    }

    #[test]
    #[ignore = "not a test: the process that the test above starts"]
    fn hangs() {
        extern "C" fn for_ever() {
            loop {
                std::thread::park();
            }
        }
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        end_after(Duration::from_millis(200), 7);
        // SAFETY: the function lives as long as the process.
        #[expect(unsafe_code, reason = "what libraries do at the end of a process hangs")]
        unsafe {
            libc::atexit(for_ever);
        }
        let _log = std::io::stderr().lock();
        std::process::exit(0);
    }
}
