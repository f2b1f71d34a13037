//! What the inspection of models that callers bring may take. It runs in a process of its own.

use std::ffi::OsString;
use std::path::PathBuf;

use super::ByteSize;

/// The settings of inspections.
#[derive(Debug, Clone, clap::Args)]
pub struct InspectionSettings {
    /// Memory that the inspection of one imported model may take; a model that needs more is refused
    #[arg(long, env = "TUNESMITH_INSPECTION_MEMORY", value_name = "SIZE", default_value = "4GiB")]
    pub inspection_memory: ByteSize,

    /// The program that inspects models; this one when absent
    #[arg(long, env = "TUNESMITH_INSPECTOR", hide = true)]
    pub inspector: Option<PathBuf>,

    /// Where the loader of that program finds its libraries: the one variable that it inherits
    #[arg(long, env = "LD_LIBRARY_PATH", hide = true)]
    pub loader_path: Option<OsString>,
}

impl Default for InspectionSettings {
    fn default() -> Self {
        Self { inspection_memory: ByteSize(4 << 30), inspector: None, loader_path: None }
    }
}

impl InspectionSettings {
    /// The program that inspects models.
    ///
    /// # Errors
    /// When the operating system does not tell which program this is.
    pub fn program(&self) -> std::io::Result<PathBuf> {
        match &self.inspector {
            Some(program) => Ok(program.clone()),
            // The file that runs, also when an upgrade has put another one in its place.
            None if cfg!(target_os = "linux") => Ok("/proc/self/exe".into()),
            None => std::env::current_exe(),
        }
    }
}
