//! The weight of a linear map as it lies in memory: dense, and then it may train, or in bf16 or NF4, and
//! then it is frozen. bf16 is multiplied as it is where the CPU can. Otherwise, and in NF4, a weight is decoded
//! a strip of rows at a time into memory that a core's caches hold, so a product with it needs no more room
//! than one with a dense weight.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::bf16::{Packed, ROWS_TOGETHER};
use super::few_rows;
use super::linear::{Sizes, linear};
use super::matmul::{Matrix, Output, Threads, Write, matmul_into};
use super::nf4::Nf4;
use super::operand::{Values, values};

const NAME: &str = "linear";
/// Values of a strip of rows that is decoded at a time: 4 MiB of f32.
pub const STRIP: usize = 1 << 20;

/// A weight `[out, in]`.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32; trains when it is a variable.
    Dense(Tensor),
    /// bf16, frozen.
    Bf16(Arc<Packed>),
    /// 4 bits a value, frozen.
    Nf4(Arc<Nf4>),
}

impl Weight {
    /// Outputs and inputs.
    ///
    /// # Errors
    /// When a dense weight is no matrix.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(tensor) => tensor.dims2(),
            Self::Bf16(packed) => Ok(packed.dims()),
            Self::Nf4(quantized) => Ok(quantized.dims()),
        }
    }

    /// A dense weight `[out, in]`, frozen in bf16.
    ///
    /// # Errors
    /// When it is no matrix, or not f32 on the CPU.
    pub fn packed(tensor: &Tensor) -> Result<Self> {
        let (outputs, inputs) = tensor.dims2()?;
        let tensor = tensor.contiguous()?;
        let packed = Packed::new(&Values::of(NAME, &tensor)?, outputs, inputs)?;
        Ok(Self::Bf16(Arc::new(packed)))
    }

    /// A dense weight `[out, in]`, frozen in bf16 where that changes none of its values and as it is where it
    /// would. Products with it compute in f32 on every CPU.
    ///
    /// # Errors
    /// When it is no matrix, or not f32 on the CPU.
    pub fn lossless(tensor: &Tensor) -> Result<Self> {
        let (outputs, inputs) = tensor.dims2()?;
        let tensor = tensor.contiguous()?;
        let packed = Packed::lossless(&Values::of(NAME, &tensor)?, outputs, inputs)?;
        Ok(packed.map_or_else(|| Self::Dense(tensor.clone()), |packed| Self::Bf16(Arc::new(packed))))
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Bf16(packed) => packed.bytes(),
            Self::Nf4(quantized) => quantized.bytes(),
        }
    }

    /// The tensor of a dense weight.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(tensor) => Some(tensor),
            Self::Bf16(_) | Self::Nf4(_) => None,
        }
    }

    /// Its values `[out, in]` in f32: the tensor itself where it is dense.
    ///
    /// # Errors
    /// When the values of a dense weight are no matrix.
    pub fn values(&self) -> Result<Tensor> {
        if let Self::Dense(tensor) = self {
            return Ok(tensor.clone());
        }
        let (outputs, inputs) = self.dims()?;
        let mut values = Vec::with_capacity(outputs * inputs);
        self.strips(|_, strip| values.extend_from_slice(strip))?;
        Tensor::from_vec(values, (outputs, inputs), &Device::Cpu)
    }

    /// Whether it trains.
    pub fn trains(&self) -> bool {
        matches!(self, Self::Dense(tensor) if tensor.track_op())
    }

    /// `x` `[N, in]` times the transposed weight, plus `bias` `[out]`: `[N, out]`.
    ///
    /// # Errors
    /// When the shapes do not fit, or an operand is not f32 on the CPU.
    pub fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => linear(x, tensor, bias),
            Self::Bf16(_) | Self::Nf4(_) => {
                let (outputs, inputs) = self.dims()?;
                Sizes::of(NAME, x.shape(), &Shape::from((outputs, inputs)), bias.map(Tensor::shape))?;
                let bias = bias.map(Tensor::contiguous).transpose()?;
                x.contiguous()?.apply_op1(Frozen { weight: self.clone(), bias })
            }
        }
    }

    /// Makes now what gradients of its inputs need beside it.
    pub fn prepare_to_pull_back(&self) {
        if let Self::Bf16(packed) = self {
            packed.prepare_to_pull_back();
        }
    }

    /// The squared length of every row, `[out]`, in f64.
    ///
    /// # Errors
    /// When a dense weight is not f32 on the CPU.
    pub(super) fn row_squares(&self) -> Result<Vec<f64>> {
        #[cfg(feature = "cuda")]
        if let Self::Dense(tensor) = self
            && tensor.device().is_cuda()
        {
            return super::cuda::row_squares(NAME, &tensor.contiguous()?);
        }
        let (outputs, inputs) = self.dims()?;
        let mut squares = Vec::with_capacity(outputs);
        self.strips(|_, rows| {
            let square = |row: &[f32]| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            squares.extend(rows.chunks_exact(inputs.max(1)).map(square));
        })?;
        Ok(squares)
    }

    /// `x` `[rows, in]` times the transposed weight replaces `out` `[rows, out]`, or is added to it.
    pub(super) fn multiply(&self, x: &[f32], rows: usize, out: &mut [f32], into: Write) -> Result<()> {
        let (outputs, inputs) = self.dims()?;
        if let Self::Bf16(packed) = self
            && packed.forward(x, rows, whole(out, outputs), into)
        {
            return Ok(());
        }
        // Panels are never decoded for a product: that costs more than gemm wins.
        let most = if matches!(self, Self::Bf16(_)) { usize::MAX } else { few_rows::MOST_ROWS };
        if few_rows::asked(rows, most) && inputs > 0 {
            match self {
                Self::Dense(tensor) => {
                    let tensor = tensor.contiguous()?;
                    few_rows::dense(x, inputs, &Values::of(NAME, &tensor)?, whole(out, outputs), into);
                }
                Self::Bf16(packed) => few_rows::panels(x, packed.panels(), whole(out, outputs), into),
                Self::Nf4(quantized) => few_rows::nf4(x, quantized, whole(out, outputs), into),
            }
            return Ok(());
        }
        let x = Matrix::new(x, rows, inputs);
        self.strips(|first, strip| {
            let count = strip.len() / inputs.max(1);
            let columns = Output { values: &mut out[first..], columns: count, row_stride: outputs };
            matmul_into(columns, into, 1.0, x, Matrix::new(strip, count, inputs).t(), Threads::All);
        })
    }

    /// `grad` `[rows, out]` times the weight is added to `into` `[rows, in]`.
    pub(super) fn pull_back(&self, grad: &[f32], rows: usize, into: &mut [f32]) -> Result<()> {
        let (outputs, inputs) = self.dims()?;
        if let Self::Bf16(packed) = self
            && packed.pull_back(grad, rows, Output { values: into, columns: inputs, row_stride: inputs }, Write::Add)
        {
            return Ok(());
        }
        self.strips(|first, strip| {
            let count = strip.len() / inputs.max(1);
            let grad = Matrix::strided(&grad[first..], rows, count, outputs);
            let all = Output { values: into, columns: inputs, row_stride: inputs };
            matmul_into(all, Write::Add, 1.0, grad, Matrix::new(strip, count, inputs), Threads::All);
        })
    }

    /// Calls `body` with the first row and the values of strip after strip; a dense weight is one strip.
    fn strips(&self, mut body: impl FnMut(usize, &[f32])) -> Result<()> {
        match self {
            Self::Dense(tensor) => {
                let tensor = tensor.contiguous()?;
                body(0, &Values::of(NAME, &tensor)?);
            }
            Self::Bf16(packed) => decoded(packed.dims(), |rows, strip| packed.decode_rows(rows, strip), body),
            Self::Nf4(quantized) => decoded(quantized.dims(), |rows, strip| quantized.decode_rows(rows, strip), body),
        }
        Ok(())
    }
}

