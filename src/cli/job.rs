//! The job file of `tunesmith train` and `tunesmith estimate`: what to train, on what, and where to.

use std::collections::BTreeMap;
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
    "slots": 1,                         copies of the model that share every batch; may be absent
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
    slots: Option<std::num::NonZeroUsize>,
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

/// Reads the job file; paths in it are relative to its folder.
///
/// # Errors
/// When the file, or a hyperparameter in it, cannot be used.
pub(super) fn plan(path: &Path, memory: Memory) -> Result<Plan> {
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
        objective: job.objective,
        settings: Settings::parse(&given, &defaults)?,
        // The same in every attempt, so that the command run again goes on.
        seed: 0,
        work_dir,
        device: TrainingDevice::Cpu,
        slots: job.slots.map_or(1, std::num::NonZeroUsize::get),
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
        plan(&dir.path().join("job.json"), Memory::host(1 << 30))
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
        assert!(
            plan(Path::new("nowhere.json"), Memory::host(1 << 30)).unwrap_err().message().starts_with("nowhere.json: ")
        );
    }
}
