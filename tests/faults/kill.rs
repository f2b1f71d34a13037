//! A killed run learns the same thing.

use std::time::Duration;

use tunesmith::clock::Clock;
use tunesmith::store::custom_models;

use super::process::{House, until};
use super::{ADAPTER, METRICS, tiny, uninterrupted};
use crate::jobs::database::{block_on, variable};

/// Enough that a teacher is still answering them when it is killed.
const PROMPTS: usize = 600;
/// What a distillation learned.
const LEARNED: &str = "distillation/training_data.jsonl";

#[test]
fn a_job_whose_process_is_killed_again_and_again_ends_once_with_the_same_bits() {
    killed("lora", 4);
}

#[test]
fn a_killed_job_over_a_base_in_four_bits_ends_with_the_same_bits() {
    killed("qlora", 2);
}

#[test]
fn a_killed_job_that_trains_a_prefix_ends_with_the_same_bits() {
    killed("prefix", 2);
}

#[test]
fn a_killed_distillation_asks_no_prompt_twice_and_ends_with_the_same_bits() {
    block_on(async {
        let house = House::new().await;
        let mut process = house.start(&["serve"]);
        house.upload_data().await;
        let teacher = tiny::job(1);
        house.submit(&teacher).await;
        let teacher = house.completed(&teacher).await.output_model_arn.unwrap();
        house.put("prompts.jsonl", &tiny::prompts(PROMPTS)).await;
        let job = |n| tiny::distillation(n, &teacher);
        let (adapter, _) = uninterrupted(&house, &job(2)).await;
        let learned = house.output(&job(2), LEARNED).await;

        let spec = job(3);
        house.submit(&spec).await;
        // Killed when some answers are kept and some are not.
        house.at_step(&spec, PROMPTS as u64 / 3).await;
        process.kill();
        process = house.start(&["serve"]);
        house.completed(&spec).await;

        assert!(house.output(&spec, ADAPTER).await == adapter, "the adapter's bits differ");
        assert!(house.output(&spec, LEARNED).await == learned, "other answers were learned");
        let answers = house.answers(&spec).await;
        let kept: std::collections::BTreeSet<_> = answers.iter().collect();
        assert_eq!((answers.len(), kept.len()), (PROMPTS, PROMPTS), "a prompt was asked twice");
        assert!(house.job(&spec).await.attempt > 1);
        assert_eq!(process.terminate().await.code(), Some(0));
    });
}

fn killed(method: &str, kills: i64) {
    let job = |n| {
        let mut spec = tiny::job(n);
        spec.hyper_parameters.0.insert("tuningMethod".into(), method.into());
        spec
    };
    // TEST_SEED repeats a run that failed.
    let seed = variable("TEST_SEED").and_then(|seed| seed.parse().ok()).unwrap_or_else(|| Clock::system().seed());
    println!("TEST_SEED={seed}");
    block_on(async {
        let house = House::new().await;
        let mut process = house.start(&["serve"]);
        house.upload_data().await;
        let (adapter, metrics) = uninterrupted(&house, &job(1)).await;

        let spec = job(2);
        house.submit(&spec).await;
        let mut dice = seed;
        for kill in 0..kills {
            // Numerical Recipes' generator: enough to spread the kills over start, training and publishing.
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            until("the job is taken", async || (house.job(&spec).await.attempt > kill).then_some(())).await;
            tokio::time::sleep(Duration::from_millis((dice >> 33) % 1200)).await;
            process.kill();
            println!("kill {}: step {:?}", kill + 1, house.job(&spec).await.progress.map(|progress| progress.0.step));
            process = house.start(&["serve"]);
        }
        house.completed(&spec).await;

        assert!(house.output(&spec, ADAPTER).await == adapter, "the adapter's bits differ");
        assert_eq!(String::from_utf8(house.output(&spec, METRICS).await).unwrap(), String::from_utf8(metrics).unwrap());
        let events = house.events(&spec).await;
        assert_eq!(events.iter().filter(|kind| *kind == "Completed").count(), 1, "{events:?}");
        let models = custom_models::list(&house.db, &spec.account_id, &Default::default(), &Default::default()).await;
        assert_eq!(models.unwrap().items.len(), 2);
        assert_eq!(process.terminate().await.code(), Some(0));
    });
}
