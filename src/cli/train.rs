//! `tunesmith train job.json`: the service's trainer without the service. Shows a live bar on a
//! terminal and plain lines elsewhere; Ctrl-C keeps a checkpoint, and the same command goes on.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::job;
use crate::config::MemorySettings;
use crate::error::{Error, Result};
use crate::graders::{BuiltIn, Spec};
use crate::train::{
    self, Memory, Observer, Outcome, Phase, StepMetrics, StopFlag, Summary, TrainingObjective, ValidationMetrics,
};

/// About how many lines a run prints where there is no terminal.
const LINES: u64 = 100;

/// Train from a job file, without the service.
#[derive(Debug, clap::Args)]
#[command(after_long_help = job::help())]
pub(super) struct Args {
    /// The job file; paths in it are relative to its folder
    pub(super) job: PathBuf,

    /// What to train on: `cpu`, `cuda:0`, `cuda:0,cuda:1` to share every batch, or `auto` for as many GPUs as the job
    /// has slots and the CPU where there is none [default: the job file's, else auto]
    #[arg(long)]
    pub(super) device: Option<String>,

    #[command(flatten)]
    memory: MemorySettings,
}

/// Runs the job.
///
/// # Errors
/// When the job file, the data or the base model cannot be used, or the run diverged.
pub(super) fn run(args: &Args) -> Result<()> {
    let plan = job::plan(&args.job, args.device.as_deref(), Memory::host(args.memory.bytes()?))?;
    let stop = StopFlag::default();
    stop_on_ctrl_c(stop.clone())?;
    let mut screen = Screen::new(std::io::stderr().is_terminal());
    let outcome = match &plan.settings.objective {
        objective @ TrainingObjective::Reinforcement(_) => {
            let grader = plan.settings.grader.as_deref().ok_or_else(|| {
                Error::validation(format!(
                    "trainingObjective {} needs a grader: give hyperParameters.grader, a built-in one",
                    objective.name()
                ))
            })?;
            let grader = BuiltIn::new(Spec::parse(grader)?, BTreeMap::new())?;
            train::reinforce(&plan, &grader, &mut screen, &stop)
        }
        _ => train::run(&plan, &mut screen, &stop),
    };
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
    let merged = match (&summary.merged, &summary.merge_failure) {
        (Some(merged), _) => {
            let dir = summary.output.join(train::MERGED);
            format!("\n{}", super::models::said(merged, &dir).join("\n"))
        }
        (None, Some(failure)) => format!("\nThe weights could not be merged into the base: {failure}"),
        (None, None) => String::new(),
    };
    let early = if summary.stopped_early { " (stopped early)" } else { "" };
    format!(
        "Trained {} steps{early} on {} tokens: loss {:.4}{validation}.\nWeights: {}\nEverything else: {}{merged}",
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

/// What an objective measures beside the loss, for a line.
fn words(extra: &[(&str, f64)]) -> String {
    extra.iter().map(|(name, value)| format!(" {name} {value:.3}")).collect()
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
        let StepMetrics { step, steps, epoch, loss, extra, learning_rate, gradient_norm, tokens, seconds, .. } =
            metrics;
        self.since = (self.since.0 + tokens, self.since.1 + seconds);
        let pace = self.pace.map_or(*seconds, |pace| 0.95 * pace + 0.05 * seconds);
        self.pace = Some(pace);
        let left = Duration::from_secs_f64(pace * (steps - step - 1) as f64);
        let speed = self.since.0 as f64 / self.since.1.max(1e-9);
        let left = indicatif::HumanDuration(left);
        let extra = words(extra);
        self.bar.set_message(format!("loss {loss:.4}{extra}  {speed:.0} tok/s  {left:#} left"));
        let is_due = (step + 1).is_multiple_of(steps.div_ceil(LINES).max(1)) || step + 1 == *steps;
        if !self.terminal && is_due {
            eprintln!(
                "step {}/{steps} epoch {epoch} loss {loss:.4}{extra} lr {learning_rate:.2e} grad {gradient_norm:.3} \
                 {speed:.0} tok/s, {left:#} left",
                step + 1
            );
        }
        if is_due {
            self.since = (0, 0.0);
        }
    }

    fn validation(&mut self, metrics: &ValidationMetrics) {
        let extra = words(&metrics.extra);
        self.say(&format!("step {}: validation loss {:.4}{extra}", metrics.step + 1, metrics.loss));
    }

    fn warn(&mut self, message: &str) {
        self.say(&format!("warning: {message}"));
    }
}
