//! Whole runs of every method: they learn, are validated and stopped early, go on with the same bits after an
//! interruption, learn plain documents, and go on from what an earlier run left.

use super::resume::{advance, assert_same};
use super::*;

/// What is beside the defaults for each method on the tiny model.
pub(super) const METHODS: [&[(&str, &str)]; 13] = [
    &[("tuningMethod", "lora"), ("loraRank", "4")],
    &[("tuningMethod", "lora"), ("loraRank", "4"), ("dora", "true"), ("loraDropout", "0.1")],
    &[("tuningMethod", "lora"), ("rsLora", "true"), ("loraTargetModules", "q_proj,v_proj")],
    &[("tuningMethod", "qlora"), ("loraRank", "4"), ("loraDropout", "0.1")],
    &[("tuningMethod", "adapter"), ("adapterReductionFactor", "4")],
    &[("tuningMethod", "adapter"), ("adapterArchitecture", "houlsby"), ("adapterNonLinearity", "gelu")],
    &[("tuningMethod", "adapter"), ("adapterArchitecture", "parallel")],
    &[("tuningMethod", "prefix"), ("virtualTokens", "4"), ("virtualTokensInit", "vocabulary")],
    &[("tuningMethod", "prefix"), ("virtualTokens", "4"), ("prefixProjection", "true")],
    &[("tuningMethod", "prompt"), ("virtualTokens", "4"), ("virtualTokensText", "answer this")],
    &[("tuningMethod", "llama_adapter"), ("adapterLength", "3")],
    &[("tuningMethod", "head")],
    &[("tuningMethod", "full")],
];

pub(super) fn with<'a>(method: &[(&'a str, &'a str)], run: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    method.iter().chain(run).copied().collect()
}

#[test]
fn every_method_learns_and_an_interrupted_run_of_it_ends_with_the_same_bits() {
    let run = [
        ("epochCount", "3"),
        ("batchSize", "4"),
        ("learningRate", "0.01"),
        ("evaluationInterval", "2"),
        ("earlyStoppingPatience", "50"),
        ("checkpointInterval", "2"),
    ];
    for method in METHODS {
        let given = with(method, &run);
        let dir = tempfile::tempdir().unwrap();
        let summary = complete(&plan(dir.path(), &given));
        let curve = losses(&text(&summary, TRAINING));
        assert!(curve[8] < curve[0], "{method:?} learns: {curve:?}");
        let expected = tree(&summary.output);
        let again = tempfile::tempdir().unwrap();
        let plan = plan(again.path(), &given);
        while !advance(&plan, 2) {}
        assert_same(&expected, &plan.output());
    }
}

#[test]
fn every_method_is_stopped_early_with_its_best_weights_and_learns_packed_documents() {
    let run = [
        ("stepCount", "12"),
        ("batchSize", "2"),
        ("learningRate", "0.002"),
        ("maxSequenceLength", "24"),
        ("evaluationInterval", "1"),
        ("earlyStoppingPatience", "1"),
        // Nothing improves by so much: the second validation ends the run.
        ("earlyStoppingThreshold", "1"),
    ];
    for method in METHODS {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = plan(dir.path(), &with(method, &run));
        plan.objective = Objective::ContinuedPreTraining;
        for (path, lines) in [(&plan.training, 12), (&plan.validation[0], 3)] {
            let line = |n: usize| format!("{{\"input\": \"document {n} {}\"}}\n", "words and words ".repeat(n % 3));
            std::fs::write(path, (0..lines).map(line).collect::<String>()).unwrap();
        }
        let summary = complete(&plan);
        assert!(summary.stopped_early && summary.steps == 2, "{method:?}: {} steps", summary.steps);
    }
}

/// Where the adapter of a run begins again, the next run goes on.
pub(super) fn further(dir: &Path, from: &Summary, given: &[(&str, &str)]) -> Plan {
    Plan {
        start: Some(from.artifact.clone()),
        optimizer_state: Some(from.output.join(OPTIMIZER_STATE)).filter(|file| file.exists()),
        ..plan(dir, given)
    }
}

