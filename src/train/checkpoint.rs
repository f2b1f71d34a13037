//! Checkpoints: a folder `step-XXXXXXXX` each, whole or not there. It is written under another name,
//! its manifest with the digests of all files last, everything is synced, then it is renamed. A run
//! goes on from the newest one whose digests hold and that belongs to the same run.
//!
//! The manifest names the format. 1 had none, and one digest for its run; 2 has the run's [`Identity`]. Both are read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::identity::{Identity, RunIdentity};
use super::metrics::Table;
use super::reference::REFERENCE;
use crate::data::Cursor;
use crate::data::corpus::sha256_of;
use crate::durable;
use crate::error::{Error, Result};
use crate::models::{Precision, save_tensors};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
/// The trained weights.
pub(crate) const WEIGHTS: &str = "weights.safetensors";
/// The optimizer's moments.
pub(crate) const OPTIMIZER: &str = "optimizer.safetensors";
/// The weights with the lowest validation loss.
pub(crate) const BEST: &str = "best.safetensors";
/// The format that is written.
const FORMAT: u32 = 2;
/// How many checkpoints stay: the newest, and one before it should the newest be damaged.
const KEPT: usize = 2;

/// Where a run stands, apart from its tensors and metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    /// Digest over all that the run depends on.
    pub(crate) run: String,
    /// What that is: a checkpoint of another run is not taken up. Absent in format 1.
    #[serde(default)]
    pub(crate) identity: Option<Identity>,
    /// Steps taken.
    pub(crate) step: u64,
    /// Updates of the optimizer: steps less the skipped ones.
    pub(crate) updates: u64,
    /// Where the next batch begins.
    pub(crate) cursor: Cursor,
    /// Tokens that went through the model in training.
    pub(crate) tokens: u64,
    /// The most tokens of a micro-batch: the run goes on as it was cut.
    pub(crate) token_budget: usize,
    /// Steps skipped in a row because of values that are not finite.
    pub(crate) skipped: u64,
    /// Epoch of the last step.
    pub(crate) epoch: u64,
    /// Loss of the last step that was not skipped.
    pub(crate) training_loss: Exact,
    /// After how many steps the validation data was passed over last.
    pub(crate) validated: u64,
    /// What came out, for each validation file.
    pub(crate) validation_losses: Vec<Exact>,
    /// The lowest validation loss and after how many steps, while early stopping watches.
    pub(crate) best: Option<(Exact, u64)>,
    /// Validations in a row without enough improvement.
    pub(crate) stale: u64,
    /// The validation loss has ended the run.
    pub(crate) stopped_early: bool,
}

/// A number that comes out of a file with the bits it went in with, NaN included: JSON promises neither.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Exact(pub(crate) f64);

impl From<Exact> for String {
    fn from(Exact(value): Exact) -> Self {
        value.to_string()
    }
}

impl TryFrom<String> for Exact {
    type Error = std::num::ParseFloatError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// What a checkpoint holds.
pub(crate) struct Contents<'a> {
    pub(crate) state: &'a State,
    pub(crate) weights: &'a [(String, Tensor)],
    pub(crate) optimizer: &'a [(String, Tensor)],
    pub(crate) best: Option<&'a [(String, Tensor)]>,
    pub(crate) metrics: &'a [(Table, Vec<u8>)],
    /// What a reference makes of the records, where the objective has one.
    pub(crate) reference: Option<&'a [u8]>,
    /// Writes into the folder what a server needs beside the weights to answer with them.
    pub(crate) servable: &'a dyn Fn(&Path) -> Result<()>,
}

/// `manifest.json`: the format, and the digest of every other file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default = "first_format")]
    format_version: u32,
    files: BTreeMap<String, String>,
}

fn first_format() -> u32 {
    1
}

/// A checkpoint that was read and found whole.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) dir: PathBuf,
    pub(crate) state: State,
}

impl Checkpoint {
    /// The lines a metrics file held, if it existed.
    pub(crate) fn metrics(&self, table: Table) -> Result<Option<Vec<u8>>> {
        let path = self.dir.join(table.copy_name());
        Ok(if path.exists() { Some(fs::read(path)?) } else { None })
    }
}

