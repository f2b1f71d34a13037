//! `tunesmith train job.json`: the service's trainer without the service. Shows a live bar on a
//! terminal and plain lines elsewhere; Ctrl-C keeps a checkpoint, and the same command goes on.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::Value;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::models;
use crate::train::{
    self, Base, Objective, Observer, Outcome, Phase, Plan, Settings, StepMetrics, StopFlag, TrainingDevice,
};
use crate::train::{Summary, ValidationMetrics};

/// About how many lines a run prints where there is no terminal.
const LINES: u64 = 100;

/// Train from a job file, without the service.
#[derive(Debug, clap::Args)]
#[command(after_long_help = format!("{JOB_HELP}\n\nHyperparameters:\n{}", hyper_parameters_help()))]
pub(super) struct Args {
    /// The job file; paths in it are relative to its folder
    pub(super) job: PathBuf,

    /// What to train on: `cpu`, `cuda:0`, or `auto` for the first GPU and else the CPU
    #[arg(long, default_value = "auto")]
    pub(super) device: String,
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
    "output": "run"                     checkpoints, outputs and prepared data of this run
  }"#;

fn hyper_parameters_help() -> String {
    let line = |setting: &train::Setting| {
        format!("  {}: {}; {} [default: {}]", setting.name, setting.meaning, setting.range(), setting.default)
    };
    Settings::table().iter().map(line).collect::<Vec<_>>().join("\n")
}

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

/// Runs the job.
///
/// # Errors
/// When the job file, the data or the base model cannot be used, or the run diverged.
pub(super) fn run(args: &Args) -> Result<()> {
    let plan = Plan { device: device(&args.device)?, ..plan(&args.job)? };
    let stop = StopFlag::default();
    stop_on_ctrl_c(stop.clone())?;
    let mut screen = Screen::new(std::io::stderr().is_terminal());
    let outcome = train::run(&plan, &mut screen, &stop);
    screen.bar.finish_and_clear();
    match outcome? {
        Outcome::Completed(summary) => screen.say(&report(&summary)),
        Outcome::Interrupted => screen.say(&format!(
            "Stopped; a checkpoint is kept in {}. To go on: tunesmith train {}",
            plan.checkpoints().display(),
            args.job.display()
        )),
    }
    Ok(())
}

/// The one device that is asked for.
fn device(name: &str) -> Result<TrainingDevice> {
    match TrainingDevice::parse(name)?.as_slice() {
        [first, ..] if name == "auto" => Ok(*first),
        [one] => Ok(*one),
        _ => Err(Error::validation(format!("--device: a run trains on one device, not on {name}"))),
    }
}

/// Reads the job file.
fn plan(path: &Path) -> Result<Plan> {
    let wrong = |cause: &dyn std::fmt::Display| Error::validation(format!("{}: {cause}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|cause| wrong(&cause))?;
    let job: Job = serde_json::from_str(&text).map_err(|cause| wrong(&cause))?;
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
        device: TrainingDevice::Cpu,
        work_dir,
        clock: Clock::system(),
    })
}

/// The first Ctrl-C asks the run to stop; the second is the terminal's usual end.
fn stop_on_ctrl_c(stop: StopFlag) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("ctrl-c".into()).spawn(move || {
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                eprintln!("\nStopping after a checkpoint; press Ctrl-C again to stop at once.");
                stop.raise();
            }
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        });
    })?;
    Ok(())
}

fn report(summary: &Summary) -> String {
    let losses: Vec<String> = summary.validation_losses.iter().map(|loss| format!("{loss:.4}")).collect();
    let validation = if losses.is_empty() { String::new() } else { format!(", validation loss {}", losses.join(", ")) };
    let early = if summary.stopped_early { " (stopped early)" } else { "" };
    format!(
        "Trained {} steps{early} on {} tokens: loss {:.4}{validation}.\nWeights: {}\nEverything else: {}",
        summary.steps,
        summary.tokens,
        summary.training_loss,
        summary.artifact.display(),
        summary.output.display()
    )
}

/// Shows the run.
struct Screen {
    terminal: bool,
    bar: ProgressBar,
    phase: Phase,
    /// Tokens and seconds since the last line, for the speed.
    since: (u64, f64),
    /// Seconds per step, smoothed, for the time that is left.
    pace: Option<f64>,
}

impl Screen {
    fn new(terminal: bool) -> Self {
        let bar = if terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{prefix:>10} {wide_bar} {pos}/{len}  {msg}") {
            bar.set_style(style);
        }
        Self { terminal, bar, phase: Phase::Preparing, since: (0, 0.0), pace: None }
    }

    fn say(&self, line: &str) {
        // Above the bar while there is one.
        if self.terminal && !self.bar.is_finished() { self.bar.println(line) } else { eprintln!("{line}") }
    }
}

impl Observer for Screen {
    fn phase(&mut self, phase: Phase) {
        self.phase = phase;
        let (prefix, line) = match phase {
            Phase::Preparing => ("data", "Reading the data"),
            Phase::Loading => ("model", "Loading the model"),
            Phase::Training => ("train", "Training"),
            Phase::Saving => ("save", "Writing the outputs"),
        };
        self.bar.set_prefix(prefix);
        if !self.terminal {
            eprintln!("{line}");
        }
    }

    fn progress(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    fn step(&mut self, metrics: &StepMetrics) {
        let StepMetrics { step, steps, epoch, loss, learning_rate, gradient_norm, tokens, seconds } = metrics;
        self.since = (self.since.0 + tokens, self.since.1 + seconds);
        let pace = self.pace.map_or(*seconds, |pace| 0.95 * pace + 0.05 * seconds);
        self.pace = Some(pace);
        let left = Duration::from_secs_f64(pace * (steps - step - 1) as f64);
        let speed = self.since.0 as f64 / self.since.1.max(1e-9);
        let left = indicatif::HumanDuration(left);
        self.bar.set_message(format!("loss {loss:.4}  {speed:.0} tok/s  {left:#} left"));
        let is_due = (step + 1).is_multiple_of(steps.div_ceil(LINES).max(1)) || step + 1 == *steps;
        if !self.terminal && is_due {
            eprintln!(
                "step {}/{steps} epoch {epoch} loss {loss:.4} lr {learning_rate:.2e} grad {gradient_norm:.3} \
                 {speed:.0} tok/s, {left:#} left",
                step + 1
            );
        }
        if is_due {
            self.since = (0, 0.0);
        }
    }

    fn validation(&mut self, metrics: &ValidationMetrics) {
        self.say(&format!("step {}: validation loss {:.4}", metrics.step + 1, metrics.loss));
    }

    fn warn(&mut self, message: &str) {
        self.say(&format!("warning: {message}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(job: &str) -> Result<Plan> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("job.json"), job).unwrap();
        plan(&dir.path().join("job.json"))
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
        assert!(plan(Path::new("nowhere.json")).unwrap_err().message().starts_with("nowhere.json: "));
    }
}
