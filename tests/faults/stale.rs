//! A stale worker changes nothing: frozen past its lease while another finishes its job, then thawed.

use super::process::{House, until};
use super::tiny;
use crate::jobs::database::block_on;

#[test]
fn a_worker_that_was_frozen_past_its_lease_changes_nothing() {
    block_on(async {
        let house = House::new().await;
        let _api = house.start(&["serve", "--role", "api"]);
        house.upload_data().await;
        let spec = tiny::job(1);
        house.submit(&spec).await;

        let frozen = house.start(&["worker"]);
        house.at_step(&spec, 20).await;
        frozen.freeze();
        let second = house.start(&["worker"]);
        let before = house.completed(&spec).await;
        // More, when the machine is so busy that the second one lost its lease too; never the frozen one.
        assert!(before.attempt >= 2, "the frozen worker completed the job");
        let (visible, events) = (house.visible(&spec).await, house.events(&spec).await);

        frozen.thaw();
        until("the stale worker sees that the job is not its own", async || {
            frozen.log().contains("attempt abandoned").then_some(())
        })
        .await;
        assert_eq!(house.job(&spec).await, before);
        assert_eq!(house.events(&spec).await, events);
        assert_eq!(house.visible(&spec).await, visible);

        // It is a good worker again.
        second.kill();
        let next = tiny::job(2);
        house.submit(&next).await;
        house.completed(&next).await;
    });
}
