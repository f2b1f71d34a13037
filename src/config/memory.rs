//! How much memory training may take on this machine. Read from the machine itself, and never more than
//! the control group of a container allows; a setting overrides it. It is the total and not what is free
//! at the moment, so that the same job is cut the same way whatever else runs.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The part of a machine that is left to the operating system and everything else, when no setting says.
const RESERVE: u64 = 8;

/// A size in bytes, written as `1500000000`, `12GB` (powers of ten) or `12GiB`, `12G` (powers of two).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1024f64.powi(2),
            "g" | "gib" => 1024f64.powi(3),
            "t" | "tib" => 1024f64.powi(4),
            other => return Err(format!("{other:?} is no unit of size: write 12GiB, 12GB or a number of bytes")),
        };
        match number.parse::<f64>() {
            Ok(number) if number > 0.0 => Ok(Self((number * factor) as u64)),
            _ => Err(format!("{text:?} is no size: write 12GiB, 12GB or a number of bytes")),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match bytes {
            _ if bytes >= 1024f64.powi(3) => write!(f, "{:.1} GiB", bytes / 1024f64.powi(3)),
            _ if bytes >= 1024f64.powi(2) => write!(f, "{:.0} MiB", bytes / 1024f64.powi(2)),
            _ => write!(f, "{:.0} KiB", bytes / 1024.0),
        }
    }
}

/// The settings of memory, of every command that trains.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct MemorySettings {
    /// Memory that training on the CPU may take in all, such as 12GiB; when absent, what the machine has or its
    /// container allows, less the reserve
    #[arg(long, env = "TUNESMITH_MEMORY", value_name = "SIZE")]
    pub memory: Option<ByteSize>,

    /// Memory of the machine that training leaves to everything else; an eighth when absent, and without effect
    /// where --memory is given
    #[arg(long, env = "TUNESMITH_MEMORY_RESERVE", value_name = "SIZE")]
    pub memory_reserve: Option<ByteSize>,
}

impl MemorySettings {
    /// Bytes that training may take.
    ///
    /// # Errors
    /// When the machine does not say how much memory it has and no setting does, or nothing is left of it.
    pub fn bytes(&self) -> Result<u64> {
        if let Some(ByteSize(bytes)) = self.memory {
            return Ok(bytes);
        }
        let total = machine(Path::new("/")).ok_or_else(|| {
            Error::validation("this machine does not say how much memory it has: set TUNESMITH_MEMORY, such as 12GiB")
        })?;
        let reserve = self.memory_reserve.map_or(total / RESERVE, |ByteSize(bytes)| bytes);
        match total.checked_sub(reserve) {
            Some(bytes) if bytes > 0 => Ok(bytes),
            _ => Err(Error::validation(format!(
                "TUNESMITH_MEMORY_RESERVE is {}, but the machine has only {}",
                ByteSize(reserve),
                ByteSize(total)
            ))),
        }
    }
}

/// The smaller of the machine's memory and what the control groups of this process allow, in bytes. `root`
/// is where `/proc` and `/sys` are.
pub(super) fn machine(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let kib = |text: String| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok())
    };
    let total = read("proc/meminfo").and_then(kib).map(|kib| kib * 1024);
    let mut limits: Vec<u64> = total.into_iter().collect();
    // A line of /proc/self/cgroup is `id:controllers:path`: version 2 has no controllers in it. Inside a
    // container the path may be the host's, and the container's own limit lies at the top.
    for line in read("proc/self/cgroup").unwrap_or_default().lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let mut group = Some(Path::new(path.trim_start_matches('/')));
        while let Some(path) = group {
            let text = std::fs::read_to_string(root.join(mount).join(path).join(file)).unwrap_or_default();
            // `max` is no limit, and neither is version 1's largest number, which the machine's total is below.
            limits.extend(text.trim().parse::<u64>().ok());
            group = path.parent();
        }
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn sizes_are_read_in_both_kinds_of_units_and_others_are_refused() {
        for (text, bytes) in [("4096", 4096), ("1.5GiB", 3 * GIB / 2), ("2g", 2 * GIB), ("12 GB", 12_000_000_000)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
        }
        for text in ["", "0", "-1", "12 apples", "GiB", "1.2.3G"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(ByteSize(3 * GIB / 2).to_string(), "1.5 GiB");
    }

    #[test]
    fn the_tightest_limit_of_machine_and_control_groups_counts() {
        let meminfo = ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n");
        assert_eq!(machine(root(&[meminfo]).path()), Some(16 * GIB));
        let limit = (4 * GIB).to_string();
        let second = [meminfo, ("proc/self/cgroup", "0::/a/b\n"), ("sys/fs/cgroup/a/memory.max", limit.as_str())];
        assert_eq!(machine(root(&second).path()), Some(4 * GIB), "a parent's limit holds too");
        let own = [meminfo, ("proc/self/cgroup", "0::/host/x\n"), ("sys/fs/cgroup/memory.max", limit.as_str())];
        assert_eq!(machine(root(&own).path()), Some(4 * GIB), "a container sees its limit at the top");
        let first = ("proc/self/cgroup", "3:cpu:/\n4:cpuset,memory:/x\n");
        let v1 = [meminfo, first, ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", limit.as_str())];
        assert_eq!(machine(root(&v1).path()), Some(4 * GIB));
        let none = [meminfo, first, ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n")];
        assert_eq!(machine(root(&none).path()), Some(16 * GIB));
        assert_eq!(machine(root(&[]).path()), None);
    }

    #[test]
    fn a_setting_overrides_the_machine() {
        let memory = MemorySettings { memory: Some(ByteSize(7)), memory_reserve: Some(ByteSize(u64::MAX)) };
        assert_eq!(memory.bytes().unwrap(), 7);
        let nothing_left = MemorySettings { memory: None, memory_reserve: Some(ByteSize(u64::MAX)) };
        assert!(nothing_left.bytes().unwrap_err().message().contains("TUNESMITH_MEMORY_RESERVE"));
    }
}
