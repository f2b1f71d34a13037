//! The memory planner: how a run is cut so that it fits. From the base's shape, the tuning method, the
//! batches and the memory there is, it counts what every part of a run takes ([`Need`]) and decides how many
//! tokens go through the model at a time, whether the graphs of all layers stand in memory or a layer is run
//! again in the backward pass, how many micro-batches run side by side, and whether the optimizer's moments
//! live in the machine's memory and visit the device. Only the first changes the bits of a result, so it depends on nothing but the
//! memory in total, and a run that is taken up again keeps what its checkpoint says.
//!
//! What cannot fit is refused with the numbers, before the model is read.

mod need;

use std::cell::OnceCell;
use std::fmt;

pub(crate) use self::need::{Choice, Largest, Work};
pub use self::need::{Need, Part, PartKind, Stage};
use super::Settings;
use super::objective::TrainingObjective;
use crate::error::{Error, Result};
use crate::models::{DecoderConfig, Form};
use crate::tune::{LoraConfig, TuningMethod};

/// Tokens that go through the model at a time where memory allows and nobody says otherwise.
pub(crate) const USUAL_TOKENS: usize = 4096;
/// A pass of this many tokens keeps every core busy. Smaller ones are slower; larger ones gain little, so
/// that running layers again, a third more work, only pays for what is below.
const BUSY_TOKENS: usize = 1024;

/// Where a run computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// On the CPU, in the machine's own memory.
    Host,
    /// On a device with memory of its own, beside which the machine's can hold what is seldom used.
    Device,
}

/// The memory that a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Whose it is.
    pub kind: MemoryKind,
    /// How much, in bytes.
    pub bytes: u64,
}

impl Memory {
    /// What each of so many slots may take: the machine's memory is shared, every device has its own.
    pub(crate) fn shared_by(self, slots: usize) -> Self {
        match self.kind {
            MemoryKind::Host => Self { bytes: self.bytes / slots.max(1) as u64, ..self },
            MemoryKind::Device => self,
        }
    }

    /// So many bytes of the machine's memory.
    pub fn host(bytes: u64) -> Self {
        Self { kind: MemoryKind::Host, bytes }
    }
}

/// What was decided, and why it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The most tokens of a micro-batch; a record that has more stands alone.
    pub token_budget: usize,
    /// Whether the graphs of all layers stay in memory from the forward to the backward pass.
    pub keeps_graphs: bool,
    /// How many micro-batches run side by side.
    pub lanes: usize,
    /// Whether the optimizer's moments live in the machine's memory and visit the device.
    pub pages_optimizer: bool,
    /// What it takes.
    pub need: Need,
    /// What there is.
    pub memory: Memory,
    /// What it takes of the machine's memory where the optimizer's moments live there.
    pub host: Option<Need>,
    /// Rows of the largest micro-batch: its tokens and the soft prompts before them.
    pub largest_rows: usize,
}

impl Decision {
    /// Whether so much of the memory is needed that the largest micro-batch is better tried at once than met
    /// after hours.
    pub fn is_tight(&self) -> bool {
        self.need.bytes > self.memory.bytes / 5 * 4
    }
}

/// What a plan is asked for.
pub(crate) struct Question<'a> {
    pub(crate) base: &'a DecoderConfig,
    pub(crate) method: &'a TuningMethod,
    /// How the base lies in memory.
    pub(crate) form: Form,
    /// Early stopping keeps the best weights.
    pub(crate) keeps_best: bool,
    /// The base is quantised by this run and written to a cache.
    pub(crate) quantizes: bool,
    /// Micro-batches that may run side by side: the cores.
    pub(crate) cores: usize,
    /// Into how many parts a batch is cut.
    pub(crate) parts: usize,
    /// How many slots share every batch, each with gradients of its own.
    pub(crate) slots: usize,
    /// The budget that the caller or a checkpoint asks for.
    pub(crate) token_budget: Option<usize>,
    /// Tokens of the longest record: a smaller budget changes nothing.
    pub(crate) longest: usize,
    /// What each slot may take.
    pub(crate) memory: Memory,
    /// Bytes of the machine's memory that each slot may take beside a device's.
    pub(crate) host: u64,
    /// Whether the optimizer can keep its moments outside the device.
    pub(crate) can_page: bool,
    /// Whether a value head trains beside the method, over every row.
    pub(crate) has_values: bool,
    /// Whether a step makes several updates, and keeps what it began with until the last one.
    pub(crate) goes_back: bool,
}

