//! The output head and its loss in one: logits are made for a few rows at a time, only where a label
//! stands, and turned into gradients at once, so the [N, V] matrix never exists. Loss and gradients
//! come back together because a loss is where a backward pass begins.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::matmul::{Matrix, Threads, Write, matmul};
use super::operand::Values;
use super::vector::{exp_and_sum, max, soft_cap, vectorized};
use super::weight::Weight;

const NAME: &str = "linear_cross_entropy";
/// Logits held at a time: 64 MiB of f32, and 256 MiB on a GPU. The head is read, and packed for the product, once
/// for every chunk.
const LOGITS: [usize; 2] = [1 << 24, 1 << 26];
/// The fewest rows of a chunk: fewer make slow products.
const FEWEST: usize = 16;
/// The most: more only cost memory.
const MOST: [usize; 2] = [512, 8192];

/// Labelled rows whose logits are held at a time.
pub fn head_rows(vocabulary: usize, on_gpu: bool) -> usize {
    let device = usize::from(on_gpu);
    (LOGITS[device] / vocabulary.max(1)).clamp(FEWEST, MOST[device])
}

/// Which gradients are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradients {
    /// None: the loss is only watched.
    None,
    /// That of the hidden states: the head is frozen.
    Hidden,
    /// That of the head's weight: nothing below it trains.
    Weight,
    /// Those of the hidden states and of the head's weight.
    HiddenAndWeight,
}

impl Gradients {
    pub(super) fn of_hidden(self) -> bool {
        matches!(self, Self::Hidden | Self::HiddenAndWeight)
    }

    pub(super) fn of_weight(self) -> bool {
        matches!(self, Self::Weight | Self::HiddenAndWeight)
    }
}

/// The loss of some rows and its gradients.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    /// Σ over labelled rows of `token_scale` (or 1) times the row's loss.
    pub loss_sum: f64,
    /// -ln p(label) of every row, unscaled, in nats; 0 where no label stands.
    pub token_losses: Vec<f32>,
    /// d `loss_sum` / d hidden, `[N, H]`; zeros when not asked for.
    pub grad_hidden: Tensor,
    /// d `loss_sum` / d weight, `[V, H]`.
    pub grad_weight: Option<Tensor>,
}

/// Cross entropy of softmax(`hidden` `[N, H]` · `weight`ᵀ `[V, H]`) against `labels` (N, `None` where
/// nothing is to be learned), each row's loss times its `token_scale` (N). With a `softcap` of c every
/// logit l becomes c · tanh(l / c) before the softmax (Gemma 2).
///
/// # Errors
/// When the sizes do not fit, the cap is not positive, a label is not below V, or a tensor is not f32 on the CPU.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: impl Into<Weight>,
    labels: &[Option<u32>],
    token_scale: Option<&[f32]>,
    softcap: Option<f64>,
    gradients: Gradients,
) -> Result<CrossEntropy> {
    let weight = weight.into();
    let ((rows, width), (vocabulary, head_width)) = (hidden.dims2()?, weight.dims()?);
    if width != head_width {
        bail!("{NAME}: hidden states of {width} values, a head that takes {head_width}");
    }
    if labels.len() != rows || token_scale.is_some_and(|scale| scale.len() != rows) {
        let scales = token_scale.map_or(rows, <[f32]>::len);
        bail!("{NAME}: {rows} rows, {} labels, {scales} scales", labels.len());
    }
    if let Some(label) = labels.iter().flatten().find(|label| **label as usize >= vocabulary) {
        bail!("{NAME}: label {label} is not in a vocabulary of {vocabulary}");
    }
    if softcap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
        bail!("{NAME}: a soft cap must be positive, not {softcap:?}");
    }
    if gradients.of_weight() && !matches!(weight, Weight::Dense(_)) {
        bail!("{NAME}: a head in bf16 or NF4 gets no gradient");
    }
    let device = hidden.device();
    let hidden = hidden.contiguous()?;
    let labelled: Vec<Labelled> = labels
        .iter()
        .enumerate()
        .filter_map(|(row, label)| {
            let scale = token_scale.map_or(1.0, |scale| scale[row]);
            label.map(|label| Labelled { row, label: label as usize, scale })
        })
        .collect();
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let Weight::Dense(weight) = &weight else { bail!("{NAME}: on a GPU the head is dense") };
        let softcap = softcap.map(|cap| cap as f32);
        return super::cuda::cross_entropy(NAME, &hidden, &weight.contiguous()?, &labelled, softcap, gradients);
    }
    let head = Head {
        weight: &weight,
        width,
        vocabulary,
        chunk: head_rows(vocabulary, false),
        softcap: softcap.map(|cap| cap as f32),
        gradients,
    };
    let sums = head.run(&Values::of(NAME, &hidden)?, rows, &labelled)?;
    Ok(CrossEntropy {
        loss_sum: sums.loss_sum,
        token_losses: sums.token_losses,
        grad_hidden: Tensor::from_vec(sums.grad_hidden, (rows, width), device)?,
        grad_weight: sums.grad_weight.map(|grad| Tensor::from_vec(grad, (vocabulary, width), device)).transpose()?,
    })
}

