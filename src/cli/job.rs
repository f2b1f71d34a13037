//! The job file of `tunesmith train` and `tunesmith estimate`: what to train, on what, and where to.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::models;
use crate::train::{Base, Memory, Objective, Plan, Setting, Settings, TrainingDevice};

/// What a command's help says of the file.
pub(super) fn help() -> String {
    let line = |setting: &Setting| {
        format!("  {}: {}; {} [default: {}]", setting.name, setting.meaning, setting.range(), setting.default)
    };
    let settings = Settings::table().iter().map(line).collect::<Vec<_>>().join("\n");
    format!("{JOB_HELP}\n\nHyperparameters:\n{settings}")
}

const JOB_HELP: &str = r#"The job file is JSON:
  {
    "base": "models/llama",             a Hugging Face model directory, or, to train from nothing,
                                        {"config": "config.json", "tokenizer": "folder", "seed": 1}
    "baseId": "meta.llama3-v1:0",       what the outputs call it (the directory's name when absent)
    "start": "run-1/output/adapter",    an adapter to go on from, may be absent
    "objective": "FINE_TUNING",         or CONTINUED_PRE_TRAINING
    "training": "train.jsonl",
    "validation": ["validation.jsonl"], may be absent
    "hyperParameters": {"epochCount": 3, "learningRate": "1e-4"},
    "device": "cuda:0,cuda:1",          as --device, which goes before it; may be absent
    "slots": 2,                         copies of the model that share every batch, each on a GPU of its own or all
                                        on the CPU (as many as devices are named, or one, when absent)
    "output": "run"                     checkpoints, outputs and prepared data of this run
  }"#;

/// The job file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Job {
    base: JobBase,
    base_id: Option<String>,
    #[serde(default = "fine_tuning")]
    objective: Objective,
    /// The adapter to go on from.
    start: Option<PathBuf>,
    training: PathBuf,
    #[serde(default)]
    validation: Vec<PathBuf>,
    #[serde(default)]
    hyper_parameters: BTreeMap<String, Value>,
    device: Option<String>,
    slots: Option<NonZeroUsize>,
    output: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum JobBase {
    Directory(PathBuf),
    Random {
        config: PathBuf,
        tokenizer: PathBuf,
        #[serde(default)]
        seed: u64,
    },
}

fn fine_tuning() -> Objective {
    Objective::FineTuning
}

/// Reads the job file; paths in it are relative to its folder. `device` goes before what it says of devices.
///
/// # Errors
/// When the file, a hyperparameter in it, or a device cannot be used.
pub(super) fn plan(path: &Path, device: Option<&str>, memory: Memory) -> Result<Plan> {
    let wrong = |cause: &dyn std::fmt::Display| Error::validation(format!("{}: {cause}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|cause| wrong(&cause))?;
    let job: Job = serde_json::from_str(&text).map_err(|cause| wrong(&cause))?;
    if job.objective == Objective::Preferences {
        return Err(wrong(
            &"preferences are learned by FINE_TUNING with hyperParameters.trainingObjective dpo or reward",
        ));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let (base, defaults) = match job.base {
        JobBase::Directory(dir) => {
            let dir = folder.join(dir);
            let defaults = models::recommended_hyper_parameters(&dir)?;
            (Base::Directory(dir), defaults)
        }
        JobBase::Random { config, tokenizer, seed } => {
            let base = Base::Random { config: folder.join(config), tokenizer: folder.join(tokenizer), seed };
            (base, BTreeMap::new())
        }
    };
    let base_id = job.base_id.unwrap_or_else(|| match &base {
        Base::Directory(dir) => dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        Base::Random { .. } => "random".into(),
    });
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let given = job.hyper_parameters.into_iter().map(|(name, value)| (name, text(value))).collect();
    let devices = TrainingDevice::of_slots(device.or(job.device.as_deref()).unwrap_or("auto"), job.slots)?;
    let work_dir = folder.join(job.output);
    let beside = |name: &str| job.start.as_ref().map(|start| folder.join(start).join(name));
    Ok(Plan {
        base,
        start: job.start.as_ref().map(|start| folder.join(start)),
        optimizer_state: beside("../optimizer_state.safetensors").filter(|file| file.exists()),
        quantized: Some(work_dir.join("quantized")),
        base_id,
        training: folder.join(job.training),
        validation: job.validation.iter().map(|path| folder.join(path)).collect(),
        teacher: None,
        objective: job.objective,
        settings: Settings::parse(&given, &defaults)?,
        // The same in every attempt, so that the command run again goes on.
        seed: 0,
        work_dir,
        devices,
        memory,
        clock: Clock::system(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(job: &str) -> Result<Plan> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("job.json"), job).unwrap();
        plan(&dir.path().join("job.json"), None, Memory::host(1 << 30))
    }

    #[test]
    fn a_job_file_takes_numbers_or_strings_and_paths_from_its_folder() {
        let job = r#"{"base": "models/a", "training": "t.jsonl", "output": "run",
            "hyperParameters": {"epochCount": 2, "learningRate": "1e-3", "rsLora": true}}"#;
        let plan = plan_of(job).unwrap();
        assert_eq!((plan.settings.epoch_count, plan.settings.learning_rate), (2, 1e-3));
        assert_eq!(plan.base_id, "a");
        assert!(plan.training.is_absolute() && plan.training.ends_with("t.jsonl"));
        assert!(plan.validation.is_empty() && plan.objective == Objective::FineTuning);
    }

    #[test]
    fn a_job_names_its_devices_and_the_command_line_goes_before_it() {
        let job = |more: &str| format!(r#"{{"base": "a", "training": "t", "output": "o"{more}}}"#);
        let devices = |more: &str| plan_of(&job(more)).map(|plan| plan.devices);
        assert_eq!(devices(r#", "device": "cpu", "slots": 2"#).unwrap(), [TrainingDevice::Cpu; 2]);
        assert_eq!(devices(r#", "device": "cpu,cpu""#).unwrap(), [TrainingDevice::Cpu; 2]);
        assert!(devices(r#", "device": "tpu""#).unwrap_err().message().contains("is not a device"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.json");
        std::fs::write(&path, job(r#", "device": "tpu""#)).unwrap();
        assert_eq!(plan(&path, Some("cpu"), Memory::host(1 << 30)).unwrap().devices, [TrainingDevice::Cpu]);
    }

    #[test]
    fn a_model_can_be_trained_from_nothing() {
        let job = r#"{"base": {"config": "c.json", "tokenizer": "tok", "seed": 9}, "training": "t.jsonl",
            "objective": "CONTINUED_PRE_TRAINING", "output": "run"}"#;
        let plan = plan_of(job).unwrap();
        assert!(matches!(plan.base, Base::Random { seed: 9, .. }));
        assert_eq!((plan.objective, plan.base_id.as_str()), (Objective::ContinuedPreTraining, "random"));
    }

    #[test]
    fn what_is_wrong_with_a_job_file_is_said() {
        let unknown = r#"{"base": "a", "training": "t", "output": "o", "epochs": 3}"#;
        assert!(plan_of(unknown).unwrap_err().message().contains("unknown field `epochs`"));
        let range = r#"{"base": "a", "training": "t", "output": "o", "hyperParameters": {"epochCount": 0}}"#;
        assert!(plan_of(range).unwrap_err().message().contains("epochCount is \"0\""));
        let missing = plan(Path::new("nowhere.json"), None, Memory::host(1 << 30)).unwrap_err();
        assert!(missing.message().starts_with("nowhere.json: "));
    }
}
