//! Tensors in, artifact out: the recipe that turns a base model and a data set into an adapter or a
//! whole model. Knows no database, no object store, no HTTP and no async runtime; whoever calls
//! [`run()`] gives it folders, an [`Observer`] and a [`StopFlag`], so the service and
//! `tunesmith train job.json` run the same code.

pub mod backprop;
mod bench;
mod checkpoint;
mod data_parallel;
mod device;
mod estimate;
mod flops;
#[cfg(test)]
mod gradcheck;
mod grader;
mod hold_out;
mod identity;
mod learner;
mod losses;
mod metrics;
pub mod objective;
mod observer;
mod optim;
mod outputs;
mod plan;
mod planner;
mod recipe;
mod reference;
mod reinforcement;
mod run;
mod schedule;
mod settings;
mod side_by_side;
mod sources;
mod start;
mod step_parts;

pub use crate::artifacts::{Difference, Merged};
pub use crate::data::Objective;
pub use crate::tune::TuningMethod;
pub use bench::{Lengths, Measurement, SHAPES, Shape, Workload, bench, matmul_rate};
pub use device::TrainingDevice;
pub use estimate::{DataFacts, Estimate, RunFacts, estimate};
pub use flops::Flops;
pub use grader::{Grade, Graded, Grader, Sample};
pub use learner::FIRST_CHECKPOINT_TIME;
pub use losses::{LossSum, RecordLoss};
pub use objective::TrainingObjective;
pub use observer::{Observer, Outcome, Phase, StepMetrics, StopFlag, Summary, ValidationMetrics};
pub use outputs::MERGED;
pub use plan::{Base, Plan};
pub use planner::{Decision, Memory, MemoryKind, Need, Part, PartKind, Stage, refuse_the_impossible};
pub use recipe::run;
pub use reinforcement::{Algorithm, BEST_CHECKPOINT, Effort, Reinforcement, reinforce, reinforcement_hyper_parameters};
pub use settings::{EarlyStopping, Schedule, Setting, Settings};
pub use start::OPTIMIZER_STATE;
pub use step_parts::StepParts;

#[cfg(test)]
mod tests;
