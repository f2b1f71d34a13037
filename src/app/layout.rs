//! Where a job's objects lie. Under `<outputDataConfig.s3Uri>/model-customization-job-<id>/`:
//!
//! - `.tunesmith/attempt-<n>/`, with `checkpoints/step-<step>/`, `responses/` (a teacher's answers) and `outputs/`: what
//!   attempt n writes while it works. No other attempt writes there. All of it is removed within seconds of the job's
//!   end. Earlier versions wrote the same folders without `.tunesmith/`, which are still read and removed.
//! - `training_artifacts/step_wise_training_metrics.csv` and, of a reinforcement job,
//!   `validation_artifacts/trajectories.jsonl`: grow while the job runs; written only over what the attempt saw there
//!   before it asked the database whether it still holds the job, so a stale worker replaces nothing that is newer.
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

/// The one folder of everything that is removed when the job has ended, relative to the job's folder.
const HIDDEN: &str = ".tunesmith";

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
        self.hidden(&format!("attempt-{attempt}/outputs"))
    }

    /// Where the outputs of an attempt may lie, whichever version it was of.
    pub(crate) fn attempt_outputs_of_any(&self, attempt: i64) -> [Uri; 2] {
        [self.attempt_outputs(attempt), self.root.join(&format!("attempt-{attempt}/outputs"))]
    }

    /// Where the checkpoints of an attempt may lie, whichever version it was of.
    pub(crate) fn checkpoints(&self, attempt: i64) -> [Uri; 2] {
        let below = format!("attempt-{attempt}/checkpoints");
        [self.hidden(&below).folder(), self.root.join(&below).folder()]
    }

    /// Where an attempt puts the checkpoint of a step.
    pub(crate) fn checkpoint(&self, attempt: i64, step: u64) -> Uri {
        self.hidden(&format!("attempt-{attempt}/checkpoints/step-{step:08}"))
    }

    /// Where an attempt puts its object number `n` of a teacher's answers.
    pub(crate) fn response(&self, attempt: i64, n: u64) -> Uri {
        self.hidden(&format!("attempt-{attempt}/responses/{n:06}.jsonl"))
    }

    /// What the keys of all working objects begin with: of this version, and of earlier ones.
    pub(crate) fn attempts(&self) -> [Uri; 2] {
        [self.root.join(HIDDEN).folder(), self.root.join("attempt-")]
    }

    fn hidden(&self, below: &str) -> Uri {
        self.root.join(HIDDEN).join(below)
    }

    /// How objects of this job are to be stored.
    pub(crate) fn put(&self) -> Put<'_> {
        Put { content_type: None, kms_key: self.kms_key.as_deref() }
    }
}

/// A checkpoint and where it lies, in the order in which checkpoints of one attempt are made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CheckpointPlace {
    pub(crate) attempt: i64,
    pub(crate) step: u64,
    pub(crate) folder: Uri,
}

impl CheckpointPlace {
    /// The checkpoint that an object belongs to, from its key.
    pub(crate) fn of(object: &Uri) -> Option<Self> {
        let (before, after) = object.key().rsplit_once("/checkpoints/step-")?;
        let attempt = before.rsplit_once("/attempt-")?.1.parse().ok()?;
        let (digits, _) = after.split_once('/')?;
        let folder = Uri::new(object.bucket(), format!("{before}/checkpoints/step-{digits}"));
        Some(Self { attempt, step: digits.parse().ok()?, folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_known_by_its_key_in_the_layout_of_any_version() {
        let root = "out/model-customization-job-abc";
        for hidden in ["", "/.tunesmith"] {
            let folder = format!("{root}{hidden}/attempt-12/checkpoints/step-00000340");
            let place = CheckpointPlace::of(&Uri::new("b", format!("{folder}/listing.json"))).unwrap();
            assert_eq!(place, CheckpointPlace { attempt: 12, step: 340, folder: Uri::new("b", folder) });
        }
        for other in ["out/attempt-1/outputs/adapter/adapter_config.json", "out/checkpoints/step-00000340/listing.json"]
        {
            assert_eq!(CheckpointPlace::of(&Uri::new("b", other)), None);
        }
    }

    #[test]
    fn all_that_an_attempt_writes_while_it_works_lies_in_one_hidden_folder() {
        let layout = Layout { root: Uri::new("b", "out/model-customization-job-abc"), kms_key: None };
        let hidden = layout.attempts()[0].to_string();
        assert_eq!(hidden, "s3://b/out/model-customization-job-abc/.tunesmith/");
        for uri in [layout.attempt_outputs(3), layout.checkpoint(3, 7), layout.response(3, 1)] {
            assert!(uri.to_string().starts_with(&hidden), "{uri}");
        }
        let place = CheckpointPlace::of(&layout.checkpoint(3, 7).join("x")).unwrap();
        assert_eq!((place.attempt, place.step, place.folder), (3, 7, layout.checkpoint(3, 7)));
    }
}
