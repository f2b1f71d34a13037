//! Tensors in, artifact out: the recipe that turns a base model and a data set into an adapter or a
//! whole model. Knows no database, no object store, no HTTP and no async runtime; whoever calls
//! [`run()`] gives it folders, an [`Observer`] and a [`StopFlag`], so the service and
//! `tunesmith train job.json` run the same code.

pub mod backprop;
mod checkpoint;
mod device;
mod hold_out;
mod metrics;
mod observer;
mod optim;
mod outputs;
mod plan;
mod recipe;
mod run;
mod schedule;
mod settings;
mod side_by_side;
mod sources;
mod start;

pub use crate::data::Objective;
pub use crate::tune::TuningMethod;
pub use device::TrainingDevice;
pub use observer::{Observer, Outcome, Phase, StepMetrics, StopFlag, Summary, ValidationMetrics};
pub use plan::{Base, Plan};
pub use recipe::run;
pub use settings::{EarlyStopping, Schedule, Setting, Settings};
pub use start::OPTIMIZER_STATE;

#[cfg(test)]
mod tests;
