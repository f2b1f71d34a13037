//! `tunesmith inspect-model`: the inspection of a model that a caller brought, as the importer starts it. It is no
//! command for people, and hidden from them.

use std::io::Read;
use std::path::PathBuf;
use std::process::exit;

use crate::artifacts::{confine, inspect};
use crate::error::Result;

#[derive(clap::Args)]
pub(super) struct InspectModel {
    /// The folder of the model or the adapter
    #[arg(long)]
    dir: PathBuf,

    /// The base model's folder, when it is an adapter
    #[arg(long)]
    base: Option<PathBuf>,

    /// Bytes of memory that the inspection may take
    #[arg(long)]
    memory: u64,

    /// Seconds of processor time that it may take
    #[arg(long)]
    seconds: u64,
}

impl InspectModel {
    pub(super) fn run(&self) -> Result<()> {
        // Before anything of the model is read.
        confine(self.memory, self.seconds)?;
        std::thread::Builder::new().name("parent".into()).stack_size(64 << 10).spawn(end_with_parent)?;
        println!("{}", serde_json::to_string(&inspect(&self.dir, self.base.as_deref()))?);
        Ok(())
    }
}

/// Standard input is a pipe that the importer holds open: it ends when the importer does, however that ends.
fn end_with_parent() {
    let mut byte = [0];
    while std::io::stdin().read(&mut byte).is_ok_and(|read| read > 0) {}
    exit(1);
}
