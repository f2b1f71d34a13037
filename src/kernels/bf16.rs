//! A frozen weight in bfloat16, packed once for the CPU's products in it: those of AMX's tile registers, or of
//! AVX512-BF16, where two products a lane are added to an f32 accumulator by one instruction. The weight lies in panels
//! as both read them, and in those of its transpose once gradients are to go through it; what is multiplied with it is
//! rounded and packed on the way. A CPU without either keeps one packing, half the memory of f32, and multiplies what it
//! decodes from it.

pub(super) mod panels;
#[cfg(test)]
pub(crate) mod portable;
pub(super) mod product;
#[cfg(test)]
mod tests;
mod tile;

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{Result, bail};

use self::panels::{COLUMNS, Panels};
use self::product::product;
use self::tile::Kernel;
use super::matmul::{Output, Write};

/// Whether this CPU multiplies packed bf16 values faster than f32: whether it has AMX or a fast AVX512-BF16.
pub fn has_bf16_products() -> bool {
    tile::native().is_some()
}

/// The nearest value that bf16 holds.
pub fn to_bf16(value: f32) -> f32 {
    f32::from_bits(panels::rounded(value))
}

/// A matrix `[out, in]` in bf16. Each value is the nearest bf16, ties to even; subnormal values are zero, as
/// the instruction takes them.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Outputs and inputs.
    shape: (usize, usize),
    /// How this CPU multiplies it, if it is not in f32.
    kernel: Option<Kernel>,
    /// For y = x·Wᵀ: a column of a panel is a row of the weight.
    forward: Panels,
    /// For dx = g·W, packed when gradients are to come, the first one at the latest: inference does without.
    backward: OnceLock<Panels>,
}

impl Packed {
    /// Rounds and packs `outputs · inputs` row-major values.
    ///
    /// # Errors
    /// When there are not that many.
    pub fn new(values: &[f32], outputs: usize, inputs: usize) -> Result<Self> {
        if values.len() != outputs * inputs {
            bail!("bf16: {} values for a matrix of {outputs} rows and {inputs} columns", values.len());
        }
        let forward = Panels::pack(values, outputs, inputs);
        Ok(Self { shape: (outputs, inputs), kernel: tile::native(), forward, backward: OnceLock::new() })
    }

    /// As [`Packed::new`], to be multiplied in f32 on every CPU; `None` when rounding would change a value.
    ///
    /// # Errors
    /// As [`Packed::new`].
    pub fn lossless(values: &[f32], outputs: usize, inputs: usize) -> Result<Option<Self>> {
        if !values.iter().all(|value| panels::rounded(*value) == value.to_bits()) {
            return Ok(None);
        }
        Ok(Some(Self { kernel: None, ..Self::new(values, outputs, inputs)? }))
    }

    /// The weight as it lies in memory.
    pub(super) fn panels(&self) -> &Panels {
        &self.forward
    }

    /// Outputs and inputs.
    pub fn dims(&self) -> (usize, usize) {
        self.shape
    }

    /// Bytes in memory, with the transposed panels once they are there.
    pub fn bytes(&self) -> usize {
        self.forward.bytes() + self.backward.get().map_or(0, Panels::bytes)
    }

    /// The values of some rows, of which the first is a multiple of [`ROWS_TOGETHER`]; `out` has their size.
    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.forward.decode(rows.start, self.shape.1, out);
    }

    /// `x` `[rows, in]` times the transposed weight into `out`. `false` when this CPU has no instruction for it,
    /// and nothing was done.
    pub(super) fn forward(&self, x: &[f32], rows: usize, out: Output<'_>, into: Write) -> bool {
        self.kernel.map(|kernel| product(kernel, x, rows, &self.forward, out, into)).is_some()
    }

    /// `grad` `[rows, out]` times the weight into `out`: the gradient of x. `false` as for
    /// [`Packed::forward`].
    pub(super) fn pull_back(&self, grad: &[f32], rows: usize, out: Output<'_>, into: Write) -> bool {
        self.kernel.map(|kernel| product(kernel, grad, rows, self.transposed(), out, into)).is_some()
    }

    /// Packs the transposed weight now where it will be needed, and not among the short-lived memory of a first pass,
    /// between which it would stay for good.
    pub(super) fn prepare_to_pull_back(&self) {
        if self.kernel.is_some() {
            self.transposed();
        }
    }

    fn transposed(&self) -> &Panels {
        // By one thread: it is waited for, and a pool's threads that wait cannot take up its work.
        self.backward.get_or_init(|| self.forward.transposed())
    }
}

/// Rows that are decoded together fastest, and where decoding may begin: a panel's.
pub(super) const ROWS_TOGETHER: usize = COLUMNS;
