//! Model customization jobs.

pub mod create;
mod distillation;
pub mod get;
pub mod list;
mod reinforcement;
pub mod stop;

use serde::Serialize;
use utoipa::ToSchema;

use super::shapes::{self, Time};
use crate::error::Error;
use crate::store::{TaskStatus, jobs::Job};

/// One sub-task of a job.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskDetails {
    /// Where it stands.
    #[schema(value_type = shapes::TaskStatus)]
    status: TaskStatus,
    /// When it was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    creation_time: Option<Time>,
    /// When its status last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_modified_time: Option<Time>,
}

/// The three sub-tasks of a job, in the order they run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusDetails {
    /// Every record is checked.
    validation_details: TaskDetails,
    /// Text becomes tokens.
    data_processing_details: TaskDetails,
    /// The model learns.
    training_details: TaskDetails,
}

impl StatusDetails {
    fn of(job: &Job) -> Self {
        let tasks = job.tasks.shown(job.status, job.last_modified_time);
        let details = |task: crate::store::Task| TaskDetails {
            status: task.status,
            creation_time: task.creation_time.map(Time),
            last_modified_time: task.last_modified_time.map(Time),
        };
        Self {
            validation_details: details(tasks.validation),
            data_processing_details: details(tasks.data_processing),
            training_details: details(tasks.training),
        }
    }
}

/// The same answer for a job that is not there and for one that is not the caller's.
fn no_such_job(identifier: &str) -> Error {
    Error::not_found(format!("Could not find the model customization job '{identifier}'"))
}
