//! Named points in the work of a job at which a test makes this process fail. Every step that is retried is a point
//! before and after it; without the feature `fault-points`, which no release has, nothing of this is compiled in.
//!
//! A test orders a fault by a file in the folder that `TUNESMITH_FAULT_POINTS` names, `<action>.<when>.<step>`, the
//! step's words joined by hyphens: `abort.before.deciding-the-result`, `error.after.uploading-a-file`. An order is
//! carried out once. `wait.…` holds the step as long as the file is there, and `waiting.…` says that it is held.
//! The file `reached` grows by the name of every point that was passed.

#[cfg(not(feature = "fault-points"))]
pub(crate) fn around<F: Future>(_step: &str, work: F) -> F {
    work
}

#[cfg(feature = "fault-points")]
pub(crate) use ordered::{around, open};

#[cfg(feature = "fault-points")]
mod ordered {
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    use crate::error::{Error, Result};

    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    /// How often a held step looks whether it may go on.
    const LOOK: Duration = Duration::from_millis(10);

    /// Takes orders from `folder` from now on.
    pub(crate) fn open(folder: Option<&PathBuf>) {
        if let Some(folder) = folder {
            FOLDER.get_or_init(|| folder.clone());
        }
    }

    /// Does a step, with the faults that were ordered before and after it.
    pub(crate) async fn around<T>(step: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(folder) = FOLDER.get() else { return work.await };
        let step: String = step.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        reach(folder, &format!("before.{step}")).await?;
        let value = work.await?;
        reach(folder, &format!("after.{step}")).await?;
        Ok(value)
    }

    async fn reach(folder: &Path, point: &str) -> Result<()> {
        let reached = std::fs::File::options().create(true).append(true).open(folder.join("reached"));
        reached?.write_all(format!("{point}\n").as_bytes())?;
        let ordered = |action: &str| folder.join(format!("{action}.{point}"));
        // Removed by one of those that reach it at the same time: an order is carried out once.
        if std::fs::remove_file(ordered("abort")).is_ok() {
            std::process::abort();
        }
        if std::fs::remove_file(ordered("error")).is_ok() {
            return Err(Error::unavailable(anyhow::anyhow!("ordered at {point}")));
        }
        if ordered("wait").exists() {
            std::fs::write(ordered("waiting"), "")?;
            while ordered("wait").exists() {
                tokio::time::sleep(LOOK).await;
            }
            std::fs::remove_file(ordered("waiting"))?;
        }
        Ok(())
    }
}
