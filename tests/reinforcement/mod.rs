//! Reinforcement fine-tuning from the outside: a job over HTTP, graded by a built-in grader, by a function behind the
//! Lambda API on a socket, and by a reward model that another job made.

mod function;

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunesmith::objects::Uri;

use crate::support::{TestApp, segment, with_app, with_settings, with_worker};
use function::Function;

const STARTER: &str = "tunesmith.starter-v1:0";
const LAMBDA: &str = "arn:aws:lambda:us-east-1:000000000000:function:grader";
/// Things that the starter model knows by name.
const THINGS: [&str; 24] = [
    "desk lamp",
    "coffee grinder",
    "rain jacket",
    "office chair",
    "water bottle",
    "yoga mat",
    "bread knife",
    "wool blanket",
    "phone case",
    "alarm clock",
    "garden hose",
    "travel bag",
    "tea kettle",
    "table fan",
    "soup bowl",
    "tool box",
    "wall clock",
    "lunch box",
    "sun hat",
    "pepper mill",
    "frying pan",
    "plant pot",
    "ink pen",
    "gym bag",
];

/// Prompts of a task that the model was never taught but can at times do by chance: of five things, name the last.
fn prompts(count: usize, seed: usize) -> String {
    let mut state = seed as u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut lines = String::new();
    for _ in 0..count {
        let mut things = THINGS.to_vec();
        let listed: Vec<&str> = (0..5).map(|_| things.swap_remove(draw(things.len()))).collect();
        let asked = format!("Which of these comes last: {}?", listed.join(", "));
        let record = json!({
            "messages": [{"role": "user", "content": asked}],
            "reference_answer": format!("The {}.", listed[4]),
        });
        lines += &format!("{record}\n");
    }
    lines
}

fn string_check() -> String {
    json!({"type": "string_check", "operation": "eq", "input": "{{ sample.output_text }}",
        "reference": "{{ item.reference_answer }}"})
    .to_string()
}

/// A request for a job that nothing stands in the way of.
fn request(app: &TestApp, name: &str, rft: Value, hyper_parameters: Value) -> Value {
    let mut job = app.job(name);
    job["baseModelIdentifier"] = json!(STARTER);
    job["customizationType"] = json!("REINFORCEMENT_FINE_TUNING");
    job["customizationConfig"] = json!({ "rftConfig": rft });
    job["validationDataConfig"] = json!({ "validators": [{ "s3Uri": "s3://tuning/held-out.jsonl" }] });
    job["hyperParameters"] = hyper_parameters;
    job
}

async fn upload(app: &TestApp, training: usize) {
    app.upload("s3://tuning/train.jsonl", &prompts(training, 1)).await;
    app.upload("s3://tuning/held-out.jsonl", &prompts(24, 2)).await;
}

