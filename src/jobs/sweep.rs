//! Ends what no worker will end: jobs being stopped whose worker is gone, and jobs whose attempts keep
//! dying. Any process may sweep, any number of them at once.

use super::queue::STRIKE_LIMIT;
use crate::clock::Clock;
use crate::error::Result;
use crate::store::{Db, queue};

/// What the owner of a job is told whose workers keep dying.
const WORN_OUT: &str = "The training process ended unexpectedly each time it was tried, without reaching a \
    checkpoint. The usual reason is memory: use a smaller batchSize or shorter records, or a machine with more memory; \
    the service's log says more. Then create a new job.";

/// One round; returns how many jobs it ended.
pub async fn sweep(db: &Db, clock: &Clock) -> Result<u64> {
    queue::sweep(db, clock.now(), STRIKE_LIMIT, WORN_OUT).await
}