/// A row with something to learn.
#[derive(Clone, Copy)]
pub(super) struct Labelled {
    pub(super) row: usize,
    pub(super) label: usize,
    pub(super) scale: f32,
}

struct Head<'a> {
    weight: &'a Weight,
    width: usize,
    vocabulary: usize,
    chunk: usize,
    softcap: Option<f32>,
    gradients: Gradients,
}

struct Sums {
    loss_sum: f64,
    token_losses: Vec<f32>,
    grad_hidden: Vec<f32>,
    grad_weight: Option<Vec<f32>>,
}

impl Head<'_> {
    fn run(&self, hidden: &[f32], rows: usize, labelled: &[Labelled]) -> Result<Sums> {
        let (width, vocabulary) = (self.width, self.vocabulary);
        let mut sums = Sums {
            loss_sum: 0.0,
            token_losses: vec![0f32; rows],
            grad_hidden: vec![0f32; rows * width],
            grad_weight: self.gradients.of_weight().then(|| vec![0f32; vocabulary * width]),
        };
        let (mut gathered, mut logits, mut grads) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in labelled.chunks(self.chunk) {
            gathered.clear();
            for at in chunk {
                gathered.extend_from_slice(&hidden[at.row * width..(at.row + 1) * width]);
            }
            logits.resize(chunk.len() * vocabulary, 0.0);
            self.weight.multiply(&gathered, chunk.len(), &mut logits, Write::Replace)?;
            let losses: Vec<f32> = logits
                .par_chunks_exact_mut(vocabulary)
                .zip(chunk)
                .map_init(Vec::new, |capped, (logits, at)| self.loss_and_slopes(logits, capped, *at))
                .collect();
            for (at, loss) in chunk.iter().zip(losses) {
                sums.token_losses[at.row] = loss;
                sums.loss_sum += f64::from(at.scale) * f64::from(loss);
            }
            if self.gradients.of_hidden() {
                grads.clear();
                grads.resize(chunk.len() * width, 0.0);
                self.weight.pull_back(&logits, chunk.len(), &mut grads)?;
                for (at, grad) in chunk.iter().zip(grads.chunks_exact(width.max(1))) {
                    sums.grad_hidden[at.row * width..(at.row + 1) * width].copy_from_slice(grad);
                }
            }
            if let Some(grad_weight) = &mut sums.grad_weight {
                let slopes = Matrix::new(&logits, chunk.len(), vocabulary);
                let seen = Matrix::new(&gathered, chunk.len(), width);
                matmul(grad_weight, Write::Add, 1.0, slopes.t(), seen, Threads::All);
            }
        }
        Ok(sums)
    }

    /// The loss of one row; its logits become scale · (softmax - one-hot) where a gradient is wanted,
    /// times the cap's slope 1 - (capped / c)², for which the capped logits are kept in `capped`.
    fn loss_and_slopes(&self, logits: &mut [f32], capped: &mut Vec<f32>, at: Labelled) -> f32 {
        let wanted = self.gradients != Gradients::None;
        vectorized(
            #[inline(always)]
            || {
                if let Some(cap) = self.softcap {
                    soft_cap(logits, cap);
                    capped.clear();
                    capped.extend_from_slice(if wanted { logits } else { &[] });
                }
                let target = logits[at.label];
                let largest = max(logits);
                let sum = exp_and_sum(logits, largest);
                if wanted {
                    let factor = at.scale / sum;
                    for p in logits.iter_mut() {
                        *p *= factor;
                    }
                    logits[at.label] -= at.scale;
                }
                if let Some(cap) = self.softcap {
                    let inverse = cap.recip();
                    for (slope, capped) in logits.iter_mut().zip(capped.iter()) {
                        let part = capped * inverse;
                        *slope *= 1.0 - part * part;
                    }
                }
                sum.ln() + (largest - target)
            },
        )
    }
}

#[cfg(test)]
mod tests;
