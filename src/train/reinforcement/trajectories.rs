//! `trajectories.jsonl`: what the policy said at each evaluation, one answer a line, for a person to read.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::metrics::Table;
use super::rollout::Trajectory;
use crate::data::PromptRecord;
use crate::durable;
use crate::error::Result;

/// The growing file.
pub(super) struct Trajectories {
    path: PathBuf,
    file: durable::Appender,
}

impl Trajectories {
    /// Creates the file below `output`, with the lines of a checkpoint if there is one.
    pub(super) fn create(output: &Path, earlier: Option<&[u8]>) -> Result<Self> {
        let path = output.join(Table::Trajectories.path());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = durable::Appender::create(&path, earlier.unwrap_or_default())?;
        Ok(Self { path, file })
    }

    /// Whether nothing was written yet.
    pub(super) fn is_empty(&self) -> Result<bool> {
        Ok(std::fs::metadata(&self.path)?.len() == 0)
    }

    /// Everything written so far.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(&self.path)?)
    }

    /// Appends an answer after `step` steps to a prompt of `file`.
    pub(super) fn append(
        &mut self,
        step: u64,
        file: &str,
        prompt: &PromptRecord,
        trajectory: &Trajectory,
    ) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.insert("file".into(), file.into());
        line.insert("line".into(), prompt.line.into());
        line.insert("prompt".into(), prompt.messages.as_slice().into());
        line.insert("answer".into(), trajectory.text.as_str().into());
        match &trajectory.graded {
            Ok(grade) => {
                line.insert("reward".into(), grade.reward.into());
                if !grade.parts.is_empty() {
                    let parts = grade.parts.iter().map(|(name, value)| (name.clone(), json!(value)));
                    line.insert("rewards".into(), Value::Object(parts.collect()));
                }
            }
            Err(why) => drop(line.insert("notGraded".into(), why.as_str().into())),
        }
        line.insert("tokens".into(), trajectory.completion.tokens.len().into());
        line.insert("stopReason".into(), trajectory.completion.stop_reason.name().into());
        if let Some(reference) = prompt.item.get("reference_answer") {
            line.insert("reference_answer".into(), reference.clone());
        }
        // One write: whoever reads the growing file sees whole lines.
        Ok(self.file.append(format!("{}\n", Value::Object(line)).as_bytes())?)
    }
}