#[test]
fn a_run_goes_on_from_an_adapter_and_with_its_moments_it_is_the_longer_run() {
    let run = |steps: &'static str| [("stepCount", steps), ("batchSize", "10"), ("learningRateSchedule", "constant")];
    for method in METHODS.into_iter().filter(|method| !method.contains(&("tuningMethod", "full"))) {
        // The flat prefix is what an artifact holds; the net that made it is gone.
        let projected = method.contains(&("prefixProjection", "true"));
        // Dropout draws other masks in a step of another number.
        let method: Vec<_> = method.iter().copied().filter(|(name, _)| *name != "loraDropout").collect();
        let shared = with(&method, &[("learningRate", "0.01"), ("learningRateWarmupSteps", "0")]);
        let (one, two, three) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = complete(&plan(one.path(), &with(&with(&shared, &run("3")), &[("saveOptimizerState", "true")])));
        let longer = complete(&plan(two.path(), &with(&shared, &run("5"))));

        let given = [("learningRate", "0.01"), ("learningRateWarmupSteps", "0")];
        let on = with(&with(&given, &run("2")), if projected { &[] } else { &[("continueOptimizerState", "true")] });
        let second = complete(&further(three.path(), &first, &on));
        let (whole, parts) = (losses(&text(&longer, TRAINING)), losses(&text(&second, TRAINING)));
        // Its first step sees the weights that the first run left, whatever moments it has.
        assert!((parts[0] - whole[3]).abs() < 1e-6, "{method:?}: {parts:?} after {whole:?}");
        if !projected {
            // The order of a batch's records depends on the epoch: sums differ in their last bits.
            assert!((parts[1] - whole[4]).abs() < 1e-5, "{method:?}: {parts:?} after {whole:?}");
        }
        let manifest: serde_json::Value = serde_json::from_str(&text(&second, "training_manifest.json")).unwrap();
        assert_eq!(manifest["hyperParameters"]["tuningMethod"], method[0].1);
    }
}

#[test]
fn what_cannot_be_gone_on_from_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let first = complete(&plan(dir.path(), &[("stepCount", "1"), ("loraRank", "4")]));
    for (given, said) in [
        (vec![("loraRank", "8")], "leave tuningMethod and its options out, or give the same"),
        (vec![("tuningMethod", "prefix")], "leave tuningMethod and its options out, or give the same"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = run(&further(dir.path(), &first, &given), &mut (), &StopFlag::default()).unwrap_err();
        assert!(error.message().contains(said), "{}", error.message());
        assert_eq!(error.kind(), Kind::Validation);
    }
    let dir = tempfile::tempdir().unwrap();
    let lone = plan(dir.path(), &[("continueOptimizerState", "true")]);
    let error = run(&lone, &mut (), &StopFlag::default()).unwrap_err();
    assert!(error.message().contains("needs a custom model as the base"), "{}", error.message());
}

#[test]
fn a_base_is_quantised_once_and_then_read_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("quantized");
    let train = |name: &str, cache: Option<PathBuf>| {
        let folder = dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let given = [("tuningMethod", "qlora"), ("stepCount", "2"), ("learningRate", "0.01")];
        tree(&complete(&Plan { quantized: cache, ..plan(&folder, &given) }).output)
    };
    let without = train("without", None);
    assert!(!cache.exists());
    let first = train("first", Some(cache.clone()));
    let kept: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let written = std::fs::metadata(kept[0].join("model.safetensors")).unwrap().modified().unwrap();
    assert_eq!(without, first);
    assert_eq!(without, train("second", Some(cache.clone())));
    let model = kept[0].join("model.safetensors");
    assert_eq!(std::fs::metadata(&model).unwrap().modified().unwrap(), written, "it was not quantised again");
    // A damaged one is made again.
    let mut bytes = std::fs::read(&model).unwrap();
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&model, bytes).unwrap();
    assert_eq!(without, train("third", Some(cache)));
    assert!(Decoder::load(&kept[0], &Device::Cpu, Form::Nf4).is_ok());
}

