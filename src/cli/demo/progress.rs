//! How far the demo's job is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::store::jobs::Progress;

/// Lines are written at most this many steps apart where there is no terminal.
const LINE_EVERY: u64 = 20;

/// Shows one job's progress.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    phase: String,
    told: u64,
}

impl Display {
    /// A display on standard error, which leaves standard output to the results.
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("  {bar:32} {pos}/{len} {msg}") {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar
        });
        Self { bar, phase: String::new(), told: 0 }
    }

    /// Shows where the job stands `elapsed` after it was created.
    pub(super) fn show(&mut self, progress: &Progress, elapsed: Duration) {
        let line = line(progress, elapsed);
        match &self.bar {
            Some(bar) => {
                bar.set_length(progress.total_steps);
                bar.set_position(progress.step);
                bar.set_message(line);
            }
            None => {
                let due = progress.step >= self.told + LINE_EVERY || progress.phase != self.phase;
                if due {
                    eprintln!("  {}/{} {line}", progress.step, progress.total_steps);
                    self.told = progress.step;
                    self.phase.clone_from(&progress.phase);
                }
            }
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Phase, loss, speed and the time that is left, as far as they are known.
fn line(progress: &Progress, elapsed: Duration) -> String {
    let mut parts = vec![progress.phase.clone()];
    if let Some(loss) = progress.training_loss {
        parts.push(format!("loss {loss:.4}"));
    }
    parts.extend(progress.measures.iter().map(|(name, value)| format!("{name} {value:.3}")));
    if let Some(speed) = progress.tokens_per_second {
        parts.push(format!("{speed:.0} tokens/s"));
    }
    if progress.step > 0 && progress.step < progress.total_steps {
        let left = (progress.total_steps - progress.step) as f64 / progress.step as f64;
        parts.push(format!("{:.0} s left", elapsed.as_secs_f64() * left));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_loss_speed_and_time_left() {
        let progress = Progress {
            phase: "training".into(),
            step: 50,
            total_steps: 200,
            training_loss: Some(0.51234),
            tokens_per_second: Some(4200.4),
            ..Progress::default()
        };
        assert_eq!(line(&progress, Duration::from_secs(10)), "training, loss 0.5123, 4200 tokens/s, 30 s left");
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let progress = Progress { phase: "preparing".into(), ..Progress::default() };
        assert_eq!(line(&progress, Duration::ZERO), "preparing");
    }
}
