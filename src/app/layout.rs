//! Where a job's objects lie. Under `<outputDataConfig.s3Uri>/model-customization-job-<id>/`:
//!
//! - `attempt-<n>/checkpoints/step-<step>/`, `attempt-<n>/responses/` (a teacher's answers) and
//!   `attempt-<n>/outputs/`: what attempt n writes while it works. No other attempt writes there, and it is removed
//!   some time after the job has ended.
//! - `training_artifacts/step_wise_training_metrics.csv` and, of a reinforcement job,
//!   `validation_artifacts/trajectories.jsonl`: grow while the job runs; written only after asking the database whether
//!   the attempt still holds the job.
//! - everything else at its final key (`adapter/…`, `validation_artifacts/…`, `training_manifest.json`,
//!   `loss.svg`, `data_report.jsonl`): written only after one statement decided which attempt's uploaded
//!   outputs are the result. From then on whoever writes these keys, however late, writes the same bytes,
//!   so a stale worker cannot change what is visible.

use crate::error::{Error, Result};
use crate::objects::{Put, Uri};
use crate::store::jobs::JobSpec;

/// The metrics file that grows while the job runs, relative to the job's folder.
pub(crate) const TRAINING_METRICS: &str = "training_artifacts/step_wise_training_metrics.csv";
/// What the policy of a reinforcement job said at each evaluation, relative to the job's folder.
pub(crate) const TRAJECTORIES: &str = "validation_artifacts/trajectories.jsonl";
/// Every bad line of the data set, relative to the job's folder.
pub(crate) const DATA_REPORT: &str = "data_report.jsonl";

/// The folder of a job.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Everything of the job lies under it.
    pub(crate) root: Uri,
    /// The key that S3 is asked to encrypt what is written there with.
    pub(crate) kms_key: Option<String>,
}

impl Layout {
    pub(crate) fn of(spec: &JobSpec) -> Result<Self> {
        let prefix = spec
            .output_prefix()
            .ok_or_else(|| Error::validation("outputDataConfig.s3Uri is missing: say where the outputs should go"))?;
        Ok(Self { root: Uri::parse(&prefix)?, kms_key: spec.kms_key_arn.clone() })
    }

    /// The final place of an output.
    pub(crate) fn output(&self, name: &str) -> Uri {
        self.root.join(name)
    }

    /// Where an attempt puts its outputs before it is decided that they are the result.
    pub(crate) fn attempt_outputs(&self, attempt: i64) -> Uri {
        self.root.join(&format!("attempt-{attempt}/outputs"))
    }

    /// Where an attempt puts its checkpoints.
    pub(crate) fn checkpoints(&self, attempt: i64) -> Uri {
        self.root.join(&format!("attempt-{attempt}/checkpoints")).folder()
    }

    /// Where an attempt puts the checkpoint of a step.
    pub(crate) fn checkpoint(&self, attempt: i64, step: u64) -> Uri {
        self.root.join(&format!("attempt-{attempt}/checkpoints/step-{step:08}"))
    }

    /// Where an attempt puts its object number `n` of a teacher's answers.
    pub(crate) fn response(&self, attempt: i64, n: u64) -> Uri {
        self.root.join(&format!("attempt-{attempt}/responses/{n:06}.jsonl"))
    }

    /// What the keys of every attempt's working objects begin with.
    pub(crate) fn attempts(&self) -> Uri {
        self.root.join("attempt-")
    }

    /// How objects of this job are to be stored.
    pub(crate) fn put(&self) -> Put<'_> {
        Put { content_type: None, kms_key: self.kms_key.as_deref() }
    }
}

/// The attempt and the step of the checkpoint that an object belongs to, from its key.
pub(crate) fn checkpoint_of(key: &str) -> Option<(i64, u64)> {
    let (before, after) = key.rsplit_once("/checkpoints/step-")?;
    let attempt = before.rsplit_once("/attempt-")?.1.parse().ok()?;
    let step = after.split_once('/')?.0.parse().ok()?;
    Some((attempt, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_known_by_its_key() {
        let key = "out/model-customization-job-abc/attempt-12/checkpoints/step-00000340/listing.json";
        assert_eq!(checkpoint_of(key), Some((12, 340)));
        assert_eq!(checkpoint_of("out/attempt-1/outputs/adapter/adapter_config.json"), None);
        assert_eq!(checkpoint_of("out/checkpoints/step-00000340/listing.json"), None);
    }
}
