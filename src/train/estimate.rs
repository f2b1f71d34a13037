//! What a run will take, before it begins: tokens and steps from the data, memory from the planner, and the
//! time from the operations that the run does and the rate at which this machine does them. The rate is
//! measured on real passes through one layer of the base's shape, with the tuning method in it and random
//! weights, because products of matrices alone are faster than a layer is.

mod operations;

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::operations::Operations;
use super::backprop::{Gradients, MicroBatch, loss_and_gradients};
use super::planner::Decision;
use super::side_by_side::Lanes;
use super::sources::Sources;
use super::{Observer, Plan, StopFlag, TrainingDevice};
use crate::data::{Batches, Cursor, Objective};
use crate::durable;
use crate::error::{Error, Result};
use crate::models::{Decoder, DecoderConfig};
use crate::tune::{LlamaAdapterConfig, TuningMethod};

/// Of a larger training file only a sample is tokenised.
const WHOLE_BYTES: u64 = 32 << 20;
/// Lines of a sample, from evenly spaced places of the file.
const SAMPLE_LINES: u64 = 4000;
/// Steps that are dealt out to see how records fall into micro-batches.
const DEALT_STEPS: u64 = 64;
/// How long the rate is measured.
const MEASURING: Duration = Duration::from_millis(1200);
/// The most operations of a measured pass: about a second of one core.
const MEASURED: f64 = 4e10;
/// Tokens in the vocabulary of the measured layer: the head is not what is measured.
const MEASURED_VOCABULARY: usize = 256;

/// What the data holds.
#[derive(Debug, Clone, PartialEq)]
pub struct DataFacts {
    /// The part of the training file that was tokenised: 1 when all of it was. Numbers are of the whole file.
    pub sampled: f64,
    /// Records.
    pub records: u64,
    /// Tokens of all records.
    pub tokens: u64,
    /// Tokens that are learned.
    pub labelled: u64,
    /// Tokens of the longest record, of those that were looked at.
    pub longest: u64,
    /// Half of the records have at most so many tokens.
    pub median: u64,
    /// Tokens of the validation data.
    pub validation_tokens: u64,
}

/// How the run goes over it.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFacts {
    /// Optimizer steps.
    pub steps: u64,
    /// Times that every record is seen.
    pub epochs: f64,
    /// Passes over the validation data.
    pub validations: u64,
    /// Micro-batches of a step, on average.
    pub micro_batches: f64,
    /// Records that share a micro-batch, on average.
    pub packed: f64,
}

/// What a run will take.
#[derive(Debug)]
pub struct Estimate {
    /// The data.
    pub data: DataFacts,
    /// The run.
    pub run: RunFacts,
    /// The base's class in `config.json`.
    pub model: &'static str,
    /// Numbers in the base's weights.
    pub weights: u64,
    /// Numbers that train.
    pub trained: u64,
    /// What trains them.
    pub method: &'static str,
    /// How the run is cut to fit, or why it cannot.
    pub memory: Result<Decision>,
    /// Floating-point operations of the whole run, recomputation and validation included.
    pub operations: f64,
    /// Operations a second that this machine was measured to do; 0 when the run does not fit.
    pub rate: f64,
}

impl Estimate {
    /// How long the passes of the run take; `None` when it does not fit.
    pub fn time(&self) -> Option<Duration> {
        (self.rate > 0.0).then(|| Duration::from_secs_f64(self.operations / self.rate))
    }
}

