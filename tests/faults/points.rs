//! Orders for the fault points of the program under test: `src/fault_points.rs` says what they mean.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::process::{House, until};

/// Steps that not every run has: what an attempt before it left, and checkpoints of a run that took its time.
const SOMETIMES: [&str; 2] = ["leftovers", "removing-an-old-checkpoint"];

/// The folder of orders of one house.
pub(crate) struct Points {
    folder: PathBuf,
}

impl Points {
    /// Has the processes of this house take orders; `None`, loudly, when they were built without fault points.
    pub(crate) fn of(house: &mut House) -> Option<Self> {
        let folder = house.data_dir().join("points");
        Self::in_folder(house, &folder)
    }

    /// The same with the orders in this folder.
    pub(crate) fn in_folder(house: &mut House, folder: &Path) -> Option<Self> {
        if !cfg!(feature = "fault-points") {
            println!("NOT RUN: fault points need --features fault-points");
            return None;
        }
        std::fs::create_dir_all(folder).unwrap();
        house.settings.push(("TUNESMITH_FAULT_POINTS".into(), folder.display().to_string()));
        Some(Self { folder: folder.to_path_buf() })
    }

    /// Orders `abort`, `error` or `wait` at a point.
    pub(crate) fn order(&self, action: &str, point: &str) {
        std::fs::write(self.folder.join(format!("{action}.{point}")), "").unwrap();
    }

    /// Takes an order back; `false` when it was carried out.
    pub(crate) fn take_back(&self, action: &str, point: &str) -> bool {
        std::fs::remove_file(self.folder.join(format!("{action}.{point}"))).is_ok()
    }

    /// Waits until a step is held at a point.
    pub(crate) async fn held(&self, point: &str) {
        let path = self.folder.join(format!("waiting.{point}"));
        until(&format!("{point} is held"), async || path.exists().then_some(())).await;
    }

    /// The points that were passed and that every run passes, each once, in the order of their first time.
    pub(crate) fn reached(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let text = std::fs::read_to_string(self.folder.join("reached")).unwrap_or_default();
        let always = |point: &&str| !SOMETIMES.iter().any(|step| point.contains(step));
        text.lines().filter(always).filter(|line| seen.insert(line.to_string())).map(ToString::to_string).collect()
    }
}
