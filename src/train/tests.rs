//! Whole runs on a tiny model: what comes out, and what is said when nothing can.

mod disk;
mod methods;
pub(super) mod out_of_memory;
mod precision;
mod preferences;
pub(super) mod resume;
mod served;
mod slots;
mod steps;
mod whole;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;

use super::settings::Resolved;
use super::*;
use crate::clock::Clock;
use crate::error::{Kind, Result};
use crate::models::{Decoder, Form};
use crate::tune::read_adapter;

/// The tiny Llama of the golden tests: two layers, 32 wide, 64 positions.
fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/models/llama")
}

/// A plan in `dir` with ten training and four validation records.
pub(super) fn plan(dir: &Path, given: &[(&str, &str)]) -> Plan {
    let record = |n: usize| format!("{{\"prompt\": \"say {n}\", \"completion\": \"{}\"}}\n", "ab".repeat(1 + n % 4));
    let file = |name: &str, numbers: std::ops::Range<usize>| {
        let path = dir.join(name);
        std::fs::write(&path, numbers.map(record).collect::<String>()).unwrap();
        path
    };
    Plan {
        base: Base::Directory(base()),
        start: None,
        optimizer_state: None,
        quantized: None,
        base_id: "test.tiny-v1:0".into(),
        training: file("train.jsonl", 0..10),
        validation: vec![file("validation.jsonl", 20..24)],
        teacher: None,
        objective: Objective::FineTuning,
        settings: settings(given),
        seed: 11,
        devices: vec![TrainingDevice::Cpu],
        work_dir: dir.join("work"),
        memory: Memory::host(4 << 30),
        clock: Clock::system(),
    }
}

/// Four steps of it without a planner.
fn resolved(plan: &Plan) -> Resolved {
    Resolved {
        steps: 4,
        warmup_steps: 0,
        evaluation_interval: 9,
        max_sequence_length: 64,
        seed: 0,
        parts: 1,
        token_budget: plan.settings.micro_batch_tokens.unwrap_or(4096),
        keeps_graphs: true,
        lanes: 1,
        pages_optimizer: false,
        form: Form::Frozen,
    }
}

fn settings(given: &[(&str, &str)]) -> Settings {
    let given = given.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Settings::parse(&given, &BTreeMap::new()).unwrap()
}

/// Runs to the end.
fn complete(plan: &Plan) -> Summary {
    match run(plan, &mut (), &StopFlag::default()).unwrap() {
        Outcome::Completed(summary) => summary,
        Outcome::Interrupted => panic!("nobody asked it to stop"),
    }
}

/// Every file below `dir` with its bytes.
pub(super) fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    files
}

pub(super) fn text(summary: &Summary, name: &str) -> String {
    std::fs::read_to_string(summary.output.join(name)).unwrap()
}

/// A column of a metrics file, by its name.
pub(super) fn column(csv: &str, name: &str) -> Vec<f64> {
    let at = csv.lines().next().unwrap().split(',').position(|column| column == name).unwrap();
    csv.lines().skip(1).map(|line| line.split(',').nth(at).unwrap().parse().unwrap()).collect()
}

/// The third column of a metrics file.
fn losses(csv: &str) -> Vec<f64> {
    csv.lines().skip(1).map(|line| line.split(',').nth(2).unwrap().parse().unwrap()).collect()
}

pub(super) const TRAINING: &str = "training_artifacts/step_wise_training_metrics.csv";
pub(super) const VALIDATION: &str =
    "validation_artifacts/post_fine_tuning_validation/validation/validation_metrics.csv";

#[test]
fn a_run_leaves_everything_that_a_job_promises() {
    let dir = tempfile::tempdir().unwrap();
    let given = [("epochCount", "4"), ("batchSize", "4"), ("learningRate", "0.02"), ("loraRank", "4")];
    let summary = complete(&plan(dir.path(), &given));

    let csv = text(&summary, TRAINING);
    assert!(csv.starts_with("step_number,epoch_number,training_loss,perplexity\n0,0,"), "{csv}");
    let places: Vec<_> = csv.lines().skip(1).map(|line| line.rsplitn(3, ',').last().unwrap()).collect();
    assert_eq!(places, ["0,0", "1,0", "2,0", "3,1", "4,1", "5,1", "6,2", "7,2", "8,2", "9,3", "10,3", "11,3"]);
    let curve = losses(&csv);
    assert!(curve[11] < 0.8 * curve[0], "it learns: {curve:?}");
    assert_eq!((summary.steps, summary.training_loss), (12, curve[11]));
    assert_eq!(summary.validation_losses, [*losses(&text(&summary, VALIDATION)).last().unwrap()]);

    let decoder = Decoder::load(&base(), &Device::Cpu, Form::Frozen).unwrap();
    let adapter = read_adapter(&summary.artifact, decoder.config(), &Device::Cpu, false).unwrap();
    let TuningMethod::Lora(lora) = adapter.method else { panic!("not lora") };
    assert_eq!(lora.rank, 4);
    assert!(summary.artifact.ends_with("adapter") && summary.artifact.join("tokenizer.json").exists());
    assert!(text(&summary, "loss.svg").starts_with("<svg"));

    let manifest: serde_json::Value = serde_json::from_str(&text(&summary, "training_manifest.json")).unwrap();
    assert_eq!(manifest["baseModel"]["id"], "test.tiny-v1:0");
    assert_eq!((manifest["seed"].as_u64(), manifest["trainingData"][0]["records"].as_u64()), (Some(11), Some(10)));
    assert_eq!(manifest["hyperParameters"]["loraAlpha"], "8");
    assert_eq!(manifest["artifact"]["adapter_model.safetensors"].as_str().unwrap().len(), 64);
    assert!(manifest["results"]["tokens"].as_u64().unwrap() > 1000);
}

