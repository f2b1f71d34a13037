//! The weight of a linear map as it lies in memory: dense, and then it may train, or in NF4, and then it
//! is frozen. NF4 is decoded a strip of rows at a time into memory that a core's caches hold, so a
//! product with it needs no more room than one with a dense weight.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::linear::{Sizes, linear};
use super::matmul::{Matrix, Output, Threads, Write, matmul_into};
use super::nf4::Nf4;
use super::operand::{Values, values};

const NAME: &str = "linear";
/// Values of a strip of rows that is decoded at a time: 4 MiB of f32.
const STRIP: usize = 1 << 20;

/// A weight `[out, in]`.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32; trains when it is a variable.
    Dense(Tensor),
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
            Self::Nf4(quantized) => Ok(quantized.dims()),
        }
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
            Self::Nf4(_) => {
                let (outputs, inputs) = self.dims()?;
                Sizes::of(NAME, x.shape(), &Shape::from((outputs, inputs)), bias.map(Tensor::shape))?;
                let bias = bias.map(Tensor::contiguous).transpose()?;
                x.contiguous()?.apply_op1(Frozen { weight: self.clone(), bias })
            }
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

    /// Calls `body` with the first row and the values of strip after strip; a dense weight is one strip.
    fn strips(&self, mut body: impl FnMut(usize, &[f32])) -> Result<()> {
        match self {
            Self::Dense(tensor) => {
                let tensor = tensor.contiguous()?;
                body(0, &Values::of(NAME, &tensor)?);
            }
            Self::Nf4(quantized) => {
                let (rows, columns) = quantized.dims();
                let height = (STRIP / columns.max(1)).clamp(1, rows.max(1));
                let mut strip = vec![0f32; height * columns];
                for start in (0..rows).step_by(height) {
                    let count = height.min(rows - start);
                    let strip = &mut strip[..count * columns];
                    quantized.decode_rows(start..start + count, strip);
                    body(start, strip);
                }
            }
        }
        Ok(())
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self::Dense(tensor)
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
        let (outputs, inputs) = self.weight.dims()?;
        let (mut out, into) = match &self.bias {
            Some(bias) => (Values::of(NAME, bias)?.repeat(rows), Write::Add),
            None => (vec![0f32; rows * outputs], Write::Replace),
        };
        let x = Matrix::new(x, rows, inputs);
        self.weight.strips(|first, strip| {
            let count = strip.len() / inputs.max(1);
            let columns = Output { values: &mut out[first..], columns: count, row_stride: outputs };
            matmul_into(columns, into, 1.0, x, Matrix::new(strip, count, inputs).t(), Threads::All);
        })?;
        Ok(out)
    }

    /// Adds the gradient of x, given that of the output, to `into` `[rows, in]`.
    pub(super) fn pull_back(&self, grad: &[f32], rows: usize, into: &mut [f32]) -> Result<()> {
        let (outputs, inputs) = self.weight.dims()?;
        self.weight.strips(|first, strip| {
            let count = strip.len() / inputs.max(1);
            let grad = Matrix::strided(&grad[first..], rows, count, outputs);
            let all = Output { values: into, columns: inputs, row_stride: inputs };
            matmul_into(all, Write::Add, 1.0, grad, Matrix::new(strip, count, inputs), Threads::All);
        })
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

    /// A weight in NF4, and the same values as a dense one.
    fn both(rows: usize, columns: usize) -> [Weight; 2] {
        let quantized = Nf4::quantize(&flat(&operand(&[rows, columns], 2)), rows, columns).unwrap();
        let dense = Tensor::from_vec(quantized.dequantize(), (rows, columns), &candle_core::Device::Cpu).unwrap();
        [Weight::Nf4(Arc::new(quantized)), Weight::Dense(dense)]
    }

    #[test]
    fn a_weight_in_nf4_computes_what_its_values_compute() {
        // The larger one takes several strips.
        for (rows, columns) in [(12, 20), (1200, 2000)] {
            let [quantized, dense] = both(rows, columns);
            let (x, bias) = (operand(&[7, columns], 1), operand(&[rows], 3));
            for bias in [None, Some(&bias)] {
                let expected = dense.apply(&x, bias).unwrap();
                gradcheck::assert_close(&quantized.apply(&x, bias).unwrap(), &expected, 1e-5);
            }
            let squares = (quantized.row_squares().unwrap(), dense.row_squares().unwrap());
            assert!(squares.0.iter().zip(&squares.1).all(|(a, b)| (a - b).abs() < 1e-9 * b));
        }
    }

    #[test]
    fn the_input_of_a_weight_in_nf4_gets_its_gradient() {
        let [quantized, _] = both(12, 20);
        gradcheck::check(&[operand(&[5, 20], 1)], |t| quantized.apply(&t[0], Some(&operand(&[12], 3))));
        let [quantized, dense] = both(1200, 2000);
        let pull = |weight: &Weight| {
            let x = candle_core::Var::from_tensor(&operand(&[3, 2000], 1)).unwrap();
            let y = (weight.apply(&x, None).unwrap() * operand(&[3, 1200], 5)).unwrap();
            y.sum_all().unwrap().backward().unwrap().remove(&x).unwrap()
        };
        gradcheck::assert_close(&pull(&quantized), &pull(&dense), 1e-4);
    }

    #[test]
    fn an_input_of_another_width_is_refused() {
        let [quantized, dense] = both(12, 20);
        for weight in [quantized, dense] {
            assert!(weight.apply(&operand(&[5, 21], 1), None).is_err());
        }
    }
}
