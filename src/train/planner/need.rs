//! What a run takes, part by part, in bytes. The counts follow the code: a graph holds what the operations
//! of `models::layer` remember for their backward passes, and the working memory is what candle's backward
//! pass and the kernels hold at their widest. Tests compare the sum with the memory that runs really took.

use std::fmt;

use super::{MemoryKind, Question};
use crate::kernels::{Paging, STRIP, has_bf16_products, head_rows};
use crate::models::Form;
use crate::tune::{Arrangement, LoraConfig, PrefixConfig, TuningMethod};

/// Bytes of a value: everything but NF4 computes in f32.
const VALUE: u64 = 4;
/// The program, its threads, the tokenizer and the data's pages, before there is a model; and what the heaps of threads
/// keep for themselves: which thread makes the gradients of a step is chance, and the next has not got what it freed.
const PROCESS: u64 = 48 << 20;
/// A graph takes this part more than its values: what the allocator rounds up and cannot use again at once.
const SLACK: u64 = 32;

/// What memory goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// The program itself.
    Program,
    /// The base's weights in f32 or bf16.
    Weights,
    /// The base's maps in NF4.
    QuantizedWeights,
    /// What trains, beside the base.
    Trained,
    /// Gradients of what trains.
    Gradients,
    /// The optimizer's moments.
    Moments,
    /// Pages of moments that visit a device.
    Pages,
    /// The best weights, with early stopping.
    Best,
    /// Weights and moments to go back to, where a step makes several updates.
    Earlier,
    /// The input of every layer.
    LayerInputs,
    /// What the backward pass needs of one layer.
    LayerGraph,
    /// What the backward pass needs of all layers.
    Graphs,
    /// What forward and backward pass work in.
    Working,
    /// Logits and what the head works in.
    Head,
    /// NF4 on its way to f32.
    Strips,
    /// Copies on their way into a file.
    Copies,
}

impl PartKind {
    /// Whether more tokens at a time, or longer ones, make it larger.
    pub fn grows_with_tokens(self) -> bool {
        matches!(self, Self::LayerInputs | Self::LayerGraph | Self::Graphs | Self::Working)
    }
}

impl fmt::Display for PartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Program => "the program itself",
            Self::Weights => "base weights",
            Self::QuantizedWeights => "base weights (NF4)",
            Self::Trained => "trained weights",
            Self::Gradients => "gradients",
            Self::Moments => "optimizer moments",
            Self::Pages => "pages of optimizer moments",
            Self::Best => "best weights so far",
            Self::Earlier => "weights and moments to go back to",
            Self::LayerInputs => "inputs of all layers",
            Self::LayerGraph => "graph of one layer",
            Self::Graphs => "graphs of all layers",
            Self::Working => "working memory of a pass",
            Self::Head => "output head and loss",
            Self::Strips => "NF4 strips",
            Self::Copies => "copies for a file",
        })
    }
}

/// A part and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// How much, in bytes.
    pub bytes: u64,
}

/// When a run takes most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the base.
    Loading,
    /// A training step.
    Step,
    /// Passing over validation data.
    Validation,
    /// Writing a checkpoint.
    Checkpoint,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Loading => "while the base is read",
            Self::Step => "in a training step",
            Self::Validation => "while validating",
            Self::Checkpoint => "while a checkpoint is written",
        })
    }
}

/// What a run takes at its highest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// When that is.
    pub stage: Stage,
    /// What it consists of then; none is empty.
    pub parts: Vec<Part>,
    /// The sum.
    pub bytes: u64,
}

impl Need {
    fn of(stage: Stage, parts: impl IntoIterator<Item = Part>) -> Self {
        let parts: Vec<Part> = parts.into_iter().filter(|part| part.bytes > 0).collect();
        Self { stage, bytes: parts.iter().map(|part| part.bytes).sum(), parts }
    }

