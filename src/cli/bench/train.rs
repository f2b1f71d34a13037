//! `tunesmith bench train`: how fast this machine trains, and with how much memory, before anyone waits for it.
//! The measured steps are those of a real run; the figures can be put beside another trainer's.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::named;
use crate::cli::scratch::Scratch;
use crate::clock::Clock;
use crate::config::MemorySettings;
use crate::error::Result;
use crate::models::DecoderConfig;
use crate::train::{
    self, Lengths, Measurement, Memory, Observer, Phase, Settings, Shape, StepMetrics, StepParts, TrainingDevice,
    TuningMethod, Workload,
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Train {
    /// What the model looks like: a name from the list below, or a config.json
    #[arg(long, default_value = "cpu-135m")]
    shape: String,

    /// How it is tuned [default: the shape's own]
    #[arg(long, value_parser = TuningMethod::NAMES)]
    method: Option<String>,

    /// A hyperparameter in place of its default, such as loraRank=8; may be given more than once
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = crate::cli::hyper_parameter)]
    set: Vec<(String, String)>,

    /// Records of an optimizer step [default: the shape's own]
    #[arg(long)]
    batch: Option<usize>,

    /// Tokens of the longest record [default: the shape's own]
    #[arg(long)]
    tokens: Option<usize>,

    /// Records of full length and all learned, or uneven ones of which only the answer is learned
    #[arg(long, value_enum, default_value_t = Data::Rows)]
    data: Data,

    /// How many records the data set has
    #[arg(long, default_value_t = 1000)]
    records: usize,

    /// Steps that are measured
    #[arg(long, default_value_t = 5)]
    steps: u64,

    /// Steps before the measurement begins
    #[arg(long, default_value_t = 1)]
    warm_up: u64,

    /// What to train on: `cpu`, `cuda:0`, `cuda:0,cuda:1` to share every batch, or `auto` for as many GPUs as there are
    /// slots and the CPU where there is none
    #[arg(long, default_value = "auto")]
    device: String,

    /// Copies of the model that share every batch [default: as many as devices are named, or one]
    #[arg(long)]
    slots: Option<NonZeroUsize>,

    #[command(flatten)]
    memory: MemorySettings,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Data {
    /// Every record as long as --tokens, every token learned
    Rows,
    /// Lengths and masked prompts as instruction sets have them
    Instructions,
}

impl Train {
    pub(super) fn run(&self) -> Result<()> {
        let clock = Clock::system();
        let (config, description, shape) = named(&self.shape)?;
        let scratch = Scratch::new("bench", &clock)?;
        let given = self.hyper_parameters(shape);
        let work = self.workload(config, shape, &given, scratch.path().into())?;
        let ceiling = train::matmul_rate(&clock)?;
        let mut screen = Screen::new(self.warm_up, self.warm_up + self.steps);
        let measured = train::bench(&work, &mut screen)?;
        screen.bar.finish_and_clear();
        let figures = Figures::of(&measured, ceiling, screen.cpu_seconds());
        if self.json {
            let shape = shape.map(Shape::config_json);
            println!("{:#}", figures.json(&self.shape, shape, &given, &work, &measured));
        } else {
            print!("{}", figures.table(&description, &work, &measured));
        }
        Ok(())
    }

    /// The shape's own for its own method, and what was set.
    fn hyper_parameters(&self, shape: Option<&Shape>) -> BTreeMap<String, String> {
        let method = self.method.as_deref().or(shape.map(|shape| shape.method)).unwrap_or("lora");
        let batch = self.batch.or(shape.map(|shape| shape.batch)).unwrap_or(4);
        let mut given = BTreeMap::from([
            ("tuningMethod".to_string(), method.to_string()),
            ("batchSize".into(), batch.to_string()),
            ("stepCount".into(), self.steps.max(1).to_string()),
            ("learningRateSchedule".into(), "constant".into()),
        ]);
        let own = shape.filter(|shape| shape.method == method).map_or(&[][..], |shape| shape.hyper_parameters);
        given.extend(own.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        given.extend(self.set.iter().cloned());
        given
    }

    fn workload(
        &self,
        config: DecoderConfig,
        shape: Option<&Shape>,
        given: &BTreeMap<String, String>,
        work_dir: PathBuf,
    ) -> Result<Workload> {
        let tokens = self.tokens.or(shape.map(|shape| shape.tokens)).unwrap_or(256).max(2);
        let lengths = match self.data {
            Data::Rows => Lengths::Rows,
            Data::Instructions => Lengths::Instructions,
        };
        let settings = Settings::parse(given, &BTreeMap::new())?;
        Ok(Workload {
            config,
            settings,
            lengths,
            tokens,
            records: self.records,
            warm_up: self.warm_up,
            devices: TrainingDevice::of_slots(&self.device, self.slots)?,
            memory: Memory::host(self.memory.bytes()?),
            work_dir,
        })
    }
}

/// The measurement in numbers.
struct Figures {
    /// Medians over the measured steps.
    tokens_per_second: f64,
    labelled_per_second: f64,
    step_seconds: f64,
    /// Slowest and fastest step in tokens per second.
    range: [f64; 2],
    /// Floating-point operations per second by the model's shape, and of a plain matmul.
    rate: f64,
    ceiling: f64,
    peak_bytes: Option<u64>,
    /// Processor time of the measured steps, all cores together.
    cpu_seconds: Option<f64>,
    parts: StepParts,
    /// Not in any part: dealing batches, metrics, what runs between.
    other: f64,
}

impl Figures {
    fn of(measured: &Measurement, ceiling: f64, cpu_seconds: Option<f64>) -> Self {
        let median = |value: &dyn Fn(&StepMetrics) -> f64| {
            let mut values: Vec<f64> = measured.steps.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            let half = values.len() / 2;
            if values.len().is_multiple_of(2) { f64::midpoint(values[half - 1], values[half]) } else { values[half] }
        };
        let speed = |step: &StepMetrics| step.tokens as f64 / step.seconds;
        let mut parts = StepParts::default();
        measured.steps.iter().for_each(|step| parts += step.parts);
        let seconds: f64 = measured.steps.iter().map(|step| step.seconds).sum();
        let known = parts.forward + parts.head + parts.backward + parts.optimizer;
        Self {
            tokens_per_second: median(&speed),
            labelled_per_second: median(&|step| step.labelled as f64 / step.seconds),
            step_seconds: median(&|step| step.seconds),
            range: [
                measured.steps.iter().map(speed).fold(f64::INFINITY, f64::min),
                measured.steps.iter().map(speed).fold(0.0, f64::max),
            ],
            rate: median(&|step| measured.flops.of_step(step.tokens, step.labelled) / step.seconds),
            ceiling,
            peak_bytes: peak_bytes(),
            cpu_seconds,
            parts,
            other: (seconds - known).max(0.0),
        }
    }

