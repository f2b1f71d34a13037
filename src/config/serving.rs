//! What answering may take: how many answers at once, and how much memory for models and for what they have read.

use super::ByteSize;
use crate::error::{Error, Result};

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

    /// Memory of the adapters that are kept ready to answer; the least recently used go first. A sixteenth of what the
    /// machine has or its container allows when absent, and no more than 2 GiB
    #[arg(long, env = "TUNESMITH_ADAPTER_MEMORY", value_name = "SIZE")]
    pub adapter_memory: Option<ByteSize>,

    /// Memory of the base models, imported ones and those tuned as a whole that are kept ready to answer; when absent
    /// a quarter of what the machine has or its container allows, half where the process does not train
    #[arg(long, env = "TUNESMITH_BASE_MEMORY", value_name = "SIZE")]
    pub base_memory: Option<ByteSize>,

    /// Memory of the keys and values of the answers under way, for each base model that answers. A sixteenth of what
    /// the machine has or its container allows when absent, and no more than 2 GiB
    #[arg(long, env = "TUNESMITH_CACHE_MEMORY", value_name = "SIZE")]
    pub cache_memory: Option<ByteSize>,

    /// Memory of the bodies of all requests that are being read or worked on; a request above that is told to come
    /// back (ServiceUnavailableException), and one address gets at most half of it
    #[arg(long, env = "TUNESMITH_BODY_MEMORY", value_name = "SIZE", default_value = "256MiB")]
    pub body_memory: ByteSize,
}

/// A body of 25 MB, its copies and what is parsed from it fit into half of this.
const LEAST_BODY_MEMORY: ByteSize = ByteSize(256 << 20);

impl Default for ServingSettings {
    fn default() -> Self {
        Self {
            answers: 64,
            sequences: 32,
            adapter_memory: None,
            base_memory: None,
            cache_memory: None,
            body_memory: LEAST_BODY_MEMORY,
        }
    }
}

impl ServingSettings {
    /// Refuses settings with which nothing could be answered.
    pub(super) fn check(&self) -> Result<()> {
        match (self.answers, self.sequences) {
            (0, _) => Err(Error::validation("TUNESMITH_ANSWERS must be at least 1: no request could be answered")),
            (_, 0) => Err(Error::validation("TUNESMITH_SEQUENCES must be at least 1: no request could be answered")),
            _ if self.body_memory < LEAST_BODY_MEMORY => Err(Error::validation(format!(
                "TUNESMITH_BODY_MEMORY must be at least {LEAST_BODY_MEMORY}: the largest request could not be read"
            ))),
            _ => Ok(()),
        }
    }

    /// Threads that block for as long as an answer or a count of tokens lasts.
    pub fn blocking_threads(&self) -> usize {
        self.answers.saturating_add(self.counts())
    }

    /// Requests whose tokens are counted at once: each keeps a core busy.
    pub fn counts(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
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
        assert_eq!(parsed.body_memory, default.body_memory);
        assert!(default.check().is_ok());
    }

    #[test]
    fn settings_that_answer_nothing_are_refused() {
        for argument in ["--answers=0", "--sequences=0"] {
            assert!(parsed(&[argument]).check().unwrap_err().message().contains("at least 1"), "{argument}");
        }
        assert_eq!(parsed(&["--base-memory", "3GB"]).base_memory, Some(ByteSize(3_000_000_000)));
        assert!(parsed(&["--body-memory=1MiB"]).check().unwrap_err().message().contains("TUNESMITH_BODY_MEMORY"));
    }
}