/// Writes a checkpoint below `root`, removes those that are too many, and says where it lies.
pub(crate) fn save(root: &Path, contents: &Contents<'_>) -> Result<PathBuf> {
    let dir = root.join(format!("step-{:08}", contents.state.step));
    let unfinished = root.join(format!(".step-{:08}.unfinished", contents.state.step));
    remove(&unfinished)?;
    fs::create_dir_all(&unfinished)?;
    save_tensors(&unfinished.join(WEIGHTS), contents.weights, Precision::F32)?;
    save_tensors(&unfinished.join(OPTIMIZER), contents.optimizer, Precision::F32)?;
    if let Some(best) = contents.best {
        save_tensors(&unfinished.join(BEST), best, Precision::F32)?;
    }
    for (table, bytes) in contents.metrics {
        durable::write(&unfinished.join(table.copy_name()), bytes)?;
    }
    if let Some(bytes) = contents.reference {
        durable::write(&unfinished.join(REFERENCE), bytes)?;
    }
    durable::write(&unfinished.join(STATE), serde_json::to_vec_pretty(contents.state)?)?;
    (contents.servable)(&unfinished)?;
    let mut files = BTreeMap::new();
    for name in names(&unfinished)? {
        let path = unfinished.join(&name);
        files.insert(name, sha256_of(&path)?);
    }
    let manifest = Manifest { format_version: FORMAT, files };
    durable::write(&unfinished.join(MANIFEST), serde_json::to_vec_pretty(&manifest)?)?;
    durable::sync_folder(&unfinished)?;
    // A damaged one of the same step may be in the way.
    remove(&dir)?;
    durable::rename(&unfinished, &dir)?;
    let all = all(root)?;
    for (_, old) in all.iter().rev().skip(KEPT) {
        remove(old)?;
    }
    Ok(dir)
}

/// The newest whole checkpoint of this run below `root`; why newer ones are not used goes to `refused`.
pub(crate) fn newest(root: &Path, run: &RunIdentity, refused: &mut dyn FnMut(&str)) -> Result<Option<Checkpoint>> {
    for (_, dir) in all(root)?.into_iter().rev() {
        match open(&dir, run) {
            Ok(Ok(checkpoint)) => return Ok(Some(checkpoint)),
            Ok(Err(why)) => refused(&format!("{} {why}", name_of(&dir))),
            Err(cause) => refused(&format!("{} is damaged and is not used: {cause:#}", name_of(&dir))),
        }
    }
    Ok(None)
}

/// A checkpoint, or why it is not of this run or this version's to read; the outer error is of a damaged one.
fn open(dir: &Path, run: &RunIdentity) -> anyhow::Result<Result<Checkpoint, String>> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join(MANIFEST))?)?;
    let format = manifest.format_version;
    if format > FORMAT {
        return Ok(Err(format!(
            "has format {format} and is not used: this version of the program reads formats 1 to {FORMAT}"
        )));
    }
    for (name, expected) in &manifest.files {
        // The manifest may come from an object store: it names files of this folder only.
        anyhow::ensure!(Path::new(name).components().count() == 1 && name != "..", "{name:?} is no file name");
        let digest = sha256_of(&dir.join(name)).map_err(|cause| anyhow::anyhow!("{name}: {}", cause.log()))?;
        anyhow::ensure!(digest == *expected, "the digest of {name} does not hold");
    }
    for name in [STATE, WEIGHTS, OPTIMIZER] {
        anyhow::ensure!(manifest.files.contains_key(name), "{name} is missing");
    }
    let state: State = serde_json::from_slice(&fs::read(dir.join(STATE))?)?;
    let why = match format {
        1 => run.refuses_format_1(&state.run),
        _ => run.refuses(state.identity.as_ref()),
    };
    Ok(match why {
        Some(why) => Err(format!("belongs to another run and is not used: {why}")),
        None => Ok(Checkpoint { dir: dir.to_path_buf(), state }),
    })
}