    fn parts(&self) -> [(&'static str, f64); 5] {
        let StepParts { forward, head, backward, optimizer } = self.parts;
        [
            ("forward", forward),
            ("head", head),
            ("backward", backward),
            ("optimizer", optimizer),
            ("between", self.other),
        ]
    }

    fn table(&self, shape: &str, work: &Workload, measured: &Measurement) -> String {
        let total: f64 = self.parts().iter().map(|(_, seconds)| seconds).sum();
        let parts = self.parts().map(|(name, seconds)| format!("{name} {:.1} %", 100.0 * seconds / total.max(1e-12)));
        let memory =
            self.peak_bytes.map_or("not known on this system".into(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9));
        format!(
            "{shape}, {} on {} threads: batches of {}, records of up to {} tokens\n\
             \n\
             tokens per second     {:.1} (slowest step {:.1}, fastest {:.1}); learned {:.1}\n\
             step                  {:.3} s, median of {}\n\
             trained               {} values; model in memory after {:.1} s\n\
             model FLOP/s          {:.1} G, {:.1} % of a plain f32 matmul's {:.1} G on this machine\n\
             peak memory           {memory}; planned {:.2} GB, {} tokens at a time, {}\n\
             where the time goes   {}\n",
            work.settings.method.name(),
            rayon::current_num_threads(),
            work.settings.batch_size,
            work.tokens,
            self.tokens_per_second,
            self.range[0],
            self.range[1],
            self.labelled_per_second,
            self.step_seconds,
            measured.steps.len(),
            measured.trained,
            measured.loading,
            self.rate / 1e9,
            100.0 * self.rate / self.ceiling,
            self.ceiling / 1e9,
            measured.decision.need.bytes as f64 / 1e9,
            measured.decision.token_budget,
            if measured.decision.keeps_graphs { "graphs kept" } else { "layers run again" },
            parts.join(", "),
        )
    }

    fn json(
        &self,
        name: &str,
        shape: Option<Value>,
        given: &BTreeMap<String, String>,
        work: &Workload,
        measured: &Measurement,
    ) -> Value {
        let parts: serde_json::Map<String, Value> =
            self.parts().iter().map(|(name, seconds)| (name.to_string(), json!(seconds))).collect();
        json!({
            "shape": name,
            "config": shape,
            "method": work.settings.method.name(),
            "batch": work.settings.batch_size,
            "tokens": work.tokens,
            "records": work.records,
            "threads": rayon::current_num_threads(),
            "hyperParameters": given,
            "warmUpSteps": work.warm_up,
            "batches": measured.batches,
            "losses": measured.steps.iter().map(|step| step.loss).collect::<Vec<_>>(),
            "stepSeconds": measured.steps.iter().map(|step| step.seconds).collect::<Vec<_>>(),
            "tokensPerSecond": self.tokens_per_second,
            "labelledPerSecond": self.labelled_per_second,
            "trainedValues": measured.trained,
            "flopsPerSecond": self.rate,
            "matmulFlopsPerSecond": self.ceiling,
            "mfu": self.rate / self.ceiling,
            "peakBytes": self.peak_bytes,
            "plannedBytes": measured.decision.need.bytes,
            "microBatchTokens": measured.decision.token_budget,
            "keepsGraphs": measured.decision.keeps_graphs,
            "slots": work.devices.len(),
            "cpuSeconds": self.cpu_seconds,
            "partSeconds": parts,
        })
    }
}

/// The most memory that this process has had resident, where the system tells.
pub(super) fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The processor time that this process has taken, where the system tells.
fn cpu_seconds() -> Option<f64> {
    /// Linux counts it in hundredths of a second on every architecture.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in parentheses that may hold spaces; user and system time are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

/// Shows which step it is at.
struct Screen {
    bar: ProgressBar,
    warm_up: u64,
    /// When the warm-up was over.
    began: Option<f64>,
}

impl Screen {
    fn new(warm_up: u64, steps: u64) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(steps) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}") {
            bar.set_style(style);
        }
        Self { bar, warm_up, began: None }
    }

    /// Processor time since the warm-up.
    fn cpu_seconds(&self) -> Option<f64> {
        Some(cpu_seconds()? - self.began?)
    }
}

impl Observer for Screen {
    fn phase(&mut self, _: Phase) {
        self.began = cpu_seconds();
    }

    fn step(&mut self, metrics: &StepMetrics) {
        if metrics.step + 1 == self.warm_up {
            self.began = cpu_seconds();
        }
        self.bar.inc(1);
        self.bar.set_message(format!("{:.0} tok/s", metrics.tokens as f64 / metrics.seconds));
    }
}
