//! What the parts of one process may take of the machine's memory by default, so that together they fit: training and
//! answering share it in a process that does both, and an eighth is left to everything else.

use std::path::Path;

use super::memory::machine;
use super::{ByteSize, Config, Role};
use crate::error::{Error, Result};

/// Parts of the machine, of which there are [`PARTS`]. What answering does not use of its own goes to training.
const PARTS: u64 = 16;
const RESERVE: u64 = 2;
const BASES_BESIDE_TRAINING: u64 = 4;
const BASES_ALONE: u64 = 8;
const ADAPTERS: u64 = 1;
const CACHE: u64 = 1;
/// Adapters, and keys and values, take no more than this by default.
const MOST: u64 = 2 << 30;

/// Bytes that each part of a process may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Training, all slots together; 0 in a process that does not train.
    pub training: u64,
    /// Base models that answer.
    pub bases: u64,
    /// Adapters that answer.
    pub adapters: u64,
    /// Keys and values of each base that answers.
    pub cache: u64,
    /// What the machine has, or its container allows; `None` when neither says.
    pub machine: Option<u64>,
}

impl Budgets {
    /// The settings, and where they say nothing a share of this machine.
    ///
    /// # Errors
    /// When the machine does not say how much memory it has and no setting does, or a setting leaves nothing.
    pub fn of(config: &Config, role: Role) -> Result<Self> {
        Self::on(machine(Path::new("/")), config, role)
    }

    fn on(machine: Option<u64>, config: &Config, role: Role) -> Result<Self> {
        let (serving, memory) = (&config.serving, &config.memory);
        let part = |parts: u64| machine.map(|total| total / PARTS * parts);
        let given = |setting: Option<ByteSize>| setting.map(|ByteSize(bytes)| bytes);
        let bounded = |parts| part(parts).map_or(MOST, |part| part.min(MOST));
        let adapters = given(serving.adapter_memory).unwrap_or_else(|| bounded(ADAPTERS));
        let cache = given(serving.cache_memory).unwrap_or_else(|| bounded(CACHE));
        let beside = if role == Role::Api { BASES_ALONE } else { BASES_BESIDE_TRAINING };
        // Where nobody says how much there is there is no bound either.
        let bases = given(serving.base_memory).or_else(|| part(beside)).unwrap_or(u64::MAX);
        let training = match (role, given(memory.memory)) {
            (Role::Api, _) => 0,
            (_, Some(bytes)) => bytes,
            (_, None) => {
                let total = machine.ok_or_else(|| {
                    Error::validation(
                        "this machine does not say how much memory it has: set TUNESMITH_MEMORY, such as 12GiB",
                    )
                })?;
                let reserve = given(memory.memory_reserve).unwrap_or(total / PARTS * RESERVE);
                let others = reserve.saturating_add(bases).saturating_add(adapters).saturating_add(cache);
                match total.checked_sub(others) {
                    Some(bytes) if bytes > 0 => bytes,
                    _ => {
                        return Err(Error::validation(format!(
                            "Nothing of the machine's {} is left for training: answering may take {} and {} are kept \
                             for everything else. Lower TUNESMITH_BASE_MEMORY or TUNESMITH_MEMORY_RESERVE, or set \
                             TUNESMITH_MEMORY",
                            ByteSize(total),
                            ByteSize(others - reserve),
                            ByteSize(reserve)
                        )));
                    }
                }
            }
        };
        Ok(Self { training, bases, adapters, cache, machine })
    }

    /// All parts together.
    pub fn sum(&self) -> u64 {
        [self.training, self.bases, self.adapters, self.cache].into_iter().fold(0, u64::saturating_add)
    }

    /// What they take above the machine's memory, when they do.
    pub fn excess(&self) -> Option<u64> {
        self.machine.and_then(|total| self.sum().checked_sub(total)).filter(|excess| *excess > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn budgets(total: u64, role: Role, more: &[&str]) -> Result<Budgets> {
        Budgets::on(Some(total), &Config::of(more), role)
    }

    #[test]
    fn the_defaults_fit_every_machine_together_in_every_role() {
        for gib in [1, 2, 4, 15, 16, 24, 64, 1000] {
            for role in [Role::Api, Role::Worker, Role::All] {
                let budgets = budgets(gib * GIB, role, &[]).unwrap();
                assert!(budgets.sum() <= gib * GIB / 16 * 15, "{gib} GiB, {role:?}: {budgets:?}");
                assert_eq!(budgets.training > 0, role != Role::Api);
                assert!(budgets.excess().is_none());
            }
        }
    }

    #[test]
    fn settings_count_and_what_they_exceed_is_told() {
        let both = ["--memory=12GiB", "--base-memory=8GiB", "--adapter-memory=1GiB", "--cache-memory=1GiB"];
        let given = budgets(16 * GIB, Role::All, &both).unwrap();
        assert_eq!((given.training, given.bases, given.adapters, given.cache), (12 * GIB, 8 * GIB, GIB, GIB));
        assert_eq!(given.excess(), Some(6 * GIB));
        let less = budgets(16 * GIB, Role::All, &["--base-memory=1GiB"]).unwrap();
        assert!(less.training > budgets(16 * GIB, Role::All, &[]).unwrap().training, "what answering does not take");
        let nothing = budgets(4 * GIB, Role::All, &["--base-memory=4GiB"]).unwrap_err();
        assert!(nothing.message().contains("TUNESMITH_BASE_MEMORY"), "{nothing}");
    }
}
