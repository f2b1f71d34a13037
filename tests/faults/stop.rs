//! Stop stops.

use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::store::jobs::{self, StopRequest};
use tunesmith::store::{Status, custom_models};

use super::process::{House, until};
use super::tiny;
use crate::jobs::database::block_on;

#[test]
fn a_running_job_is_stopped_within_seconds_and_makes_no_model() {
    block_on(async {
        let house = House::new().await;
        let _service = house.start(&["serve"]);
        house.upload_data().await;
        let spec = tiny::job(1);
        house.submit(&spec).await;
        house.at_step(&spec, 20).await;

        let clock = Clock::system();
        let asked = clock.monotonic();
        let answer =
            jobs::request_stop(&house.db, &spec.account_id, &spec.name, clock.now(), clock.database()).await.unwrap();
        assert_eq!(answer, StopRequest::Accepted);
        until("the job is stopped", async || (house.job(&spec).await.status == Status::Stopped).then_some(())).await;
        let took = clock.monotonic().duration_since(asked);
        // The promise is two seconds and a step; the rest is for a busy machine.
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert!(custom_models::find(&house.db, &spec.account_id, &spec.output_model_name).await.unwrap().is_none());
        assert_eq!(house.events(&spec).await, ["Created", "Claimed", "StopRequested", "Stopped"]);
    });
}