/// All checkpoint folders below `root` by step.
fn all(root: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if let Some(step) = name_of(&path).strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(name_of(&entry?.path()));
    }
    names.sort_unstable();
    Ok(names)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(Error::internal(cause)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn save_at(root: &Path, step: u64) -> PathBuf {
        let state = State {
            run: String::new(),
            identity: Some(RunIdentity::named("run").identity().clone()),
            step,
            updates: step,
            cursor: Cursor { epoch: 1, position: 2 },
            tokens: 3,
            token_budget: 64,
            skipped: 0,
            epoch: 1,
            training_loss: Exact(0.1 + 0.2),
            validated: 0,
            validation_losses: vec![Exact(1.5)],
            best: Some((Exact(1.5), 1)),
            stale: 1,
            stopped_early: false,
        };
        let tensors = [("w".to_string(), Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap())];
        let metrics = [(Table::Training, b"lines".to_vec())];
        let contents = Contents {
            state: &state,
            weights: &tensors,
            optimizer: &tensors,
            best: None,
            metrics: &metrics,
            reference: None,
            servable: &|_| Ok(()),
        };
        save(root, &contents).unwrap()
    }

    fn newest_step(root: &Path, run: &str) -> (Option<u64>, Vec<String>) {
        let mut warnings = Vec::new();
        let found = newest(root, &RunIdentity::named(run), &mut |text| warnings.push(text.to_string())).unwrap();
        (found.map(|checkpoint| checkpoint.state.step), warnings)
    }

    #[test]
    fn the_newest_is_read_back_as_it_was_and_only_two_stay() {
        let root = tempfile::tempdir().unwrap();
        for step in 1..=4 {
            save_at(root.path(), step);
        }
        assert_eq!(names(root.path()).unwrap(), ["step-00000003", "step-00000004"]);
        let checkpoint = newest(root.path(), &RunIdentity::named("run"), &mut |_| {}).unwrap().unwrap();
        assert_eq!(checkpoint.state.training_loss, Exact(0.1 + 0.2));
        assert_eq!(checkpoint.metrics(Table::Training).unwrap().unwrap(), b"lines");
        assert_eq!(checkpoint.metrics(Table::Validation).unwrap(), None);
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_with_a_warning_whatever_the_damage() {
        type Damage = (&'static str, fn(&Path));
        let damages: [Damage; 5] = [
            ("a flipped bit", |dir| {
                let mut bytes = fs::read(dir.join(WEIGHTS)).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(dir.join(WEIGHTS), bytes).unwrap();
            }),
            ("a cut file", |dir| fs::write(dir.join(OPTIMIZER), b"").unwrap()),
            ("a missing file", |dir| fs::remove_file(dir.join(STATE)).unwrap()),
            ("no manifest", |dir| fs::remove_file(dir.join(MANIFEST)).unwrap()),
            ("a manifest of nothing", |dir| fs::write(dir.join(MANIFEST), b"{\"files\": {}}").unwrap()),
        ];
        for (what, damage) in damages {
            let root = tempfile::tempdir().unwrap();
            save_at(root.path(), 7);
            damage(&save_at(root.path(), 9));
            let (step, warnings) = newest_step(root.path(), "run");
            assert_eq!(step, Some(7), "{what}");
            assert!(warnings.len() == 1 && warnings[0].starts_with("step-00000009 is damaged"), "{warnings:?}");
            // The damaged one does not block a new one of its step.
            save_at(root.path(), 9);
            assert_eq!(newest_step(root.path(), "run").0, Some(9));
        }
    }

    #[test]
    fn a_checkpoint_of_another_run_is_not_taken_up() {
        let root = tempfile::tempdir().unwrap();
        save_at(root.path(), 3);
        let (step, warnings) = newest_step(root.path(), "another");
        assert_eq!(step, None);
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(warning.starts_with("step-00000003 belongs to another run"), "{warning}");
    }

    #[test]
    fn a_checkpoint_of_a_later_format_is_refused_by_its_number() {
        let root = tempfile::tempdir().unwrap();
        let path = save_at(root.path(), 3).join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap().replace("\"formatVersion\": 2", "\"formatVersion\": 3");
        fs::write(&path, text).unwrap();
        let (step, warnings) = newest_step(root.path(), "run");
        assert_eq!(step, None);
        let expected = "step-00000003 has format 3 and is not used: this version of the program reads formats 1 to 2";
        assert_eq!(warnings, [expected]);
    }

    #[test]
    fn an_unfinished_checkpoint_is_not_seen() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(".step-00000005.unfinished")).unwrap();
        assert_eq!(newest_step(root.path(), "run"), (None, vec![]));
    }
}
