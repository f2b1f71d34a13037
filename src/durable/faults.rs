//! A disk that fills: makes the n-th step of writing below a folder fail, and lets a test go through all of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Step;

/// More steps than any test takes: one that never ends without a fault has lost its way.
const MOST: usize = 5_000;

static PLANS: Mutex<Vec<Plan>> = Mutex::new(Vec::new());

struct Plan {
    id: u64,
    root: PathBuf,
    /// Steps until the disk is full.
    left: usize,
    /// From then on nothing can be written any more, as on a disk that stays full.
    full: bool,
}

/// Keeps the disk full until it is dropped.
pub(crate) struct Full(u64);

/// From the `nth` step below `root` on, counted from 1, the disk is full.
pub(crate) fn fail_nth(root: &Path, nth: usize) -> Full {
    let mut plans = plans();
    let id = plans.iter().map(|plan| plan.id).max().unwrap_or_default() + 1;
    plans.push(Plan { id, root: root.to_path_buf(), left: nth, full: false });
    Full(id)
}

/// Does `work` with the disk full from the first step on, then from the second, until it gets through; `check` looks at
/// what each time came to, once there is space again. How many steps there are.
pub(crate) fn at_every_step<T>(
    root: &Path,
    mut work: impl FnMut(usize) -> T,
    mut check: impl FnMut(usize, T),
) -> usize {
    for nth in 1..MOST {
        let full = fail_nth(root, nth);
        let outcome = work(nth);
        let fired = full.fired();
        drop(full);
        check(nth, outcome);
        if !fired {
            return nth - 1;
        }
    }
    panic!("{MOST} steps were not enough");
}

impl Full {
    /// Whether a step has failed.
    pub(crate) fn fired(&self) -> bool {
        plans().iter().any(|plan| plan.id == self.0 && plan.full)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        plans().retain(|plan| plan.id != self.0);
    }
}

pub(super) fn pass(step: Step, path: &Path) -> io::Result<()> {
    for plan in plans().iter_mut().filter(|plan| path.starts_with(&plan.root)) {
        plan.left = plan.left.saturating_sub(1);
        plan.full |= plan.left == 0;
        if plan.full {
            return Err(io::Error::from_raw_os_error(28)).inspect_err(|_| tracing::debug!(?step, "the disk is full"));
        }
    }
    Ok(())
}

fn plans() -> MutexGuard<'static, Vec<Plan>> {
    PLANS.lock().unwrap_or_else(PoisonError::into_inner)
}