#[test]
fn a_model_is_trained_from_nothing_on_plain_documents() {
    let dir = tempfile::tempdir().unwrap();
    let given = [
        ("tuningMethod", "full"),
        ("stepCount", "12"),
        ("batchSize", "2"),
        ("learningRate", "0.01"),
        ("learningRateSchedule", "cosine"),
    ];
    let mut plan = plan(dir.path(), &given);
    let documents: String = (0..20).map(|n| format!("{{\"input\": \"the cat sat on mat {n}\"}}\n")).collect();
    std::fs::write(&plan.training, documents).unwrap();
    plan.base = Base::Random { config: base().join("config.json"), tokenizer: base(), seed: 5 };
    plan.objective = Objective::ContinuedPreTraining;
    plan.validation.clear();

    let summary = complete(&plan);
    let curve = losses(&text(&summary, TRAINING));
    assert!((curve[0] - 272f64.ln()).abs() < 0.2, "a new model knows nothing: {}", curve[0]);
    assert!(curve[11] < 0.8 * curve[0], "it learns: {curve:?}");
    assert!(!summary.output.join(VALIDATION).exists() && summary.validation_losses.is_empty());
    let model = Decoder::load(&summary.artifact, &Device::Cpu, Form::Frozen).unwrap();
    assert_eq!(model.config().layers, 2);
    assert!(summary.artifact.ends_with("model") && summary.artifact.join("tokenizer_config.json").exists());
}

#[test]
fn training_ends_early_with_the_best_weights_when_validation_no_longer_improves() {
    let dir = tempfile::tempdir().unwrap();
    // No improvement is as large as the threshold: the first validation sets the mark, two more are stale.
    let given = [
        ("epochCount", "20"),
        ("evaluationInterval", "2"),
        ("earlyStoppingThreshold", "1"),
        ("earlyStoppingPatience", "2"),
        ("learningRate", "1e-3"),
    ];
    let summary = complete(&plan(dir.path(), &given));
    assert!(summary.stopped_early);
    assert_eq!((summary.steps, losses(&text(&summary, VALIDATION)).len()), (6, 3));
    let manifest: serde_json::Value = serde_json::from_str(&text(&summary, "training_manifest.json")).unwrap();
    assert_eq!(manifest["results"]["weightsOfStep"], 6);
}

#[test]
fn part_of_the_records_is_held_out_when_asked_and_no_validation_data_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path(), &[("evalPercentage", "30"), ("batchSize", "1"), ("epochCount", "1")]);
    plan.validation.clear();
    let summary = complete(&plan);
    assert_eq!((summary.steps, summary.validation_losses.len()), (7, 1));

    std::fs::write(&plan.training, "{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap();
    let error = run(&plan, &mut (), &StopFlag::default()).unwrap_err();
    assert!(error.message().contains("none would be left to train on"), "{error}");
}

#[test]
fn bad_data_is_refused_with_its_lines_and_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), &[]);
    std::fs::write(&plan.training, "{\"prompt\": \"a\", \"completion\": \"b\"}\nnot json\n").unwrap();
    let error = run(&plan, &mut (), &StopFlag::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Validation);
    assert!(error.message().contains("train.jsonl:2"), "{error}");
    let report = std::fs::read_to_string(plan.output().join("data_report.jsonl")).unwrap();
    assert!(report.contains("\"line\":2"), "{report}");
}

#[test]
fn what_the_model_cannot_take_is_refused_before_anything_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let long = plan(dir.path(), &[("maxSequenceLength", "65")]);
    let error = run(&long, &mut (), &StopFlag::default()).unwrap_err();
    assert_eq!(error.message(), "maxSequenceLength is 65, but the model's context length is 64");
    let mut missing = plan(dir.path(), &[]);
    missing.training = dir.path().join("nowhere.jsonl");
    assert!(run(&missing, &mut (), &StopFlag::default()).unwrap_err().message().contains("there is no such file"));
}

/// Notes what a run says.
#[derive(Default)]
pub(super) struct Listener {
    pub(super) phases: Vec<Phase>,
    pub(super) steps: Vec<StepMetrics>,
    pub(super) warnings: Vec<String>,
}

impl Observer for Listener {
    fn phase(&mut self, phase: Phase) {
        self.phases.push(phase);
    }

    fn step(&mut self, metrics: &StepMetrics) {
        self.steps.push(metrics.clone());
    }

    fn checkpoint(&mut self, dir: &Path, step: u64) -> Result<()> {
        assert!(dir.ends_with(format!("step-{step:08}")) && dir.join("manifest.json").exists());
        Ok(())
    }

    fn warn(&mut self, message: &str) {
        self.warnings.push(message.into());
    }
}

#[test]
fn the_observer_hears_of_every_phase_and_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path(), &[("stepCount", "40"), ("earlyStoppingPatience", "1")]);
    plan.validation.clear();
    let mut listener = Listener::default();
    run(&plan, &mut listener, &StopFlag::default()).unwrap();
    assert_eq!(listener.phases, [Phase::Preparing, Phase::Loading, Phase::Training, Phase::Saving]);
    assert_eq!(listener.steps.len(), 40);
    assert!(listener.steps.iter().all(|step| step.steps == 40 && step.tokens > 0 && step.gradient_norm > 0.0));
    assert_eq!((listener.steps[0].learning_rate, listener.steps[1].learning_rate), (0.0, 2e-4), "one warm-up step");
    assert!(listener.warnings[0].contains("early stopping has no effect without validation data"));
}
