//! Loss and gradients of a micro-batch by layer-wise recomputation: the forward pass keeps only each
//! layer's input; the backward pass runs one layer again at a time with its graph, and drops the
//! graph before the next. Memory is one layer's activations, however deep the model is.

use candle_core::{Tensor, Var};

pub use crate::data::MicroBatch;
use crate::error::Result;
use crate::kernels::{Gradients as Wanted, linear_cross_entropy};
use crate::models::{Decoder, Tuning};
use crate::tune::{Method, Place, Trainable};

/// The loss of a micro-batch, in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossSum {
    /// Sum over all labelled tokens.
    pub loss_sum: f64,
    /// How many tokens are labelled.
    pub labelled: usize,
    /// The same for each record, in order: a loss that is not finite is traced to its record.
    pub records: Vec<RecordLoss>,
}

/// The loss of one record.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RecordLoss {
    /// Sum over the record's labelled tokens.
    pub loss_sum: f64,
    /// How many of its tokens are labelled.
    pub labelled: usize,
}

/// Gradients of a sum of token losses, one for each trainable in the method's order. Micro-batches
/// add up; dividing once by the number of labelled tokens gives the gradient of the mean.
#[derive(Debug, Clone)]
pub struct Gradients {
    sums: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Nothing yet, for a method's trainables.
    pub fn new(trainables: &[Trainable]) -> Self {
        Self { sums: vec![None; trainables.len()] }
    }

    /// The gradient of each trainable, in order; `None` where no loss reached it.
    pub fn sums(&self) -> &[Option<Tensor>] {
        &self.sums
    }

    fn add(&mut self, index: usize, gradient: Tensor) -> Result<()> {
        let gradient = gradient.detach();
        let sum = match self.sums[index].take() {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.sums[index] = Some(sum);
        Ok(())
    }
}

/// Adds the gradients of the summed token losses of `batch` to `into`.
///
/// # Errors
/// When a token lies outside the vocabulary, or the device fails.
pub fn loss_and_gradients(
    decoder: &Decoder,
    method: &dyn Method,
    batch: &MicroBatch,
    into: &mut Gradients,
) -> Result<LossSum> {
    let trainables = method.trainables();
    let Some(lowest) = trainables.iter().map(|one| one.place).min() else {
        return loss(decoder, method, batch);
    };
    let layers = decoder.config().layers;
    let first = match lowest {
        Place::Embedding => 0,
        Place::Layer(layer) => layer,
        Place::Top => layers,
    };

    // Forward. Below the lowest trained layer nothing has to be kept.
    let packing = decoder.packing(&batch.lengths)?;
    let mut inputs = Vec::with_capacity(layers - first);
    let mut x = decoder.embed(&batch.tokens)?.detach();
    for index in 0..layers {
        if index >= first {
            inputs.push(x.clone());
        }
        x = decoder.layer(index, &x, &packing, method)?.detach();
    }

    // The top: the head's kernel gives the gradient of the normalised states together with the loss.
    let top = Input::new(x, lowest < Place::Top)?;
    let hidden = decoder.finish(&top)?;
    let head = trainables.iter().position(|one| one.var.id() == decoder.head().id());
    let wanted = if head.is_some() { Wanted::HiddenAndWeight } else { Wanted::Hidden };
    let result = linear_cross_entropy(&hidden, decoder.head(), &batch.labels, None, wanted)?;
    if let (Some(index), Some(gradient)) = (head, result.grad_weight) {
        into.add(index, gradient)?;
    }
    let mut gradient = pull_back(&hidden, &result.grad_hidden, trainables, Place::Top, &top, into)?;

    // The layers, each run again from its kept input.
    for index in (first..layers).rev() {
        let (Some(upstream), Some(x)) = (gradient.take(), inputs.pop()) else { break };
        let x = Input::new(x, lowest < Place::Layer(index))?;
        let y = decoder.layer(index, &x, &packing, method)?;
        gradient = pull_back(&y, &upstream, trainables, Place::Layer(index), &x, into)?;
    }

    if let (Place::Embedding, Some(upstream)) = (lowest, gradient) {
        let x = decoder.embed(&batch.tokens)?;
        let none = Input::new(upstream.clone(), false)?;
        pull_back(&x, &upstream, trainables, Place::Embedding, &none, into)?;
    }
    Ok(sum_up(result.loss_sum, &result.token_losses, batch))
}

/// The loss alone, for evaluation.
///
/// # Errors
/// When a token lies outside the vocabulary, or the device fails.
pub fn loss(decoder: &Decoder, tuning: &dyn Tuning, batch: &MicroBatch) -> Result<LossSum> {
    let packing = decoder.packing(&batch.lengths)?;
    let mut x = decoder.embed(&batch.tokens)?.detach();
    for index in 0..decoder.config().layers {
        x = decoder.layer(index, &x, &packing, tuning)?.detach();
    }
    let hidden = decoder.finish(&x)?.detach();
    let result = linear_cross_entropy(&hidden, decoder.head(), &batch.labels, None, Wanted::None)?;
    Ok(sum_up(result.loss_sum, &result.token_losses, batch))
}

/// What a part of the decoder is run on: a variable when something below it trains, so that its
/// gradient comes out, and a plain tensor otherwise, which costs nothing.
struct Input {
    tensor: Tensor,
    tracked: bool,
}

impl Input {
    fn new(tensor: Tensor, tracked: bool) -> Result<Self> {
        let tensor = if tracked { Var::from_tensor(&tensor)?.into_inner() } else { tensor };
        Ok(Self { tensor, tracked })
    }
}

impl std::ops::Deref for Input {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

/// Given d loss / d `output`, adds the gradients of the trainables at `place` and gives back
/// d loss / d `input`, if that is asked for.
fn pull_back(
    output: &Tensor,
    upstream: &Tensor,
    trainables: &[Trainable],
    place: Place,
    input: &Input,
    into: &mut Gradients,
) -> Result<Option<Tensor>> {
    if !output.track_op() {
        return Ok(None);
    }
    // The gradient of Σ output·upstream with respect to output is upstream.
    let mut store = (output * upstream)?.sum_all()?.backward()?;
    for (index, one) in trainables.iter().enumerate().filter(|(_, one)| one.place == place) {
        if let Some(gradient) = store.remove(&one.var) {
            into.add(index, gradient)?;
        }
    }
    Ok(if input.tracked { store.remove(input).map(|gradient| gradient.detach()) } else { None })
}

fn sum_up(loss_sum: f64, token_losses: &[f32], batch: &MicroBatch) -> LossSum {
    let mut start = 0;
    let records: Vec<RecordLoss> = batch
        .lengths
        .iter()
        .map(|length| {
            let range = start..start + length;
            start = range.end;
            RecordLoss {
                loss_sum: token_losses[range.clone()].iter().map(|loss| f64::from(*loss)).sum(),
                labelled: batch.labels[range].iter().flatten().count(),
            }
        })
        .collect();
    LossSum { loss_sum, labelled: records.iter().map(|record| record.labelled).sum(), records }
}