    /// The part that takes most.
    pub fn largest_part(&self) -> Part {
        let none = Part { kind: PartKind::Program, bytes: 0 };
        self.parts.iter().copied().max_by_key(|part| part.bytes).unwrap_or(none)
    }

    /// Without what is measured and not counted.
    pub(super) fn certain(self) -> Self {
        let exact = |part: &Part| !matches!(part.kind, PartKind::Program | PartKind::Working | PartKind::Head);
        Self::of(self.stage, self.parts.into_iter().filter(exact))
    }
}

/// The largest micro-batch of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Largest {
    /// Its tokens and the soft prompts before its records.
    pub(crate) rows: usize,
    /// Its records.
    pub(crate) records: usize,
    /// The most micro-batches of a step.
    pub(crate) micros: usize,
    /// Rows of the largest micro-batch of validation data.
    pub(crate) validation_rows: usize,
}

/// What is to be done: what is asked for, with the largest micro-batches under a token budget.
pub(crate) struct Work<'a> {
    pub(crate) question: &'a Question<'a>,
    pub(crate) largest: Largest,
}

/// How it is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) keeps_graphs: bool,
    pub(crate) lanes: usize,
    pub(crate) pages_optimizer: bool,
}

/// Widths of the base, in values for each row.
struct Widths {
    hidden: u64,
    queries: u64,
    keys: u64,
    inner: u64,
    vocabulary: u64,
}

