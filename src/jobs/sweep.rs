//! Ends what no worker will end: jobs being stopped whose worker is gone, and jobs whose attempts keep
//! dying. Any process may sweep, any number of them at once.

use super::queue::STRIKE_LIMIT;
use crate::clock::{Clock, DatabaseTime};
use crate::error::Result;
use crate::store::queue::Ends;
use crate::store::{Db, queue};

/// One round, in which `at` says whose leases have run out; returns how many jobs it ended.
pub async fn sweep(db: &Db, clock: &Clock, at: DatabaseTime) -> Result<u64> {
    queue::sweep(db, STRIKE_LIMIT, worn_out, clock.now(), at).await
}

/// What the owner of a job is told whose attempts keep dying: what was seen, and what may help.
fn worn_out(Ends { crashed, lost }: Ends) -> String {
    let times = |count: i64| if count == 1 { "once".to_string() } else { format!("{count} times") };
    let seen = match (crashed, lost) {
        (crashed, 0) => format!("the training process crashed {}", times(crashed)),
        (0, lost) => format!("its worker disappeared {}", times(lost)),
        (crashed, lost) => {
            format!("the training process crashed {} and its worker disappeared {}", times(crashed), times(lost))
        }
    };
    let advice = if lost > 0 {
        "A worker disappears when its process is killed, its machine stops or it freezes; if it was killed for want of \
         memory, use a smaller batchSize, a smaller maxSequenceLength or a machine with more memory."
    } else {
        "A crash is a fault of the service or of its machine: try other hyperparameters, for instance a smaller \
         batchSize."
    };
    format!(
        "The job was given up after attempts that came to no new checkpoint: {seen}. {advice} The service's log says \
         more. Then create a new job."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_told_what_was_seen_and_memory_only_where_it_may_be_the_reason() {
        let crashed = worn_out(Ends { crashed: 3, lost: 0 });
        assert!(crashed.contains("crashed 3 times") && !crashed.contains("memory"), "{crashed}");
        let lost = worn_out(Ends { crashed: 0, lost: 12 });
        assert!(lost.contains("disappeared 12 times") && lost.contains("memory"), "{lost}");
        let both = worn_out(Ends { crashed: 1, lost: 8 });
        assert!(both.contains("crashed once and its worker disappeared 8 times"), "{both}");
    }
}
