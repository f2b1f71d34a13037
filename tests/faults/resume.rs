//! Resume costs little: what a killed attempt had done since its last checkpoint, and the time to the first new step.

use std::time::{Duration, Instant};

use super::ADAPTER;
use super::process::{House, on_each, until};
use crate::support::promise::{Dice, Promise, full, seed, times};

/// Some seconds of training.
const STEPS: usize = 1500;

on_each! {
    async fn a_kill_costs_less_than_the_training_before_it_and_a_few_seconds(house: House) {
        let kills = times(2, 30);
        let seed = seed();
        let mut dice = Dice::new(seed);
        let mut promise = Promise::new(11, "what_a_kill_costs", house.on_what()).seeded(seed);
        let mut process = house.start(&["serve"]);
        house.upload_data().await;
        let begun = Instant::now();
        let reference = house.create(&house.request("reference", STEPS)).await;
        house.completed(&reference).await;
        let pace = STEPS as f64 / begun.elapsed().as_secs_f64();
        let adapter = house.output(&reference, ADAPTER).await;
        let (mut repeated, mut first, mut again) = (0.0_f64, Duration::ZERO, 0);
        for n in 0..kills {
            let spec = house.create(&house.request(&format!("job-{n}"), STEPS)).await;
            house.at_step(&spec, 1 + dice.below(STEPS as u64 / 2)).await;
            process.kill();
            let killed = house.job(&spec).await;
            let logged = std::fs::metadata(house.data_dir().join("log")).unwrap().len() as usize;
            process = house.start(&["serve"]);
            until("the job is taken again", async || {
                (house.job(&spec).await.attempt > killed.attempt).then_some(())
            })
            .await;
            let taken = Instant::now();
            let done = killed.progress.map_or(0, |progress| progress.0.step);
            let resumed = until("a new step is taken", async || {
                let job = house.job(&spec).await;
                // Progress of the attempt before stays until the first report of this one.
                let step = job.progress.map_or(0, |progress| progress.0.step);
                (step != done || job.status.is_end()).then_some(step)
            })
            .await;
            first = first.max(taken.elapsed());
            // Only what the new process says: the log has the lines of the jobs before.
            let from = process.log()[logged..].lines().rev().find_map(|line| {
                let (_, rest) = line.split_once("going on from a checkpoint")?;
                let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
                digits.parse::<u64>().ok()
            });
            again += usize::from(from.is_some());
            let from = from.unwrap_or(0).min(done);
            repeated = repeated.max((done - from) as f64 / pace);
            println!("killed at {done}, went on from {from}, first report at {resumed}");
            house.completed(&spec).await;
            assert!(house.output(&spec, ADAPTER).await == adapter, "the adapter's bits differ");
        }
        promise.tried(format!("{kills} jobs killed once at a random step, {pace:.0} steps a second"));
        promise.found(format!(
            "at most {repeated:.1} s of training repeated; {again} went on from a checkpoint; first new step at most \
             {:.1} s after the job was taken again",
            first.as_secs_f64()
        ));
        assert!(!full() || again > 0, "no job went on from a checkpoint");
        assert!(repeated < 30.0, "one interval between checkpoints is 30 s at most");
        assert!(first < Duration::from_secs(8), "three seconds and what loading takes: {first:?}");
        promise.held();
    }
}