impl Work<'_> {
    /// What it takes.
    pub(crate) fn need(&self, choice: Choice) -> Need {
        let mut stages = vec![self.loading(), self.checkpoint(choice)];
        stages.extend(self.step(choice));
        if self.largest.validation_rows > 0 {
            stages.push(self.validation(choice));
        }
        let first = Need::of(Stage::Step, []);
        stages.into_iter().fold(first, |most, one| if one.bytes > most.bytes { one } else { most })
    }

    fn widths(&self) -> Widths {
        let base = self.question.base;
        Widths {
            hidden: base.hidden_size as u64,
            queries: (base.heads * base.head_dim) as u64,
            keys: (base.kv_heads * base.head_dim) as u64,
            inner: base.intermediate_size as u64,
            vocabulary: base.vocab_size as u64,
        }
    }

    fn is_nf4(&self) -> bool {
        self.question.base.nf4 || self.question.form == Form::Nf4
    }

    /// How many numbers train.
    fn trained_values(&self) -> u64 {
        let head = if self.question.has_values { self.question.base.hidden_size as u64 } else { 0 };
        self.question.method.trained_values(self.question.base) + head
    }

    /// What stands in memory from the loading of the base on.
    fn standing(&self) -> Vec<Part> {
        let counts = self.question.base.weight_counts();
        let program = if self.question.memory.kind == MemoryKind::Host { PROCESS } else { 0 };
        let mut parts = vec![Part { kind: PartKind::Program, bytes: program }];
        let rest = counts.total() - counts.maps;
        let (dense, quantized) = if self.is_nf4() {
            (VALUE * rest, nf4_bytes(counts.maps))
        } else if self.question.form == Form::Bf16 {
            // Packed in both directions where the CPU multiplies bf16, a tied head beside the table too.
            let head = if self.question.base.tied { counts.embedding } else { 0 };
            let packed = if has_bf16_products() { 4 * (counts.maps + head) } else { 2 * counts.maps };
            (VALUE * rest + packed, 0)
        } else {
            (VALUE * counts.total(), 0)
        };
        parts.push(Part { kind: PartKind::Weights, bytes: dense });
        parts.push(Part { kind: PartKind::QuantizedWeights, bytes: quantized });
        parts
    }

    /// Weights that train beside the base, moments, best weights.
    fn learning(&self, choice: Choice) -> Vec<Part> {
        let values = self.trained_values();
        let trained = VALUE * values;
        let beside = if *self.question.method == TuningMethod::Full { 0 } else { trained };
        let moments = if choice.pages_optimizer {
            Part { kind: PartKind::Pages, bytes: Paging::USUAL.device_bytes(values) }
        } else {
            Part { kind: PartKind::Moments, bytes: 2 * trained }
        };
        vec![
            Part { kind: PartKind::Trained, bytes: beside },
            moments,
            Part { kind: PartKind::Best, bytes: if self.question.keeps_best { trained } else { 0 } },
        ]
    }

    /// Copies of weights and moments that stand while a step makes its updates. Those of moments lie in the machine's
    /// memory even beside a device, which has room for them there: a checkpoint copies more.
    fn way_back(&self) -> Part {
        let copies = match self.question.memory.kind {
            _ if !self.question.goes_back => 0,
            MemoryKind::Host => 3,
            MemoryKind::Device => 1,
        };
        Part { kind: PartKind::Earlier, bytes: copies * VALUE * self.trained_values() }
    }

    /// A tensor on its way from the file: its bytes, the same as a tensor, and where it is quantised its values.
    fn loading(&self) -> Need {
        let counts = self.question.base.weight_counts();
        let table = counts.embedding;
        let copies = if self.question.memory.kind == MemoryKind::Device {
            0
        } else if self.is_nf4() {
            // What is written to the cache is copied, all that is dense at once.
            let written = if self.question.quantizes { counts.total() - counts.maps + table } else { 0 };
            VALUE * written.max(2 * counts.largest_map).max(table)
        } else {
            VALUE * table.max(counts.largest_map)
        };
        Need::of(Stage::Loading, self.standing().into_iter().chain([Part { kind: PartKind::Copies, bytes: copies }]))
    }

    /// The moments as tensors, all of them again on the way into the file, and one tensor as bytes.
    fn checkpoint(&self, choice: Choice) -> Need {
        let copies = if self.question.memory.kind == MemoryKind::Host { self.copies() } else { 0 };
        let parts = self.standing().into_iter().chain(self.learning(choice));
        Need::of(Stage::Checkpoint, parts.chain([Part { kind: PartKind::Copies, bytes: copies }]))
    }

    /// What a checkpoint copies in the machine's memory.
    fn copies(&self) -> u64 {
        let counts = self.question.base.weight_counts();
        let one = match self.question.method {
            TuningMethod::Full => counts.embedding.max(counts.largest_map),
            TuningMethod::Head => counts.embedding,
            _ => 0,
        };
        VALUE * (4 * self.trained_values() + one)
    }

    /// What moments that visit a device take of the machine's memory, where they live: most while a checkpoint
    /// is written.
    pub(crate) fn host(&self) -> Need {
        let moments = Paging::host_bytes(self.trained_values());
        let parts = [
            Part { kind: PartKind::Program, bytes: PROCESS },
            Part { kind: PartKind::Moments, bytes: moments },
            Part { kind: PartKind::Copies, bytes: self.copies() },
        ];
        Need::of(Stage::Checkpoint, parts)
    }

    /// The head's chunk, of so many rows in all.
    fn head(&self, rows: u64) -> u64 {
        let Widths { hidden, vocabulary, .. } = self.widths();
        let chunk = (head_rows(self.question.base.vocab_size, self.question.memory.kind == MemoryKind::Device) as u64)
            .min(rows);
        VALUE * (chunk * (vocabulary + 2 * hidden) + 7 * rows * hidden)
    }

    /// The moments of a step at which most is held: at the head, in a layer's backward pass, and at the embedding.
    fn step(&self, choice: Choice) -> Vec<Need> {
        let Widths { hidden, .. } = self.widths();
        let counts = self.question.base.weight_counts();
        let (rows, lanes) = (self.largest.rows as u64, choice.lanes as u64);
        let trained = self.trained_values();
        let sets = match (self.question.slots, self.question.memory.kind) {
            (..=1, _) if self.question.parts <= 1 => 1,
            // Side by side every micro-batch has gradients of its own, until as many as there are parts are added up.
            (..=1, _) => self.largest.micros.min(self.question.parts) as u64 + 1,
            // What a slot gives the others, the sum, and the sum as tensors; NCCL puts the sum in the gradients' place.
            (_, MemoryKind::Host) => 3,
            (_, MemoryKind::Device) => 1 + u64::from(!cfg!(feature = "nccl")),
        };
        let layers = self.question.method.trained_layers(self.question.base) as u64;
        let (inputs, graphs) = if choice.keeps_graphs {
            (0, Part { kind: PartKind::Graphs, bytes: lanes * layers * self.graph() })
        } else {
            let graph = Part { kind: PartKind::LayerGraph, bytes: lanes * self.graph() };
            (lanes * VALUE * layers * rows * hidden, graph)
        };
        let full = *self.question.method == TuningMethod::Full;
        let all = VALUE * trained * sets;
        // Of the first micro-batch, layers' gradients come as their graphs go; those of earlier ones stand all along.
        let earlier = if self.largest.micros > 1 { all } else { 0 };
        let always: Vec<Part> = self
            .standing()
            .into_iter()
            .chain(self.learning(choice))
            .chain([
                self.way_back(),
                Part { kind: PartKind::LayerInputs, bytes: inputs },
                Part { kind: PartKind::Strips, bytes: self.strips(lanes) },
            ])
            .collect();
        let moment = |gradients: u64, parts: Vec<Part>| {
            let gradients = Part { kind: PartKind::Gradients, bytes: gradients };
            Need::of(Stage::Step, always.iter().copied().chain([gradients]).chain(parts))
        };
        let mut moments = Vec::new();

        // At the head all graphs stand that are kept, and the head's gradient is added to an earlier one.
        let head_trains = full || *self.question.method == TuningMethod::Head;
        let head_gradient = if head_trains { 2 * VALUE * counts.embedding } else { 0 };
        let kept = if choice.keeps_graphs { Some(graphs) } else { None };
        // The states whose values are asked for, and their gradient before and after it joins that of the loss.
        let values = if self.question.has_values { 3 * VALUE * rows * hidden } else { 0 };
        let head = Part { kind: PartKind::Head, bytes: lanes * (self.head(rows) + head_gradient + values) };
        moments.push(moment(earlier, kept.into_iter().chain([head]).collect()));

        // In a layer, where a dense weight's gradient is made, copied and added too: in the highest all graphs
        // stand and the head's gradient, in the lowest one graph and all gradients.
        if layers > 0 {
            let weights =
                if full { VALUE * (self.question.base.layer_weights() as u64 + 2 * counts.largest_map) } else { 0 };
            let working = Part { kind: PartKind::Working, bytes: lanes * (self.backward() + weights) };
            let of_head = if head_trains { VALUE * counts.embedding } else { 0 };
            moments.push(moment(earlier.max(of_head), vec![graphs, working]));
            let last = Part { bytes: lanes * self.graph(), ..graphs };
            moments.push(moment(all, vec![last, working]));
        }
        if layers < self.question.base.layers as u64 {
            let forward = Part { kind: PartKind::Working, bytes: lanes * self.forward(rows) };
            moments.push(moment(earlier, vec![forward]));
        }
        if full {
            let table = Part { kind: PartKind::Working, bytes: 3 * lanes * VALUE * counts.embedding };
            moments.push(moment(all, vec![table]));
        }
        moments
    }

    /// Where weights that are not f32 are decoded for a product: a strip at a time on the CPU where it does not
    /// multiply them as they are, a whole map on a device.
    fn strips(&self, lanes: u64) -> u64 {
        let decodes = self.is_nf4() || (self.question.form == Form::Bf16 && !has_bf16_products());
        match self.question.memory.kind {
            _ if !decodes => 0,
            MemoryKind::Host => lanes * VALUE * STRIP as u64,
            MemoryKind::Device => VALUE * self.question.base.weight_counts().largest_map,
        }
    }

    /// Forward only, a layer at a time; the graph of one layer is made all the same.
    fn validation(&self, choice: Choice) -> Need {
        let rows = self.largest.validation_rows as u64;
        let (own, of) = (self.largest.rows.max(1) as u64, self.graph());
        let working = Part { kind: PartKind::Working, bytes: (of * rows / own).max(self.head(rows)) };
        let parts = self.standing().into_iter().chain(self.learning(choice));
        Need::of(Stage::Validation, parts.chain([working]))
    }

    /// What one layer holds on its way forward where nothing in it trains.
    fn forward(&self, rows: u64) -> u64 {
        let Widths { hidden, queries, keys, inner, .. } = self.widths();
        VALUE * rows * (3 * hidden + (3 * inner).max(3 * queries + 3 * keys))
    }

    /// What the operations of one layer keep for the backward pass.
    fn graph(&self) -> u64 {
        let Widths { hidden, queries, keys, inner, .. } = self.widths();
        let base = self.question.base;
        let (rows, records) = (self.largest.rows as u64, self.largest.records as u64);
        // Input, both norms, both sums, what both halves add.
        let mut row = 7 * hidden;
        // Projected, turned, attended to.
        row += queries + 2 * keys + queries + base.heads as u64;
        row += 3 * inner;
        if base.rotated.iter().any(|turns| *turns) {
            row += queries + keys;
        }
        if base.qk_norm() {
            row += queries + keys;
        }
        if base.post_norms {
            row += 2 * hidden;
        }
        if base.projections().len() < 7 {
            // Halves of a fused map are copied out of it.
            row += queries + 2 * keys + 2 * inner;
        }
        let mut record = 0;
        match self.question.method {
            TuningMethod::Lora(config) | TuningMethod::Qlora(config) if config.magnitudes => row += self.dora(config),
            TuningMethod::Adapter(config) => {
                let width = config.width(base.hidden_size) as u64;
                let seen = if config.arrangement == Arrangement::Pfeiffer { hidden } else { 0 };
                let scaled = if config.scaling == 1.0 { 0 } else { hidden };
                let one = 2 * width + 2 * hidden + seen + scaled;
                row += if config.arrangement == Arrangement::Houlsby { 2 * one } else { one };
            }
            TuningMethod::Prefix(PrefixConfig { tokens, projection, .. }) => {
                row += 2 * keys;
                record = 2 * *tokens as u64 * keys;
                if let Some(inner) = projection {
                    let inner = if *inner == 0 { hidden } else { *inner as u64 };
                    row += (*tokens as u64 * (2 * inner + 4 * keys)).div_ceil(rows.max(1));
                }
            }
            TuningMethod::LlamaAdapter(_) => row += 3 * queries,
            _ => {}
        }
        let values = VALUE * (rows * row + records * record);
        values + values / SLACK
    }

    /// What the lengths of DoRA add to a layer's graph, for each row.
    fn dora(&self, config: &LoraConfig) -> u64 {
        let targets = self.question.base.projections().iter().filter(|projection| config.targets.contains(projection));
        targets
            .map(|projection| {
                let (outputs, inputs) = self.question.base.sizes(*projection);
                if config.dropout > 0.0 { (inputs + 5 * outputs) as u64 } else { outputs as u64 }
            })
            .sum()
    }

    /// What the backward pass of one layer works in beside its graph: at its widest in the MLP, where the
    /// gradients of gate and up stand beside what they are made of, or in attention, where every query head
    /// has gradients of the keys and values that it reads.
    fn backward(&self) -> u64 {
        let Widths { hidden, queries, keys, inner, .. } = self.widths();
        let mlp = 5 * inner + 4 * hidden;
        let attention = 6 * queries + 4 * keys + 2 * hidden;
        VALUE * self.largest.rows as u64 * mlp.max(attention)
    }
}

/// Bytes of so many values in NF4: four bits each, a byte for 64, four more for each 256 of those.
fn nf4_bytes(values: u64) -> u64 {
    values / 2 + values / 64 + values / 4096
}