/// Creates the job and waits until it is over; the last reply about it.
async fn done(app: &TestApp, request: &Value) -> Value {
    let reply = app.call("POST", "/model-customization-jobs", Some(request)).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let name = request["jobName"].as_str().unwrap();
    loop {
        let job = app.call("GET", &format!("/model-customization-jobs/{}", segment(name)), None).await.json();
        if job["status"] != "InProgress" {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// A file of the job's outputs.
async fn output(app: &TestApp, job: &Value, name: &str) -> String {
    let id = job["jobArn"].as_str().unwrap().rsplit('/').next().unwrap().to_string();
    let uri = Uri::parse(&format!("s3://tuning/out/model-customization-job-{id}/{name}")).unwrap();
    let bytes = app.service.app.objects.get_bytes(&uri, 16 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn column(csv: &str, name: &str) -> Vec<f64> {
    let at = csv.lines().next().unwrap().split(',').position(|column| column == name).unwrap();
    csv.lines().skip(1).map(|line| line.split(',').nth(at).unwrap().parse().unwrap()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

const TRAINING: &str = "training_artifacts/step_wise_training_metrics.csv";
const VALIDATION: &str = "validation_artifacts/post_fine_tuning_validation/validation/validation_metrics.csv";

#[test]
fn the_mean_reward_of_a_verifiable_task_at_least_triples_within_five_minutes() {
    with_worker(&[], async |app| {
        upload(&app, 256).await;
        let rft = json!({ "hyperParameters": { "epochCount": 4, "batchSize": 16, "learningRate": 0.001,
            "trainingSamplePerPrompt": 8, "inferenceMaxTokens": 12, "evalInterval": 16 } });
        let hyper_parameters = json!({ "grader": string_check(), "learningRateSchedule": "constant", "seed": "7" });
        let request = request(&app, "last", rft.clone(), hyper_parameters);
        let began = Instant::now();
        let job = done(&app, &request).await;
        assert_eq!(job["status"], "Completed", "{job}");
        let took = began.elapsed();

        // Echoed as it was sent, numbers as numbers.
        assert_eq!(job["customizationType"], "REINFORCEMENT_FINE_TUNING");
        assert_eq!(job["customizationConfig"]["rftConfig"], rft);

        let rewards = column(&output(&app, &job, TRAINING).await, "reward");
        let evaluated = column(&output(&app, &job, VALIDATION).await, "reward");
        let (before, after) = (mean(&rewards[..4]), mean(&rewards[rewards.len() - 4..]));
        println!("{took:?}: sampled {before:.3} to {after:.3}, held out {evaluated:?}");
        assert!(before > 0.0 && after >= 3.0 * before, "{before} to {after}: {rewards:?}");
        assert!(took < Duration::from_secs(300), "it took {took:?}");

        let trajectories = output(&app, &job, "validation_artifacts/trajectories.jsonl").await;
        let last: Value = serde_json::from_str(trajectories.lines().last().unwrap()).unwrap();
        for member in ["prompt", "answer", "reward", "reference_answer", "stopReason"] {
            assert!(last.get(member).is_some(), "{member}: {last}");
        }
        assert_eq!(job["validationMetrics"][0]["validationLoss"].as_f64().unwrap(), -evaluated.last().unwrap());
        app
    });
}

#[test]
fn ppo_learns_the_same_task_and_its_values_what_reward_is_to_be_expected() {
    with_worker(&[], async |app| {
        upload(&app, 144).await;
        let rft = json!({ "hyperParameters": { "epochCount": 1, "batchSize": 16, "learningRate": 0.001,
            "trainingSamplePerPrompt": 8, "inferenceMaxTokens": 12, "evalInterval": 9 } });
        let hyper_parameters = json!({ "grader": string_check(), "rlAlgorithm": "ppo", "seed": "7",
            "learningRateSchedule": "constant" });
        let job = done(&app, &request(&app, "last", rft, hyper_parameters)).await;
        assert_eq!(job["status"], "Completed", "{job}");
        let csv = output(&app, &job, TRAINING).await;
        let rewards = column(&csv, "reward");
        let evaluated = column(&output(&app, &job, VALIDATION).await, "reward");
        println!("sampled {rewards:.3?}, held out {evaluated:?}");
        assert!(mean(&rewards[7..]) >= 2.0 * mean(&rewards[..2]), "{rewards:?}");
        assert!(evaluated[1] > evaluated[0], "{evaluated:?}");
        // Values that had stayed at zero would lose half the square of what follows, which is the reward less the
        // price of the divergence.
        let losses = column(&csv, "loss/value_avg");
        assert!(losses[8] < 0.25 * rewards[8].powi(2), "the values learn what follows: {losses:?}");
        app
    });
}

#[test]
fn a_function_behind_the_lambda_api_grades_a_job_and_its_failures_are_outlived() {
    // For every tenth answer it is out of order once, and all that were asked with it fail too.
    let met = Mutex::new(HashSet::new());
    let function = Function::start(move |_, event| {
        let id = event["id"].as_str()?;
        if id.ends_with('1') && met.lock().unwrap().insert(id.to_string()) {
            return None;
        }
        let answer = event["messages"].as_array()?.last()?["content"].as_str()?;
        Some(f64::from(u8::from(answer == event["metadata"]["reference_answer"].as_str()?)))
    });
    let endpoint = format!("--lambda-endpoint={}", function.url);
    with_worker(&[&endpoint], async |app| {
        upload(&app, 64).await;
        let rft = json!({ "graderConfig": { "lambdaGrader": { "lambdaArn": LAMBDA } }, "hyperParameters": {
            "epochCount": 2, "batchSize": 16, "learningRate": 0.001, "inferenceMaxTokens": 12, "evalInterval": 4 } });
        let request = request(&app, "remote", rft, json!({ "seed": "7", "learningRateSchedule": "constant" }));
        let job = done(&app, &request).await;
        assert_eq!(job["status"], "Completed", "{job}");
        let csv = output(&app, &job, TRAINING).await;
        assert_eq!(column(&csv, "reward").len(), 8);
        assert!(mean(&column(&csv, "reward")) > 0.0, "{csv}");
        assert!(column(&csv, "grader/failed").iter().all(|failed| *failed == 0.0), "{csv}");
        // 64 prompts twice with 8 answers each, and 24 answers before the first step, after the fourth and the last.
        assert!(function.graded() >= 64 * 2 * 8 + 3 * 24, "{}", function.graded());
        app
    });
}

#[test]
fn a_function_that_never_grades_fails_the_job_in_its_own_words() {
    let function = Function::start(|_, _| Some(f64::NAN));
    let endpoint = format!("--lambda-endpoint={}", function.url);
    with_worker(&[&endpoint], async |app| {
        upload(&app, 16).await;
        let rft = json!({ "graderConfig": { "lambdaGrader": { "lambdaArn": LAMBDA } },
            "hyperParameters": { "batchSize": 16, "trainingSamplePerPrompt": 2, "inferenceMaxTokens": 4 } });
        let job = done(&app, &request(&app, "broken", rft, json!({}))).await;
        assert_eq!(job["status"], "Failed", "{job}");
        let message = job["failureMessage"].as_str().unwrap();
        assert!(message.contains("the grader failed for 32 of 32 answers in step 0"), "{message}");
        app
    });
}

#[test]
fn what_is_wrong_with_a_reinforcement_job_is_told_at_once() {
    with_app(async |app| {
        upload(&app, 4).await;
        let refused = async |rft: Value, hyper_parameters: Value| -> String {
            let request = request(&app, "refused", rft, hyper_parameters);
            let reply = app.call("POST", "/model-customization-jobs", Some(&request)).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());
            reply.message().to_string()
        };
        let lambda = json!({ "graderConfig": { "lambdaGrader": { "lambdaArn": LAMBDA } } });
        for (rft, hyper_parameters, part) in [
            (json!({}), json!({}), "needs a grader"),
            (lambda.clone(), json!({}), "TUNESMITH_LAMBDA_ENDPOINT"),
            (lambda, json!({ "grader": string_check() }), "give one"),
            (json!({}), json!({ "grader": "{}" }), "The grader:"),
            (json!({}), json!({ "grader": string_check(), "dpoBeta": "1" }), "dpoBeta"),
            (json!({}), json!({ "grader": string_check(), "trainingObjective": "dpo" }), "FINE_TUNING"),
            (
                json!({ "hyperParameters": { "batchSize": 16 } }),
                json!({ "grader": string_check(), "batchSize": "4" }),
                "batchSize stands both",
            ),
            (json!({}), json!({ "grader": "s3://nowhere/grader.json" }), "nowhere"),
            (
                json!({}),
                json!({ "grader": string_check(), "rlAlgorithm": "rloo" }),
                "rlAlgorithm is \"rloo\" but must be grpo or ppo",
            ),
            (
                json!({}),
                json!({ "grader": string_check(), "rlAlgorithm": "ppo", "klBeta": "0.1" }),
                "klBeta is an option of rlAlgorithm grpo, not of ppo",
            ),
            (
                json!({}),
                json!({ "grader": string_check(), "gaeLambda": "1" }),
                "gaeLambda is an option of rlAlgorithm ppo, not of grpo",
            ),
            (
                json!({}),
                json!({ "grader": string_check(), "rlAlgorithm": "ppo", "tuningMethod": "full" }),
                "set klCoef 0, or tune an adapter",
            ),
            (
                json!({}),
                json!({ "grader": string_check(), "klBeta": "0.1", "tuningMethod": "full" }),
                "set klBeta 0, or tune an adapter",
            ),
            (json!({}), json!({ "grader": string_check(), "saveOptimizerState": "true" }), "leave them out"),
            (
                json!({}),
                json!({ "grader": string_check(), "tuningMethod": "prefix" }),
                "set virtualTokensInit vocabulary or random",
            ),
        ] {
            let message = refused(rft, hyper_parameters).await;
            assert!(message.contains(part), "{part}: {message}");
        }
        let mut tuned = app.job("tuned");
        tuned["hyperParameters"] = json!({ "trainingObjective": "grpo", "grader": string_check() });
        let reply = app.call("POST", "/model-customization-jobs", Some(&tuned)).await;
        assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{}", reply.text());
        assert!(reply.message().contains("REINFORCEMENT_FINE_TUNING"), "{}", reply.message());
        app
    });
    with_settings(&["--lambda-endpoint=http://127.0.0.1:9"], async |app| {
        upload(&app, 4).await;
        let rft = json!({ "graderConfig": { "lambdaGrader": { "lambdaArn": LAMBDA } } });
        let reply = app.call("POST", "/model-customization-jobs", Some(&request(&app, "taken", rft, json!({})))).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        app
    });
}

#[test]
fn a_reward_model_that_a_job_made_grades_another_job() {
    with_worker(&[], async |app| {
        // The better answer is the one that names the last thing.
        let mut pairs = String::new();
        for line in prompts(96, 3).lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let prompt = record["messages"][0]["content"].as_str().unwrap();
            let first = prompt.split(": ").nth(1).unwrap().split(',').next().unwrap();
            pairs += &format!(
                "{}\n",
                json!({ "prompt": prompt, "chosen": record["reference_answer"],
                "rejected": format!("The {first}.") })
            );
        }
        app.upload("s3://tuning/pairs.jsonl", &pairs).await;
        let mut judge = app.job("judge");
        judge["baseModelIdentifier"] = json!(STARTER);
        judge["trainingDataConfig"] = json!({ "s3Uri": "s3://tuning/pairs.jsonl" });
        judge["hyperParameters"] =
            json!({ "trainingObjective": "reward", "epochCount": "2", "batchSize": "8", "seed": "7" });
        let made = done(&app, &judge).await;
        assert_eq!(made["status"], "Completed", "{made}");

        upload(&app, 16).await;
        let grader = json!({ "type": "reward_model", "model": "model-judge" }).to_string();
        let rft = json!({ "hyperParameters": { "epochCount": 1, "batchSize": 16, "trainingSamplePerPrompt": 4,
            "inferenceMaxTokens": 12 } });
        let job = done(&app, &request(&app, "judged", rft, json!({ "grader": grader }))).await;
        assert_eq!(job["status"], "Completed", "{job}");
        let csv = output(&app, &job, TRAINING).await;
        assert!(column(&csv, "reward_std")[0] > 0.0, "{csv}");
        assert_eq!(column(&csv, "grader/failed"), [0.0]);

        // Reinforcement learning from preferences, the whole way: what the judge learned from pairs, the policy
        // learns from the judge, held to the model that it began as.
        let rft = json!({ "hyperParameters": { "epochCount": 12, "batchSize": 16, "trainingSamplePerPrompt": 4,
            "inferenceMaxTokens": 12, "evalInterval": 12 } });
        let hyper_parameters =
            json!({ "grader": grader, "rlAlgorithm": "ppo", "learningRateSchedule": "constant", "seed": "7" });
        let job = done(&app, &request(&app, "taught", rft, hyper_parameters)).await;
        assert_eq!(job["status"], "Completed", "{job}");
        let csv = output(&app, &job, TRAINING).await;
        let rewards = column(&csv, "reward");
        let (before, after) = (mean(&rewards[..3]), mean(&rewards[rewards.len() - 3..]));
        // The same prompts in every step: two means over three steps differ by chance by so much.
        let spread = column(&csv, "reward_std")[0];
        let by_chance = spread * (2.0 / (3.0 * 64.0_f64)).sqrt();
        println!(
            "judged {before:.3} to {after:.3}, by chance {by_chance:.3}; divergence {:.3?}, explained {:.2?}",
            column(&csv, "objective/kl"),
            column(&csv, "val/explained_variance")
        );
        assert!(after - before > 4.0 * by_chance, "{before} to {after} with {spread}: {rewards:?}");
        app
    });
}