impl Question<'_> {
    /// Decides; `largest` gives the largest micro-batch under a token budget.
    ///
    /// # Errors
    /// `Validation` with the numbers, and with what to change, when nothing fits.
    pub(crate) fn decide(&self, largest: impl Fn(usize) -> Largest) -> Result<Decision> {
        let usual = self.token_budget.unwrap_or(USUAL_TOKENS);
        let mut budgets = vec![usual];
        let mut budget = usual;
        while self.token_budget.is_none() && budget > self.longest.max(1) {
            budget /= 2;
            budgets.push(budget);
        }
        // To look through a large corpus takes a moment: a budget is looked at only when it is its turn.
        let looked_at: Vec<OnceCell<Largest>> = budgets.iter().map(|_| OnceCell::new()).collect();
        let largest = |at: usize| *looked_at[at].get_or_init(|| largest(budgets[at]));
        let pages = self.pages();
        for pages_optimizer in [false, true].into_iter().take(if pages { 2 } else { 1 }) {
            let fits = |at: usize, keeps_graphs: bool| {
                let choice = Choice { keeps_graphs, lanes: 1, pages_optimizer };
                self.need(largest(at), choice).bytes <= self.memory.bytes
            };
            let mut busy = (0..budgets.len()).filter(|at| budgets[*at] >= BUSY_TOKENS.min(usual));
            let kept = busy.find(|at| fits(*at, true));
            if let Some(at) = kept.or_else(|| (0..budgets.len()).find(|at| fits(*at, false))) {
                let decision = self.side_by_side(budgets[at], largest(at), pages_optimizer);
                return match &decision.host {
                    Some(host) if host.bytes > self.host => Err(self.refusal_by_host(host, largest(at))),
                    _ => Ok(decision),
                };
            }
        }
        let least = largest(budgets.len() - 1);
        let need = self.need(least, Choice { keeps_graphs: false, lanes: 1, pages_optimizer: pages });
        Err(self.refusal(&need, Some(least.rows)))
    }

    /// Whether the moments may live outside the device.
    fn pages(&self) -> bool {
        self.can_page && self.memory.kind == MemoryKind::Device
    }

    /// As many lanes as fit; graphs are kept where that costs no lane.
    fn side_by_side(&self, token_budget: usize, largest: Largest, pages_optimizer: bool) -> Decision {
        let most = if self.parts > 1 && self.slots <= 1 { self.cores.clamp(1, self.parts) } else { 1 };
        let all = (1..=most).rev().flat_map(|lanes| [true, false].map(|keeps_graphs| (lanes, keeps_graphs)));
        let mut last = (1, false);
        for (lanes, keeps_graphs) in all {
            last = (lanes, keeps_graphs);
            let choice = Choice { keeps_graphs, lanes, pages_optimizer };
            if self.need(largest, choice).bytes <= self.memory.bytes {
                break;
            }
        }
        let (lanes, keeps_graphs) = last;
        let need = self.need(largest, Choice { keeps_graphs, lanes, pages_optimizer });
        Decision {
            token_budget,
            keeps_graphs,
            lanes,
            pages_optimizer,
            need,
            memory: self.memory,
            host: pages_optimizer.then(|| Work { question: self, largest }.host()),
            largest_rows: largest.rows,
        }
    }

    fn need(&self, largest: Largest, choice: Choice) -> Need {
        Work { question: self, largest }.need(choice)
    }

    /// What is wrong where the device would do if the machine had room for the moments, and what would help.
    fn refusal_by_host(&self, host: &Need, largest: Largest) -> Error {
        let kept = Choice { keeps_graphs: false, lanes: 1, pages_optimizer: false };
        Error::validation(format!(
            "The job does not fit into memory: the optimizer's moments have no room on the device, which has {} where \
             {} are needed, and beside it in the machine's memory the job needs {}, of which training may take {} \
             here. What helps: tuningMethod lora or qlora; a smaller base model; a machine or a device with more \
             memory (TUNESMITH_MEMORY says how much of the machine's may be taken).",
            Size(self.memory.bytes),
            Size(self.need(largest, kept).bytes),
            Size(host.bytes),
            Size(self.host),
        ))
    }

    /// What is wrong and what would help.
    fn refusal(&self, need: &Need, rows: Option<usize>) -> Error {
        let Part { kind, bytes } = need.largest_part();
        let mut ways = Vec::new();
        let with = |method: TuningMethod| {
            let other = Question { method: &method, form: method.form(), quantizes: false, ..*self };
            let least = Largest { rows: rows.unwrap_or(2), records: 1, micros: 1, validation_rows: 0 };
            other.need(least, Choice { keeps_graphs: false, lanes: 1, pages_optimizer: false }).bytes
        };
        let qlora = with(TuningMethod::Qlora(LoraConfig::default()));
        if self.form != Form::Nf4 && qlora < need.bytes {
            ways.push(format!("tuningMethod qlora, which takes {}", Size(qlora)));
        }
        let lora = with(TuningMethod::Lora(LoraConfig::default()));
        match self.method {
            TuningMethod::Full | TuningMethod::Head if lora < need.bytes => {
                ways.push(format!("tuningMethod lora, which takes {}", Size(lora)));
            }
            TuningMethod::Lora(config) | TuningMethod::Qlora(config) if config.rank > 8 => {
                ways.push("a smaller loraRank or fewer loraTargetModules".into());
            }
            _ => {}
        }
        if kind.grows_with_tokens() {
            let rows = rows.map_or(String::new(), |rows| format!(" ({rows} rows go through the model at a time)"));
            match self.token_budget {
                Some(budget) if budget > self.longest => {
                    ways.push(format!("a smaller microBatchTokens than {budget}{rows}, or leave it out"));
                }
                _ => ways.push(format!("shorter records, or a smaller maxSequenceLength{rows}")),
            }
        }
        ways.push("a smaller base model".into());
        ways.push("a machine with more memory (TUNESMITH_MEMORY says how much may be taken)".into());
        Error::validation(format!(
            "The job does not fit into memory: it needs at least {} and training may take {} here. The largest part is \
             {kind} with {}. What helps: {}.",
            Size(need.bytes),
            Size(self.memory.bytes),
            Size(bytes),
            ways.join("; ")
        ))
    }
}

