//! A disk that fills while a run writes: the run ends by that name, and nothing that it left passes for whole.

use super::resume::assert_same;
use super::*;
use crate::durable::faults;

const GIVEN: [(&str, &str); 5] = [
    ("stepCount", "2"),
    ("batchSize", "4"),
    ("evaluationInterval", "1"),
    ("checkpointInterval", "1"),
    ("saveOptimizerState", "true"),
];

#[test]
fn a_disk_that_fills_at_any_step_of_writing_ends_a_run_by_name_and_the_next_attempt_has_the_same_bits() {
    let expected = {
        let dir = tempfile::tempdir().unwrap();
        tree(&complete(&plan(dir.path(), &GIVEN)).output)
    };
    let mut steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path(), &GIVEN);
        let full = faults::fail_nth(dir.path(), steps + 1);
        let outcome = run(&plan, &mut (), &StopFlag::default());
        let fired = full.fired();
        drop(full);
        match outcome {
            Ok(_) => assert!(!fired, "step {} failed and nobody heard of it", steps + 1),
            Err(error) => {
                assert!(fired && error.is_storage_full(), "step {}: {}", steps + 1, error.log());
                // There is space again: what lies there is gone on with or written anew, and never taken for whole.
                run(&plan, &mut (), &StopFlag::default()).unwrap();
            }
        }
        assert_same(&expected, &plan.output());
        if !fired {
            break;
        }
        steps += 1;
    }
    assert!(steps > 50, "{steps} steps of writing");
}
