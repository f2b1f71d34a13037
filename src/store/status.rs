//! The states that rows can be in, under the names of the contract. Which state may follow which is
//! said in `jobs/job.rs`.

use serde::{Deserialize, Serialize};

use super::text::text_enum;
use crate::clock::Millis;

text_enum! {
    /// Where a customization job stands. There is no queued state: a job that waits is in progress.
    pub enum Status {
        /// Waiting for a worker, or with one.
        InProgress = "InProgress",
        /// Ended with a custom model.
        Completed = "Completed",
        /// Ended with a `failureMessage`.
        Failed = "Failed",
        /// A stop was asked for; the worker has not yet confirmed it.
        Stopping = "Stopping",
        /// Ended on request, without a model.
        Stopped = "Stopped",
    }
}

text_enum! {
    /// Where one of the three sub-tasks of a job stands.
    pub enum TaskStatus {
        /// Under way.
        InProgress = "InProgress",
        /// Done.
        Completed = "Completed",
        /// Being stopped.
        Stopping = "Stopping",
        /// Stopped on request.
        Stopped = "Stopped",
        /// The reason of the job's failure.
        Failed = "Failed",
        /// Not reached.
        NotStarted = "NotStarted",
    }
}

text_enum! {
    /// What a customization job does to its base model, and how a custom model came to be.
    pub enum CustomizationType {
        /// Supervised fine-tuning on prompts and completions, or conversations.
        FineTuning = "FINE_TUNING",
        /// Next-token training on plain text.
        ContinuedPreTraining = "CONTINUED_PRE_TRAINING",
        /// Learning from a teacher's answers.
        Distillation = "DISTILLATION",
        /// Learning from a grader.
        ReinforcementFineTuning = "REINFORCEMENT_FINE_TUNING",
        /// Weights brought by the caller.
        Imported = "IMPORTED",
    }
}

text_enum! {
    /// Where a request to bring in a model stands.
    pub enum ImportStatus {
        /// Waiting for a worker, or with one.
        InProgress = "InProgress",
        /// The model is there.
        Completed = "Completed",
        /// Ended with a `failureMessage`.
        Failed = "Failed",
    }
}

text_enum! {
    /// What a model that is brought in becomes.
    pub enum ImportKind {
        /// An imported model, by an import job.
        ImportedModel = "ImportedModel",
        /// A custom model, by CreateCustomModel.
        CustomModel = "CustomModel",
    }
}

text_enum! {
    /// Where a custom model stands; one made by a job is active at once.
    pub enum ModelStatus {
        /// Can be invoked.
        Active = "Active",
        /// Being brought in.
        Creating = "Creating",
        /// Could not be brought in.
        Failed = "Failed",
    }
}

text_enum! {
    /// Where a deployment stands.
    pub enum DeploymentStatus {
        /// Being made.
        Creating = "Creating",
        /// Can be asked.
        Active = "Active",
        /// Could not be made.
        Failed = "Failed",
    }
}

text_enum! {
    /// How the last update of a deployment went.
    pub enum UpdateStatus {
        /// Under way.
        Updating = "Updating",
        /// The new model answers.
        UpdateCompleted = "UpdateCompleted",
        /// The model before still answers.
        UpdateFailed = "UpdateFailed",
    }
}

text_enum! {
    /// Where provisioned throughput stands.
    pub enum ThroughputStatus {
        /// Being made.
        Creating = "Creating",
        /// Can be asked.
        InService = "InService",
        /// Changing its model; the one before may still answer.
        Updating = "Updating",
        /// Could not be made.
        Failed = "Failed",
    }
}

text_enum! {
    /// For how long provisioned throughput was bought.
    pub enum Commitment {
        /// One calendar month.
        OneMonth = "OneMonth",
        /// Six calendar months.
        SixMonths = "SixMonths",
    }
}

/// One sub-task of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Where it stands.
    pub status: TaskStatus,
    /// When it was first begun; absent before that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub creation_time: Option<Millis>,
    /// When its status last changed; absent before it was begun.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_modified_time: Option<Millis>,
}

impl Default for Task {
    fn default() -> Self {
        Self { status: TaskStatus::NotStarted, creation_time: None, last_modified_time: None }
    }
}

/// The three sub-tasks of a job, in the order they run (`statusDetails`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tasks {
    /// Every record of the data set is checked.
    pub validation: Task,
    /// Text becomes token batches.
    pub data_processing: Task,
    /// The model learns, and the result is published.
    pub training: Task,
}
