//! SIGTERM is clean: a checkpoint, the job given back, exit 0, and the next process goes on at once.

use super::process::{House, until};
use super::{ADAPTER, tiny, uninterrupted};
use crate::jobs::database::block_on;

#[test]
fn a_drained_job_goes_on_where_it_was_without_waiting_for_the_lease() {
    block_on(async {
        let house = House::new().await;
        let process = house.start(&["serve"]);
        house.upload_data().await;
        let (adapter, _) = uninterrupted(&house, &tiny::job(1)).await;

        let spec = tiny::job(2);
        house.submit(&spec).await;
        house.at_step(&spec, 40).await;
        assert_eq!(process.terminate().await.code(), Some(0));
        let drained = house.job(&spec).await;
        assert_eq!((drained.worker, drained.lease_until, drained.strikes), (None, None, 0));
        assert_eq!(house.events(&spec).await, ["Created", "Claimed", "Released"]);

        let process = house.start(&["serve"]);
        until("the next process has the job", async || (house.job(&spec).await.attempt == 2).then_some(())).await;
        house.completed(&spec).await;
        assert!(process.log().contains("going on from a checkpoint"), "the work was not repeated from the start");
        assert!(house.output(&spec, ADAPTER).await == adapter, "the adapter's bits differ");
    });
}
