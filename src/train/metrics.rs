//! The two CSV files of Bedrock's "Analyze the results of a model customization job": one line per
//! step, one line per validation, appended while the run goes on. A checkpoint carries a copy of what
//! they held, so a resumed run's files have no line twice and none missing.

use std::path::{Path, PathBuf};

use crate::durable;
use crate::error::Result;

/// One of the two files.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Table {
    Training,
    Validation,
    /// Not a table: what a policy said, in JSON Lines.
    Trajectories,
}

impl Table {
    /// Where it lies below the output folder.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Training => "training_artifacts/step_wise_training_metrics.csv",
            Self::Validation => "validation_artifacts/post_fine_tuning_validation/validation/validation_metrics.csv",
            Self::Trajectories => "validation_artifacts/trajectories.jsonl",
        }
    }

    /// Its name inside a checkpoint.
    pub(crate) fn copy_name(self) -> &'static str {
        match self {
            Self::Training => "step_wise_training_metrics.csv",
            Self::Validation => "validation_metrics.csv",
            Self::Trajectories => "trajectories.jsonl",
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::Training => "step_number,epoch_number,training_loss,perplexity",
            Self::Validation => "step_number,epoch_number,validation_loss,perplexity",
            Self::Trajectories => "",
        }
    }
}

/// What stands in a line.
#[derive(Debug)]
pub(crate) struct Measured<'a> {
    /// A mean in nats.
    pub(crate) loss: f64,
    /// Its exponential, where the loss is one of tokens; else the cell stays empty.
    pub(crate) perplexity: Option<f64>,
    /// What the objective measures beside it, in the order of the columns.
    pub(crate) extra: &'a [(&'a str, f64)],
}

/// An open file of metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    file: durable::Appender,
}

impl Metrics {
    /// Creates the file below `output`, with a column for each of `extra` behind the contract's, and with the lines
    /// of a checkpoint if there is one.
    pub(crate) fn create(output: &Path, table: Table, extra: &[&str], earlier: Option<&[u8]>) -> Result<Self> {
        let path = output.join(table.path());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let header: String = [table.header()].into_iter().chain(extra.iter().copied()).collect::<Vec<_>>().join(",");
        let file = durable::Appender::create(&path, earlier.unwrap_or(format!("{header}\n").as_bytes()))?;
        Ok(Self { path, file })
    }

    /// Appends the line of `step`.
    pub(crate) fn append(&mut self, step: u64, epoch: u64, measured: &Measured<'_>) -> Result<()> {
        let Measured { loss, perplexity, extra } = measured;
        let perplexity = perplexity.map(|value| value.to_string()).unwrap_or_default();
        let extra: String = extra.iter().map(|(_, value)| format!(",{value}")).collect();
        // One write: whoever reads the growing file sees whole lines.
        Ok(self.file.append(format!("{step},{epoch},{loss},{perplexity}{extra}\n").as_bytes())?)
    }

    /// Everything written so far.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(&self.path)?)
    }

    /// Step and loss of every line.
    pub(crate) fn points(&self) -> Result<Vec<(u64, f64)>> {
        let text = String::from_utf8(self.bytes()?).map_err(anyhow::Error::from)?;
        let point = |line: &str| {
            let mut cells = line.split(',');
            let step = cells.next()?.parse().ok()?;
            Some((step, cells.nth(1)?.parse().ok()?))
        };
        Ok(text.lines().skip(1).filter_map(point).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(loss: f64) -> Measured<'static> {
        Measured { loss, perplexity: Some(loss.exp()), extra: &[] }
    }

    #[test]
    fn an_objective_has_its_columns_behind_those_of_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["rewards/margins", "rewards/accuracies"];
        let mut metrics = Metrics::create(dir.path(), Table::Training, &names, None).unwrap();
        let extra = [(names[0], 0.25), (names[1], 1.0)];
        metrics.append(0, 0, &Measured { loss: 0.5, perplexity: None, extra: &extra }).unwrap();
        let text = std::fs::read_to_string(dir.path().join(Table::Training.path())).unwrap();
        let header = "step_number,epoch_number,training_loss,perplexity,rewards/margins,rewards/accuracies";
        assert_eq!(text, format!("{header}\n0,0,0.5,,0.25,1\n"));
        assert_eq!(metrics.points().unwrap(), [(0, 0.5)]);
    }

    #[test]
    fn lines_have_the_columns_of_the_contract_and_read_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::create(dir.path(), Table::Training, &[], None).unwrap();
        metrics.append(0, 0, &tokens(0.1 + 0.2)).unwrap();
        metrics.append(1, 0, &tokens(f64::NAN)).unwrap();
        let text = std::fs::read_to_string(dir.path().join(Table::Training.path())).unwrap();
        assert_eq!(
            text,
            "step_number,epoch_number,training_loss,perplexity\n0,0,0.30000000000000004,1.3498588075760032\n1,0,NaN,NaN\n"
        );
        let points = metrics.points().unwrap();
        assert_eq!(points[0], (0, 0.1 + 0.2));
        assert!(points[1].1.is_nan());
    }

    #[test]
    fn a_resumed_file_goes_on_after_the_checkpoints_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::create(dir.path(), Table::Validation, &[], None).unwrap();
        metrics.append(4, 0, &tokens(1.0)).unwrap();
        let kept = metrics.bytes().unwrap();
        metrics.append(9, 1, &tokens(0.5)).unwrap();
        let mut resumed = Metrics::create(dir.path(), Table::Validation, &[], Some(&kept)).unwrap();
        resumed.append(9, 1, &tokens(0.25)).unwrap();
        assert_eq!(resumed.points().unwrap(), [(4, 1.0), (9, 0.25)]);
    }
}