#[test]
fn a_run_that_does_not_fit_into_memory_is_refused_before_the_model_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan { memory: Memory::host(1 << 20), ..plan(dir.path(), &[]) };
    let mut listener = Listener::default();
    let error = run(&plan, &mut listener, &StopFlag::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Validation);
    assert!(error.message().contains("training may take 1 MiB here"), "{error}");
    assert_eq!(listener.phases, [Phase::Preparing]);
}

#[test]
fn the_manifest_records_how_the_run_was_cut() {
    let given = [("stepCount", "4"), ("microBatchTokens", "40")];
    let dir = tempfile::tempdir().unwrap();
    let asked = complete(&plan(dir.path(), &given));
    assert!(text(&asked, "training_manifest.json").contains("\"microBatchTokens\": \"40\""));
    let dir = tempfile::tempdir().unwrap();
    let planned = complete(&plan(dir.path(), &[("stepCount", "2")]));
    assert!(text(&planned, "training_manifest.json").contains("\"microBatchTokens\": \"4096\""));
}

#[test]
fn a_run_that_is_asked_for_it_leaves_the_merged_model_and_what_cannot_be_merged_does_not_begin() {
    let run = [("stepCount", "3"), ("learningRate", "0.01"), ("mergedWeights", "true")];
    for method in [METHODS[0], METHODS[1], METHODS[3], METHODS[11]] {
        let dir = tempfile::tempdir().unwrap();
        let summary = complete(&plan(dir.path(), &with(method, &run)));
        let merged = summary.merged.as_ref().unwrap();
        assert_eq!((merged.method, merged.dtype.as_str()), (summary_method(method), "bfloat16"));
        assert!(merged.difference.largest < 1.0 && merged.difference.mean < 0.1, "{method:?}: {merged:?}");
        assert_eq!(merged.difference_to_four_bits.is_some(), merged.method == "qlora");
        let out = summary.output.join(MERGED);
        let decoder = Decoder::load(&out, &Device::Cpu, Form::Frozen).unwrap();
        assert_eq!(decoder.config().vocab_size, 272);
        let manifest: serde_json::Value = serde_json::from_str(&text(&summary, "training_manifest.json")).unwrap();
        assert_eq!(manifest["merged"]["difference"]["tokens"], 64);
        assert_eq!(manifest["merged"]["sha256"].as_object().unwrap().len(), tree(&out).len());
    }

    // An adapter that an earlier run left says itself what it is.
    let dir = tempfile::tempdir().unwrap();
    let prefix = complete(&plan(dir.path(), &with(METHODS[7], &run[..2])));
    let next = tempfile::tempdir().unwrap();
    let plan = further(next.path(), &prefix, &run);
    let refused = run_of(&plan);
    assert!(refused.contains("mergedWeights true: what tuningMethod prefix learns cannot be merged"), "{refused}");
}

/// Puts something where the merged model is to go.
struct InTheWay(PathBuf);

impl Observer for InTheWay {
    fn step(&mut self, _: &StepMetrics) {
        std::fs::create_dir_all(self.0.join("in-the-way")).unwrap();
    }
}

#[test]
fn what_was_trained_is_kept_when_it_cannot_be_merged() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), &[("stepCount", "3"), ("mergedWeights", "true")]);
    let outcome = run(&plan, &mut InTheWay(plan.output().join(MERGED)), &StopFlag::default()).unwrap();
    let Outcome::Completed(summary) = outcome else { panic!("interrupted") };
    let said = "is there: give a folder that is not there yet";
    assert!(summary.merged.is_none() && summary.merge_failure.as_ref().unwrap().contains(said));
    let manifest: serde_json::Value = serde_json::from_str(&text(&summary, "training_manifest.json")).unwrap();
    assert_eq!(manifest.get("merged"), None);
    assert!(manifest["mergeFailure"].as_str().unwrap().contains(said), "{manifest}");
    assert_eq!(manifest["artifact"].as_object().unwrap().len(), tree(&summary.artifact).len());
}

fn summary_method(method: &[(&'static str, &'static str)]) -> &'static str {
    method[0].1
}

fn run_of(plan: &Plan) -> String {
    run(plan, &mut (), &StopFlag::default()).unwrap_err().message().to_string()
}