/// Looks at the data of `plan` and says what the run will take. What it writes lies in `scratch`, a folder of
/// its own. The weights of the base need not be there.
///
/// # Errors
/// When the data or the base cannot be used. A run that does not fit into memory is no error here.
pub fn estimate(plan: &Plan, scratch: &Path, observer: &mut dyn Observer) -> Result<Estimate> {
    let (training, sampled) = sample(&plan.training, scratch)?;
    let mut plan = Plan { training, work_dir: scratch.join("work"), ..plan.clone() };
    std::fs::create_dir_all(plan.output())?;
    let read = Sources::glance(&plan, observer, &StopFlag::default())?;
    let sources = read.ok_or_else(|| Error::internal(anyhow::anyhow!("nobody asked it to stop")))?;
    let (base, method) = (&sources.config, &sources.method);

    let manifest = sources.training.manifest();
    let scaled = |count: u64| (count as f64 / sampled).round() as u64;
    let data = DataFacts {
        sampled,
        records: scaled(manifest.records),
        tokens: scaled(manifest.tokens),
        labelled: scaled(manifest.learned_tokens),
        longest: manifest.longest,
        median: manifest.length_quantiles[0],
        validation_tokens: sources.validation.iter().map(|corpus| corpus.manifest().tokens).sum(),
    };
    // A sample has fewer steps than the whole.
    let of_sample = (sampled < 1.0 && plan.settings.step_count.is_none()).then_some(sampled);
    let planned = plan.resolve(&sources, None, observer);
    let (resolved, memory) = match planned {
        Ok((resolved, decision)) => (resolved, Ok(decision)),
        Err(refusal) => {
            // The steps are the same with memory without end, which no device has.
            plan.memory.bytes = u64::MAX / 4;
            plan.devices.fill(TrainingDevice::Cpu);
            (plan.resolve(&sources, None, observer)?.0, Err(refusal))
        }
    };
    let steps = of_sample.map_or(resolved.steps, |part| (resolved.steps as f64 / part).round() as u64);
    let (mut dealt, mut micros, mut packed, mut records) = (0, 0, 0, 0);
    let mut batches = Batches::new(&sources.training, plan.batches(&resolved), Cursor::default());
    while dealt < DEALT_STEPS.min(resolved.steps.max(1)) {
        let batch = batches.next_batch();
        dealt += 1;
        micros += batch.micro.len();
        records += batch.micro.iter().map(|micro| micro.records.len()).sum::<usize>();
        packed += batch.micro.iter().filter(|micro| !micro.records.is_empty()).count();
    }
    let records_a_step = records as f64 / dealt as f64;
    let seen = steps as f64 * records_a_step;
    let run = RunFacts {
        steps,
        epochs: seen / data.records.max(1) as f64,
        validations: if sources.validation.is_empty() { 0 } else { steps.div_ceil(resolved.evaluation_interval) },
        micro_batches: micros as f64 / dealt as f64,
        packed: records as f64 / packed.max(1) as f64,
    };

    let keeps_graphs = memory.as_ref().is_ok_and(|decision| decision.keeps_graphs);
    let operations = Operations { base, method, keeps_graphs };
    let squares = |corpus: &crate::data::Corpus| -> f64 {
        let looked_at = corpus.len().min(1 << 17);
        let sum: f64 = (0..looked_at).map(|record| (corpus.length(record) as f64).powi(2)).sum();
        sum * corpus.len() as f64 / looked_at.max(1) as f64
    };
    let learning = operations.training(data.tokens as f64, data.labelled as f64, squares(&sources.training) / sampled);
    let validating: f64 = sources
        .validation
        .iter()
        .map(|corpus| {
            let manifest = corpus.manifest();
            operations.forward(manifest.tokens as f64, manifest.learned_tokens as f64, squares(corpus))
        })
        .sum();
    let total = learning * run.epochs + validating * run.validations as f64;
    let rate = match &memory {
        Ok(decision) => measure(&plan, &sources, decision, data.median.max(1) as usize)?,
        Err(_) => 0.0,
    };
    let (weights, trained) = (base.weight_counts().total(), method.trained_values(base));
    let (model, method) = (base.architecture.class(), method.name());
    Ok(Estimate { data, run, model, weights, trained, method, memory, operations: total, rate })
}

/// The file itself when it is small, or a file of lines from all over it; and which part of it that is.
fn sample(path: &Path, scratch: &Path) -> Result<(PathBuf, f64)> {
    let Ok(facts) = std::fs::metadata(path) else { return Ok((path.to_path_buf(), 1.0)) };
    let size = facts.len();
    if size <= WHOLE_BYTES {
        return Ok((path.to_path_buf(), 1.0));
    }
    let mut lines = BufReader::new(File::open(path)?);
    let name = path.file_name().unwrap_or_default();
    let to = scratch.join(name);
    let mut out = durable::Writer::create(&to)?;
    let mut taken = 0u64;
    let mut line = Vec::new();
    for at in 0..SAMPLE_LINES {
        // Into the middle of a line, to its end, and then the next one whole.
        lines.seek(SeekFrom::Start(size / SAMPLE_LINES * at))?;
        if at > 0 {
            line.clear();
            lines.read_until(b'\n', &mut line)?;
        }
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        taken += line.len() as u64;
        out.write_all(&line)?;
    }
    out.finish()?;
    Ok((to, taken as f64 / size as f64))
}

