//! A measured run: the steps of a real one, on random weights of a published shape and random records
//! of given lengths, with everything that a job's step does and nothing else. What users see in
//! `tunesmith bench train`, and what is put beside other trainers.

mod shapes;

use std::path::PathBuf;

use candle_core::{Device, Tensor};

pub use self::shapes::{SHAPES, Shape};
use super::flops::Flops;
use super::identity::RunIdentity;
use super::learner::Steps;
use super::objective::Criteria;
use super::run::Run;
use super::settings::Resolved;
use super::{
    Base, Decision, Memory, Observer, Phase, Plan, Settings, StepMetrics, StopFlag, TrainingDevice, recipe,
    side_by_side,
};
use crate::clock::Clock;
use crate::data::corpus::{SourceFacts, Writer};
use crate::data::{Batches, Corpus, Cursor, Format, Objective};
use crate::error::{Error, Result};
use crate::kernels;
use crate::models::{Decoder, DecoderConfig};
use crate::rng::Rng;

/// Lengths of the records that are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// All as long as they may be, every token learned.
    Rows,
    /// As instruction sets have them: uneven (log-normal, half of them under a third of the longest), and
    /// only the answer, the last sixth to half of a record, is learned.
    Instructions,
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The decoder's shape.
    pub config: DecoderConfig,
    /// The hyperparameters; `stepCount` counts the steps that are measured.
    pub settings: Settings,
    /// Lengths of the records.
    pub lengths: Lengths,
    /// Tokens of the longest record.
    pub tokens: usize,
    /// How many records there are.
    pub records: usize,
    /// Steps before the measurement begins.
    pub warm_up: u64,
    /// What the run computes on: one device for every slot that shares the batches.
    pub devices: Vec<TrainingDevice>,
    /// The memory that the run may take.
    pub memory: Memory,
    /// An empty folder for the data.
    pub work_dir: PathBuf,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// The measured steps.
    pub steps: Vec<StepMetrics>,
    /// Of all steps, those of the warm-up too: tokens and labelled tokens of every record.
    pub batches: Vec<Vec<[usize; 2]>>,
    /// What a step costs by the model's shape.
    pub flops: Flops,
    /// Values that train.
    pub trained: usize,
    /// Seconds from nothing to a model in memory.
    pub loading: f64,
    /// How the run was cut to fit into memory.
    pub decision: Decision,
}

/// Takes the steps; `observer` hears of each one, the warm-up's too.
///
/// # Errors
/// When the method does not go on the shape, or the folder cannot be written.
pub fn bench(work: &Workload, observer: &mut dyn Observer) -> Result<Measurement> {
    let clock = Clock::system();
    let steps = work.warm_up + work.settings.step_count.unwrap_or(1);
    let settings = Settings { step_count: Some(steps), checkpoint_interval: Some(u64::MAX), ..work.settings.clone() };
    let plan = plan(work, settings, clock.clone());
    std::fs::create_dir_all(plan.output())?;
    std::fs::create_dir_all(plan.checkpoints())?;
    let corpus = corpus(work)?;

    let (device, others) = recipe::open(&plan)?;
    let began = clock.monotonic();
    let method = plan.settings.method.on(&work.config)?;
    method.check(&work.config)?;
    let decoder = Decoder::random(work.config.clone(), plan.seed, &device, plan.form(&method, &work.config))?;
    let tuned = method.build(&decoder, Some(&corpus.record(0).tokens), plan.seed)?;
    let loading = clock.monotonic().duration_since(began).as_secs_f64();
    let flops = Flops::of(&work.config, &method);
    let trained = tuned.trainables().iter().map(|one| one.var.elem_count()).sum();
    let mut resolved = Resolved {
        steps,
        warmup_steps: 0,
        evaluation_interval: u64::MAX,
        max_sequence_length: work.tokens,
        seed: plan.seed,
        parts: side_by_side::parts(plan.device(), &work.config, trained).max(plan.slots().next_power_of_two()),
        token_budget: 1,
        keeps_graphs: false,
        lanes: 1,
        pages_optimizer: false,
        form: plan.form(&method, &work.config),
    };
    let asked = plan.settings.micro_batch_tokens;
    let decision = plan.decide((&work.config, &method), (&corpus, &[]), &resolved, asked)?;
    resolved.take(&decision);
    let mut same = Batches::new(&corpus, plan.batches(&resolved), Cursor::default());
    let batches = (0..steps).map(|_| {
        let batch = same.next_batch();
        let records = batch.micro.iter().flat_map(|micro| &micro.records);
        records.map(|record| [corpus.length(*record), corpus.learned(*record)]).collect()
    });
    let batches = batches.collect();
    let copies = others
        .iter()
        .map(|device| Decoder::random(work.config.clone(), plan.seed, device, plan.form(&method, &work.config)));
    let copies = copies.collect::<Result<Vec<_>>>()?;
    let learned = (tuned, Criteria::sft(0));
    let mut run = Run::resume(&plan, &decoder, learned, (&corpus, &[]), resolved, &RunIdentity::named("bench"), None)?;
    if !copies.is_empty() {
        let beside = |copy| Ok((copy, method.build(copy, Some(&corpus.record(0).tokens), plan.seed)?));
        run = run.beside(copies.iter().map(beside).collect::<Result<_>>()?)?;
    }
    let mut measured = Vec::new();
    observer.phase(Phase::Training);
    for step in 0..steps {
        let metrics = run.step(observer, &StopFlag::default())?;
        let metrics = metrics.ok_or_else(|| Error::internal(anyhow::anyhow!("nobody stops a measurement")))?;
        observer.step(&metrics);
        if step >= work.warm_up {
            measured.push(metrics);
        }
    }
    Ok(Measurement { steps: measured, batches, flops, trained, loading, decision })
}

