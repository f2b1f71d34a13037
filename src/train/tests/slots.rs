//! Several slots in one process: the same arithmetic as one.

use candle_core::Tensor;

use super::steps::corpus;
use super::*;
use crate::data::Corpus;
use crate::models::DecoderConfig;
use crate::rng::Rng;
use crate::tune::Method;

use super::super::objective::Criteria;
use super::super::run::Run;
use super::super::settings::Resolved;
use crate::train::identity::RunIdentity;
use crate::train::learner::Steps;

/// Records of uneven length, partly learned.
fn records(count: u64, vocabulary: u64) -> Vec<(Vec<u32>, Vec<bool>)> {
    let mut rng = Rng::new(5, "records", 0);
    (0..count)
        .map(|_| {
            let length = 20 + rng.below(40) as usize;
            let tokens = (0..length).map(|_| rng.below(vocabulary) as u32).collect();
            (tokens, (0..length).map(|at| at > length / 3).collect())
        })
        .collect()
}

/// The losses of four steps with a slot on each device, and the weights of every slot after them.
fn train(plan: &Plan, corpus: &Corpus, devices: &[Device]) -> (Vec<f64>, Vec<Vec<f32>>) {
    std::fs::create_dir_all(plan.checkpoints()).unwrap();
    let config = DecoderConfig::read(&base()).unwrap();
    let method = plan.settings.method.on(&config).unwrap();
    let decoders: Vec<Decoder> =
        devices.iter().map(|device| Decoder::load(&base(), device, method.form()).unwrap()).collect();
    // Other seeds: what the peers begin with must be the first slot's.
    let mut methods: Vec<Box<dyn Method>> =
        decoders.iter().zip(0..).map(|(decoder, seed)| method.build(decoder, Some(&[3, 4]), seed).unwrap()).collect();
    let watched: Vec<Vec<candle_core::Var>> =
        methods.iter().map(|method| method.trainables().iter().map(|one| one.var.clone()).collect()).collect();
    let others: Vec<_> = decoders[1..].iter().zip(methods.drain(1..)).collect();
    let parts = devices.len().next_power_of_two();
    let resolved = Resolved { parts, ..resolved(plan) };
    let first = methods.pop().unwrap();
    let mut run = Run::resume(
        plan,
        &decoders[0],
        (first, Criteria::sft(0)),
        (corpus, &[]),
        resolved,
        &RunIdentity::named("run"),
        None,
    )
    .unwrap();
    if devices.len() > 1 {
        run = run.beside(others).unwrap();
    }
    let losses = (0..4).map(|_| run.step(&mut (), &StopFlag::default()).unwrap().unwrap().loss).collect();
    let values = |var: &candle_core::Var| -> Vec<f32> { Tensor::flatten_all(var).unwrap().to_vec1().unwrap() };
    (losses, watched.iter().map(|vars| vars.iter().flat_map(values).collect()).collect())
}

/// Whether the slots on each of these lists of devices take the steps of the first of them with the whole batch.
fn assert_steps_of_one(placed: &[Vec<Device>]) {
    let settings = [("batchSize", "12"), ("stepCount", "4"), ("learningRate", "0.01"), ("loraDropout", "0")];
    for (method, more) in [("lora", &settings[..]), ("qlora", &settings[..]), ("full", &settings[..3])] {
        let dir = tempfile::tempdir().unwrap();
        let given: Vec<_> = more.iter().copied().chain([("tuningMethod", method)]).collect();
        let plan = plan(dir.path(), &given);
        let vocabulary = DecoderConfig::read(&base()).unwrap().vocab_size as u64;
        let corpus = corpus(dir.path(), &records(48, vocabulary));
        let (losses, one) = train(&plan, &corpus, &placed[0][..1]);
        assert!(losses[3].is_finite());
        for devices in placed {
            let slots = devices.len();
            let (shared, all) = train(&plan, &corpus, devices);
            for (alone, shared) in losses.iter().zip(&shared) {
                assert!((alone - shared).abs() < 1e-6 * alone, "{method}, {slots} slots: {alone} and {shared}");
            }
            // AdamW's first steps turn the last bit of a gradient near zero into a whole step, so weights are
            // compared with what they moved.
            let furthest = one[0].iter().zip(&all[0]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(furthest < 1e-3, "{method}, {slots} slots: a weight is off by {furthest}");
            for copy in &all[1..] {
                assert!(copy.iter().zip(&all[0]).all(|(a, b)| a.to_bits() == b.to_bits()), "{method}: slots drifted");
            }
        }
    }
}

#[test]
fn several_slots_take_the_steps_of_one_with_the_whole_batch_and_never_drift_apart() {
    assert_steps_of_one(&[2, 3, 4].map(|slots| vec![Device::Cpu; slots]));
}

#[cfg(feature = "cuda")]
#[test]
fn slots_on_several_gpus_take_the_steps_of_one() {
    let gpus: Vec<Device> = (0..8).filter_map(|number| TrainingDevice::Cuda(number).open().ok()).collect();
    if gpus.len() < 2 {
        eprintln!("skipped: no GPU beside another");
        return;
    }
    assert_steps_of_one(&(2..=gpus.len()).map(|slots| gpus[..slots].to_vec()).collect::<Vec<_>>());
}
