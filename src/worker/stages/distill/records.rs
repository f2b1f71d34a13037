//! The data set that a student learns, as it grows.

use std::io::Write;
use std::path::Path;

use crate::data::Question;
use crate::durable;
use crate::error::Result;

/// The data set as it grows.
pub(super) struct Records {
    file: durable::Writer,
    count: u64,
}

impl Records {
    /// Empty.
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: durable::Writer::create(path)?, count: 0 })
    }

    /// Adds a question with what is learned as its answer.
    pub(super) fn push(&mut self, question: &Question, answer: &str) -> Result<()> {
        writeln!(self.file, "{}", question.record(answer))?;
        self.count += 1;
        Ok(())
    }

    /// Records so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Ends the file; gives how many records it has.
    pub(super) fn finish(self) -> Result<u64> {
        self.file.finish()?;
        Ok(self.count)
    }
}
