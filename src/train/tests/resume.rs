//! An interrupted run learns the same thing: adapter, metrics and everything else have the same bits,
//! wherever the interruption fell.

use super::*;

/// Everything that has state is switched on: dropout, warm-up, several epochs, validation, best weights.
const GIVEN: [(&str, &str); 9] = [
    ("epochCount", "3"),
    ("batchSize", "4"),
    ("learningRate", "0.01"),
    ("learningRateSchedule", "cosine"),
    ("learningRateWarmupSteps", "2"),
    ("loraDropout", "0.2"),
    ("evaluationInterval", "2"),
    ("earlyStoppingPatience", "50"),
    ("checkpointInterval", "2"),
];

fn uninterrupted() -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    tree(&complete(&plan(dir.path(), &GIVEN)).output)
}

#[track_caller]
pub(in crate::train) fn assert_same(expected: &BTreeMap<String, Vec<u8>>, output: &Path) {
    let found = tree(output);
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

/// Asks the run to stop after some steps.
pub(in crate::train) struct StopAfter {
    pub(in crate::train) steps: u64,
    pub(in crate::train) flag: StopFlag,
}

impl Observer for StopAfter {
    fn step(&mut self, _: &StepMetrics) {
        self.steps -= 1;
        if self.steps == 0 {
            self.flag.raise();
        }
    }
}

/// Runs until `steps` more steps are taken; whether it came to its end before.
pub(super) fn advance(plan: &Plan, steps: u64) -> bool {
    let flag = StopFlag::default();
    let outcome = run(plan, &mut StopAfter { steps, flag: flag.clone() }, &flag).unwrap();
    outcome != Outcome::Interrupted
}

#[test]
fn a_run_stopped_after_any_number_of_steps_ends_with_the_same_bits() {
    let expected = uninterrupted();
    for stride in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path(), &GIVEN);
        let mut attempts = 1;
        while !advance(&plan, stride) {
            attempts += 1;
        }
        // Nine steps; a stop after the last one falls into its validation.
        assert!(attempts > 9 / stride, "{attempts} attempts of {stride} steps");
        assert_same(&expected, &plan.output());
    }
}

/// Keeps a copy of the checkpoints whenever one was made, as if the process were killed right then.
pub(in crate::train) struct Copies {
    pub(in crate::train) root: PathBuf,
    pub(in crate::train) copies: Vec<PathBuf>,
}

impl Observer for Copies {
    fn checkpoint(&mut self, dir: &Path, step: u64) -> Result<()> {
        let copy = self.root.join(format!("killed-{step}"));
        for (name, bytes) in tree(dir.parent().unwrap()) {
            let path = copy.join("work/checkpoints").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        self.copies.push(copy);
        Ok(())
    }
}

#[test]
fn a_killed_run_goes_on_on_another_machine_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let first = plan(dir.path(), &GIVEN);
    let mut killed = Copies { root: dir.path().join("copies"), copies: vec![] };
    run(&first, &mut killed, &StopFlag::default()).unwrap();
    let expected = tree(&first.output());
    assert_eq!(killed.copies.len(), 5, "after 2, 4, 6, 8 and 9 steps");
    for copy in killed.copies {
        let mut listener = Listener::default();
        let plan = plan(&copy, &GIVEN);
        run(&plan, &mut listener, &StopFlag::default()).unwrap();
        assert!(listener.steps.len() <= 7, "it went on and did not begin again: {}", listener.steps.len());
        assert_same(&expected, &plan.output());
    }
}

#[test]
fn a_damaged_checkpoint_costs_steps_but_not_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), &GIVEN);
    assert!(!advance(&plan, 5));
    let newest = plan.checkpoints().join("step-00000005/weights.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let mut listener = Listener::default();
    run(&plan, &mut listener, &StopFlag::default()).unwrap();
    assert_eq!(listener.steps[0].step, 4);
    assert!(listener.warnings[0].starts_with("step-00000005 is damaged"), "{:?}", listener.warnings);
    assert_same(&uninterrupted(), &plan.output());
}

#[test]
fn other_data_or_settings_are_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path(), &GIVEN);
    assert!(!advance(&plan, 3));
    plan.settings.learning_rate *= 2.0;
    let mut listener = Listener::default();
    run(&plan, &mut listener, &StopFlag::default()).unwrap();
    assert_eq!(listener.steps[0].step, 0);
    assert!(listener.warnings[0].contains("belongs to another run"), "{:?}", listener.warnings);
}

#[test]
fn full_tuning_goes_on_with_the_same_bits_too() {
    let given = [("tuningMethod", "full"), ("stepCount", "5"), ("learningRate", "1e-3"), ("weightDecay", "0.1")];
    let dir = tempfile::tempdir().unwrap();
    let expected = tree(&complete(&plan(dir.path(), &given)).output);
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), &given);
    while !advance(&plan, 2) {}
    assert_same(&expected, &plan.output());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let expected = uninterrupted();
    for threads in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let plan = plan(dir.path(), &GIVEN);
        pool.install(|| complete(&plan));
        assert_same(&expected, &plan.output());
    }
}

#[test]
fn the_number_of_threads_changes_no_bit_of_a_batch_that_runs_side_by_side() {
    // Ten records in a batch: enough to be cut into parts.
    let given: Vec<_> =
        GIVEN.into_iter().filter(|(name, _)| *name != "batchSize").chain([("batchSize", "10")]).collect();
    let with = |threads| {
        let dir = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let plan = plan(dir.path(), &given);
        let mut listener = Listener::default();
        pool.install(|| run(&plan, &mut listener, &StopFlag::default())).unwrap();
        assert!(listener.steps[0].tokens >= 128, "{} tokens are not cut", listener.steps[0].tokens);
        tree(&plan.output())
    };
    let expected = with(1);
    for threads in [2, 3] {
        assert_eq!(expected, with(threads), "{threads} threads");
    }
}