/// The best rate of a plain product of two f32 matrices of 1024 × 1024 values on all cores within about a
/// second, in floating-point operations per second: the ceiling for everything else.
///
/// # Errors
/// When the device fails.
pub fn matmul_rate(clock: &Clock) -> Result<f64> {
    const SIDE: usize = 1024;
    let operand = |name| -> Result<Tensor> {
        let values = Rng::new(1, name, 0).normals(SIDE * SIDE, 1.0);
        Ok(Tensor::from_vec(values, (SIDE, SIDE), &Device::Cpu)?)
    };
    let (x, weight) = (operand("x")?, operand("weight")?);
    let (began, mut best) = (clock.monotonic(), 0f64);
    while clock.monotonic().duration_since(began).as_secs_f64() < 1.0 {
        let start = clock.monotonic();
        kernels::linear(&x, &weight, None)?;
        let seconds = clock.monotonic().duration_since(start).as_secs_f64();
        best = best.max(2.0 * (SIDE as f64).powi(3) / seconds);
    }
    Ok(best)
}

fn plan(work: &Workload, settings: Settings, clock: Clock) -> Plan {
    Plan {
        base: Base::Directory(PathBuf::new()),
        start: None,
        optimizer_state: None,
        quantized: None,
        base_id: "bench".into(),
        training: PathBuf::new(),
        validation: Vec::new(),
        teacher: None,
        objective: Objective::FineTuning,
        seed: settings.seed.unwrap_or(1),
        settings,
        work_dir: work.work_dir.clone(),
        devices: work.devices.clone(),
        memory: work.memory,
        clock,
    }
}

/// Random tokens in records of the lengths that are wanted.
fn corpus(work: &Workload) -> Result<Corpus> {
    let mut writer = Writer::create(&work.work_dir.join("corpus"))?;
    let mut rng = Rng::new(1, "bench", 0);
    for line in 0..work.records.max(1) as u64 {
        let (length, learned) = match work.lengths {
            Lengths::Rows => (work.tokens, work.tokens),
            Lengths::Instructions => {
                let middle = work.tokens as f32 / 3.2;
                let length = ((middle * (0.6 * rng.normal()).exp()) as usize).clamp(12, work.tokens);
                let part = 1.0 / 6.0 + rng.uniform() / 3.0;
                (length, ((length as f32 * part) as usize).max(1))
            }
        };
        let tokens: Vec<u32> = (0..length).map(|_| rng.below(work.config.vocab_size as u64) as u32).collect();
        let learn: Vec<bool> = (0..length).map(|at| at >= length - learned).collect();
        writer.push(&tokens, &learn, 0, line + 1)?;
    }
    let source = SourceFacts {
        name: "random".into(),
        sha256: String::new(),
        records: work.records.max(1) as u64,
        blank_lines: 0,
    };
    writer.finish("bench".into(), Objective::FineTuning, Format::Completion, vec![source])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_measured_run_takes_real_steps_and_counts_what_it_learned() {
        let dir = tempfile::tempdir().unwrap();
        let given = BTreeMap::from([("batchSize".into(), "3".into()), ("stepCount".into(), "2".into())]);
        let work = Workload {
            config: Shape::named("starter").unwrap().config().unwrap(),
            settings: Settings::parse(&given, &BTreeMap::new()).unwrap(),
            lengths: Lengths::Instructions,
            tokens: 60,
            records: 7,
            warm_up: 1,
            devices: vec![TrainingDevice::Cpu],
            memory: Memory::host(4 << 30),
            work_dir: dir.path().into(),
        };
        let measured = bench(&work, &mut ()).unwrap();
        assert_eq!((measured.steps.len(), measured.batches.len()), (2, 3));
        let sum = |step: &[[usize; 2]], which: usize| step.iter().map(|record| record[which] as u64).sum::<u64>();
        for (metrics, batch) in measured.steps.iter().zip(&measured.batches[1..]) {
            assert_eq!(metrics.tokens, sum(batch, 0));
            assert_eq!(metrics.labelled, sum(batch, 1));
            assert!(metrics.loss.is_finite() && metrics.parts.backward > 0.0 && metrics.parts.head > 0.0);
        }
        // Uneven, and some prompt before every answer.
        let all: Vec<[usize; 2]> = measured.batches.concat();
        assert!(all.iter().any(|[tokens, _]| *tokens != all[0][0]));
        assert!(all.iter().all(|[tokens, learned]| learned < tokens && *tokens <= 60));
        assert!(measured.flops.per_token > 0.0 && measured.trained > 0);
    }
}
