//! What dies, freezes or is asked to end in the middle of the work, with the real binary.

mod acknowledged;
mod bad_data;
mod crowd;
mod database_away;
mod disk;
mod drain;
mod kill;
mod kills;
mod outage;
mod points;
mod process;
mod races;
mod resume;
mod slow;
mod soak;
mod stages;
mod stale;
mod stop;
mod tiny;

use process::House;
use tunesmith::store::jobs::JobSpec;

const ADAPTER: &str = "adapter/adapter_model.safetensors";
const METRICS: &str = "training_artifacts/step_wise_training_metrics.csv";

/// What an uninterrupted run of the tiny job gives: adapter and metrics.
async fn uninterrupted(house: &House, spec: &JobSpec) -> (Vec<u8>, Vec<u8>) {
    house.submit(spec).await;
    house.completed(spec).await;
    (house.output(spec, ADAPTER).await, house.output(spec, METRICS).await)
}