/// All of an output.
fn whole(values: &mut [f32], columns: usize) -> Output<'_> {
    Output { values, columns, row_stride: columns }
}

/// Calls `decode` and then `body` for strip after strip; each begins at a multiple of [`ROWS_TOGETHER`].
fn decoded(
    (rows, columns): (usize, usize),
    decode: impl Fn(Range<usize>, &mut [f32]),
    mut body: impl FnMut(usize, &[f32]),
) {
    let height = (STRIP / columns.max(1)).next_multiple_of(ROWS_TOGETHER).max(ROWS_TOGETHER);
    let mut strip = vec![0f32; height.min(rows) * columns];
    for start in (0..rows).step_by(height) {
        let count = height.min(rows - start);
        let strip = &mut strip[..count * columns];
        decode(start..start + count, strip);
        body(start, strip);
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self::Dense(tensor)
    }
}

impl From<&Tensor> for Weight {
    fn from(tensor: &Tensor) -> Self {
        Self::Dense(tensor.clone())
    }
}

/// A linear map that does not train.
pub(super) struct Frozen {
    pub(super) weight: Weight,
    pub(super) bias: Option<Tensor>,
}

impl Frozen {
    /// xWᵀ + b.
    pub(super) fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let (outputs, _) = self.weight.dims()?;
        let (mut out, into) = match &self.bias {
            Some(bias) => (Values::of(NAME, bias)?.repeat(rows), Write::Add),
            None => (vec![0f32; rows * outputs], Write::Replace),
        };
        self.weight.multiply(x, rows, &mut out, into)?;
        Ok(out)
    }

    /// Adds the gradient of x, given that of the output, to `into` `[rows, in]`.
    pub(super) fn pull_back(&self, grad: &[f32], rows: usize, into: &mut [f32]) -> Result<()> {
        self.weight.pull_back(grad, rows, into)
    }
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, _) = layout.shape().dims2()?;
        let out = self.forward(values(NAME, x, layout)?, rows)?;
        Ok((CpuStorage::F32(out), (rows, self.weight.dims()?.0).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device(NAME, (x, layout))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, inputs) = x.dims2()?;
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on_device(NAME, x, &grad).map(Some);
        }
        let mut sums = vec![0f32; rows * inputs];
        self.pull_back(&Values::of(NAME, &grad)?, rows, &mut sums)?;
        Tensor::from_vec(sums, x.shape(), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gradcheck::{self, flat, operand};

    /// Makes a frozen weight of values, rows and columns.
    type Kind = fn(Vec<f32>, usize, usize) -> Weight;

    const KINDS: [Kind; 2] = [nf4, bf16];

    /// A frozen weight, and the same values as a dense one.
    fn both(frozen: Kind, rows: usize, columns: usize) -> [Weight; 2] {
        let frozen = frozen(flat(&operand(&[rows, columns], 2)), rows, columns);
        let dense = Weight::Dense(frozen.values().unwrap());
        [frozen, dense]
    }

    fn nf4(values: Vec<f32>, rows: usize, columns: usize) -> Weight {
        Weight::Nf4(Arc::new(Nf4::quantize(&values, rows, columns).unwrap()))
    }

    fn bf16(values: Vec<f32>, rows: usize, columns: usize) -> Weight {
        Weight::Bf16(Arc::new(Packed::new(&values, rows, columns).unwrap()))
    }

    /// An operand whose values bf16 holds as they are, so that no product rounds it.
    fn representable(shape: [usize; 2], seed: u32) -> Tensor {
        bf16(flat(&operand(&shape, seed)), shape[0], shape[1]).values().unwrap()
    }

    #[test]
    fn with_the_instruction_a_weight_in_bf16_computes_what_its_values_compute() {
        crate::kernels::emulated(2, || {
            a_frozen_weight_computes_what_its_values_compute();
            the_input_of_a_frozen_weight_gets_its_gradient();
        });
    }

    #[test]
    fn a_frozen_weight_computes_what_its_values_compute() {
        // The larger one takes several strips.
        let sizes = [(12, 20), (1200, 2000)];
        for (kind, (rows, columns)) in KINDS.into_iter().flat_map(|kind| sizes.map(|size| (kind, size))) {
            let [frozen, dense] = both(kind, rows, columns);
            let (x, bias) = (representable([7, columns], 1), operand(&[rows], 3));
            for bias in [None, Some(&bias)] {
                let expected = dense.apply(&x, bias).unwrap();
                gradcheck::assert_close(&frozen.apply(&x, bias).unwrap(), &expected, 1e-4);
            }
            let squares = (frozen.row_squares().unwrap(), dense.row_squares().unwrap());
            assert!(squares.0.iter().zip(&squares.1).all(|(a, b)| (a - b).abs() < 1e-9 * b));
        }
    }

    #[test]
    fn the_input_of_a_frozen_weight_gets_its_gradient() {
        let [quantized, _] = both(nf4, 12, 20);
        gradcheck::check(&[operand(&[5, 20], 1)], |t| quantized.apply(&t[0], Some(&operand(&[12], 3))));
        for kind in KINDS {
            let [frozen, dense] = both(kind, 1200, 2000);
            let pull = |weight: &Weight| {
                let x = candle_core::Var::from_tensor(&operand(&[3, 2000], 1)).unwrap();
                let y = (weight.apply(&x, None).unwrap() * representable([3, 1200], 5)).unwrap();
                y.sum_all().unwrap().backward().unwrap().remove(&x).unwrap()
            };
            gradcheck::assert_close(&pull(&frozen), &pull(&dense), 1e-4);
        }
    }

    #[test]
    fn a_weight_in_bf16_takes_half_the_memory_until_the_cpu_needs_it_transposed_for_gradients() {
        let size = 2 * 64 * 96;
        let bytes_after = |pull: &dyn Fn(&Packed)| {
            let packed = Packed::new(&flat(&operand(&[64, 96], 2)), 64, 96).unwrap();
            pull(&packed);
            packed.bytes()
        };
        assert_eq!(bytes_after(&|_| {}), size);
        let pull = |packed: &Packed| {
            let mut dx = vec![0f32; 96];
            let out = Output { values: &mut dx, columns: 96, row_stride: 96 };
            packed.pull_back(&[1.0; 64], 1, out, Write::Add);
        };
        let factor = if crate::kernels::has_bf16_products() { 2 } else { 1 };
        assert_eq!(bytes_after(&pull), factor * size);
        assert_eq!(crate::kernels::emulated(1, || bytes_after(&pull)), 2 * size);
    }

    #[test]
    fn an_input_of_another_width_is_refused() {
        let [[quantized, dense], [rounded, _]] = [both(nf4, 12, 20), both(bf16, 12, 20)];
        for weight in [quantized, dense, rounded] {
            assert!(weight.apply(&operand(&[5, 21], 1), None).is_err());
        }
    }
}