/// Operations a second of passes like the run's, on the first slot's device: the best of some, since anything else
/// that runs only slows them down.
fn measure(plan: &Plan, sources: &Sources, decision: &Decision, length: usize) -> Result<f64> {
    let base = one_layer(&sources.config);
    let method = match sources.method.clone() {
        TuningMethod::LlamaAdapter(config) => TuningMethod::LlamaAdapter(LlamaAdapterConfig { layers: None, ..config }),
        other => other,
    };
    // Whether bf16 pays is a matter of the whole model's layers, which this one is one of.
    let form = plan.form(&method, &sources.config);
    let device = plan.device().open()?;
    let decoder = Decoder::random(base, 1, &device, form)?;
    let built = method.build(&decoder, Some(&[1][..]), plan.seed())?;
    let operations = Operations { base: decoder.config(), method: &method, keeps_graphs: decision.keeps_graphs };

    let one = operations.training(1.0, 1.0, 1.0);
    let rows = decision.largest_rows.min((MEASURED / one) as usize).max(length.min(64));
    let length = if plan.objective == Objective::ContinuedPreTraining { rows.min(length) } else { length };
    let batch = micro_batch(rows, length, decoder.config().vocab_size);
    let squares: f64 = batch.lengths.iter().map(|length| (*length as f64).powi(2)).sum();
    let work = operations.training(rows as f64, rows as f64, squares) * decision.lanes as f64;
    let lanes =
        if decision.lanes > 1 { Some(Lanes::open(decision.lanes, rayon::current_num_threads())?) } else { None };
    let one_round = || -> Result<()> {
        let one = |_: usize, batch: &MicroBatch| {
            let mut gradients = Gradients::new(built.trainables());
            loss_and_gradients(&decoder, built.trainables(), &*built, batch, &mut gradients, decision.keeps_graphs)
        };
        match &lanes {
            None => one(0, &batch).map(drop),
            Some(lanes) => {
                lanes.map(&vec![batch.clone(); decision.lanes], one).into_iter().try_for_each(|one| one.map(drop))
            }
        }
    };
    // A GPU goes on after the loss is known.
    let pass = || -> Result<()> {
        one_round()?;
        Ok(device.synchronize()?)
    };
    pass()?;
    let began = plan.clock.monotonic();
    let since = |began: Instant| plan.clock.monotonic().duration_since(began);
    let mut best = Duration::MAX;
    while best == Duration::MAX || since(began) < MEASURING {
        let own = plan.clock.monotonic();
        pass()?;
        best = best.min(since(own));
    }
    Ok(work / best.as_secs_f64().max(1e-9))
}

/// The base with one layer and hardly a vocabulary.
fn one_layer(base: &DecoderConfig) -> DecoderConfig {
    DecoderConfig {
        layers: 1,
        windows: base.windows.iter().take(1).copied().collect(),
        rotated: base.rotated.iter().take(1).copied().collect(),
        vocab_size: MEASURED_VOCABULARY.min(base.vocab_size),
        nf4: false,
        ..base.clone()
    }
}

/// So many rows in records of this length, every one learned.
fn micro_batch(rows: usize, length: usize, vocabulary: usize) -> MicroBatch {
    let mut batch = MicroBatch::default();
    while batch.tokens.len() < rows {
        let length = length.clamp(1, rows - batch.tokens.len());
        batch.tokens.extend((0..length).map(|at| (at % vocabulary) as u32));
        batch.labels.extend((0..length).map(|at| Some(((at + 1) % vocabulary) as u32)));
        batch.records.push(batch.lengths.len());
        batch.lengths.push(length);
    }
    batch
}