/// Refuses a job that cannot fit whatever its data holds: one record of two tokens is counted, and nothing
/// that is not certain.
///
/// # Errors
/// `Validation` with the numbers.
pub fn refuse_the_impossible(base: &DecoderConfig, settings: &Settings, memory: Memory) -> Result<()> {
    let method = &settings.method;
    let question = Question {
        base,
        method: &method.on(base)?,
        form: settings.form(method, base),
        keeps_best: settings.early_stopping.is_some(),
        quantizes: false,
        cores: 1,
        parts: 1,
        slots: 1,
        token_budget: None,
        longest: 2,
        memory,
        host: u64::MAX,
        can_page: true,
        has_values: false,
        goes_back: matches!(settings.objective, TrainingObjective::Reinforcement(all) if all.updates_per_batch > 1),
    };
    let least = Largest { rows: 2, records: 1, micros: 1, validation_rows: 0 };
    let pages_optimizer = memory.kind == MemoryKind::Device;
    let need = question.need(least, Choice { keeps_graphs: false, lanes: 1, pages_optimizer }).certain();
    if need.bytes > memory.bytes { Err(question.refusal(&need, None)) } else { Ok(()) }
}

/// Bytes as people read them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = 1_048_576.0;
        let bytes = self.0 as f64;
        if bytes >= 1000.0 * MIB {
            write!(f, "{:.1} GiB", bytes / 1024.0 / MIB)
        } else {
            write!(f, "{:.0} MiB", bytes / MIB)
        }
    }
}

#[cfg(test)]
mod tests;
