//! What answering may take: how many answers at once, and how much memory for models and for what they have read.

use super::ByteSize;
use super::memory::machine;
use crate::error::{Error, Result};

/// Base models may take this part of the machine when no setting says.
const PART: u64 = 2;

/// The settings of answering, of every command that serves.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ServingSettings {
    /// Answers under way at once, those that wait for their turn included; a request above that is told to come back
    /// (ThrottlingException). Each model unit of provisioned throughput keeps one of these places for itself, and at
    /// least one stays for everybody
    #[arg(long, env = "TUNESMITH_ANSWERS", default_value_t = 64)]
    pub answers: usize,

    /// Answers of one base model, with whatever adapters, that are decoded together; more wait their turn
    #[arg(long, env = "TUNESMITH_SEQUENCES", default_value_t = 32)]
    pub sequences: usize,

    /// Memory of the adapters that are kept ready to answer; the least recently used go first
    #[arg(long, env = "TUNESMITH_ADAPTER_MEMORY", value_name = "SIZE", default_value = "2GiB")]
    pub adapter_memory: ByteSize,

    /// Memory of the base models, imported ones and those tuned as a whole that are kept ready to answer; half of
    /// what the machine has or its container allows when absent
    #[arg(long, env = "TUNESMITH_BASE_MEMORY", value_name = "SIZE")]
    pub base_memory: Option<ByteSize>,

    /// Memory of the keys and values of the answers under way, for each base model that answers
    #[arg(long, env = "TUNESMITH_CACHE_MEMORY", value_name = "SIZE", default_value = "2GiB")]
    pub cache_memory: ByteSize,
}

impl Default for ServingSettings {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        let (adapter_memory, cache_memory) = (ByteSize(2 * GIB), ByteSize(2 * GIB));
        Self { answers: 64, sequences: 32, adapter_memory, base_memory: None, cache_memory }
    }
}

impl ServingSettings {
    /// Refuses settings with which nothing could be answered.
    pub(super) fn check(&self) -> Result<()> {
        match (self.answers, self.sequences) {
            (0, _) => Err(Error::validation("TUNESMITH_ANSWERS must be at least 1: no request could be answered")),
            (_, 0) => Err(Error::validation("TUNESMITH_SEQUENCES must be at least 1: no request could be answered")),
            _ => Ok(()),
        }
    }

    /// Bytes that base models may take; no bound where the machine does not say how much it has.
    pub fn base_bytes(&self) -> u64 {
        let half = || machine(std::path::Path::new("/")).map_or(u64::MAX, |total| total / PART);
        self.base_memory.map_or_else(half, |ByteSize(bytes)| bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        serving: ServingSettings,
    }

    fn parsed(arguments: &[&str]) -> ServingSettings {
        let all = ["serve"].iter().chain(arguments);
        <Command as clap::Parser>::try_parse_from(all).unwrap().serving
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_library() {
        let (parsed, default) = (parsed(&[]), ServingSettings::default());
        assert_eq!((parsed.answers, parsed.sequences), (default.answers, default.sequences));
        assert_eq!((parsed.adapter_memory, parsed.cache_memory), (default.adapter_memory, default.cache_memory));
        assert!(default.check().is_ok() && default.base_bytes() > 0);
    }

    #[test]
    fn settings_that_answer_nothing_are_refused() {
        for argument in ["--answers=0", "--sequences=0"] {
            assert!(parsed(&[argument]).check().unwrap_err().message().contains("at least 1"), "{argument}");
        }
        assert_eq!(parsed(&["--base-memory", "3GB"]).base_bytes(), 3_000_000_000);
    }
}
