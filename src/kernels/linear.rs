//! The linear map y = xWᵀ + b that knows what is frozen: a weight that does not train costs neither
//! the product for its gradient nor the memory, one that does gets both.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::few_rows;
use super::matmul::{Matrix, Output, Threads, Write, matmul_into, product};
use super::operand::{Values, values};

const NAME: &str = "linear";

/// `x` `[N, in]` times `weight` `[out, in]` transposed, plus `bias` `[out]`: `[N, out]`.
///
/// # Errors
/// When the shapes do not fit, or an operand is not f32 on the CPU.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Sizes::of(NAME, x.shape(), weight.shape(), bias.map(Tensor::shape))?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        None => x.apply_op2(&weight, Linear),
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Linear),
    }
}

/// The three sizes of a linear map.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Sizes {
    /// Reads the sizes off `x` `[N, in]`, `weight` `[out, in]` and `bias` `[out]`, or says what does not fit.
    pub(super) fn of(op: &str, x: &Shape, weight: &Shape, bias: Option<&Shape>) -> Result<Self> {
        let ((rows, inputs), (outputs, width)) = (x.dims2()?, weight.dims2()?);
        if inputs != width {
            bail!("{op}: the input has {inputs} columns, the weight takes {width}");
        }
        match bias {
            Some(bias) if bias.dims() != [outputs] => {
                bail!("{op}: the bias has shape {bias:?}, the weight gives {outputs} outputs")
            }
            _ => Ok(Self { rows, inputs, outputs }),
        }
    }
}

/// xWᵀ + b on the CPU.
pub(super) fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>, sizes: Sizes) -> Vec<f32> {
    let Sizes { rows, outputs, .. } = sizes;
    let (mut out, into) = match bias {
        Some(bias) => (bias.repeat(rows), Write::Add),
        None => (vec![0f32; rows * outputs], Write::Replace),
    };
    multiply(x, weight, sizes, Output { values: &mut out, columns: outputs, row_stride: outputs }, into);
    out
}

/// xWᵀ into `out`; within [`few_rows::each_row_alone`] few rows each by itself, in an order that does not depend on
/// their number.
pub(super) fn multiply(x: &[f32], weight: &[f32], sizes: Sizes, out: Output<'_>, into: Write) {
    let Sizes { rows, inputs, outputs } = sizes;
    if few_rows::asked(rows, few_rows::MOST_ROWS) && inputs > 0 {
        return few_rows::dense(x, inputs, weight, out, into);
    }
    let (x, weight) = (Matrix::new(x, rows, inputs), Matrix::new(weight, outputs, inputs));
    matmul_into(out, into, 1.0, x, weight.t(), Threads::All);
}

/// The gradients of `x`, `weight` and, where asked for, the bias. `None` for what does not train.
fn backward(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let grad = grad.contiguous()?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::linear_back(NAME, x, weight, &grad);
    }
    let (xs, weights, grads) = (Values::of(NAME, x)?, Values::of(NAME, weight)?, Values::of(NAME, &grad)?);
    let Sizes { rows, inputs, outputs } = Sizes::of(NAME, x.shape(), weight.shape(), None)?;
    let upstream = Matrix::new(&grads, rows, outputs);
    let grad_x = x.track_op().then(|| {
        Tensor::from_vec(product(1.0, upstream, Matrix::new(&weights, outputs, inputs)), x.shape(), x.device())
    });
    let grad_weight = weight.track_op().then(|| {
        let sums = product(1.0, upstream.t(), Matrix::new(&xs, rows, inputs));
        Tensor::from_vec(sums, weight.shape(), weight.device())
    });
    Ok((grad_x.transpose()?, grad_weight.transpose()?))
}

/// The operation; it has nothing to remember.
struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::of(NAME, xl.shape(), wl.shape(), None)?;
        let out = forward(values(NAME, x, xl)?, values(NAME, w, wl)?, None, sizes);
        Ok((CpuStorage::F32(out), (sizes.rows, sizes.outputs).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        xl: &Layout,
        w: &candle_core::CudaStorage,
        wl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        super::cuda::linear(NAME, (x, xl), (w, wl), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        backward(x, w, grad)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::of(NAME, xl.shape(), wl.shape(), Some(bl.shape()))?;
        let out = forward(values(NAME, x, xl)?, values(NAME, w, wl)?, Some(values(NAME, b, bl)?), sizes);
        Ok((CpuStorage::F32(out), (sizes.rows, sizes.outputs).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        xl: &Layout,
        w: &candle_core::CudaStorage,
        wl: &Layout,
        b: &candle_core::CudaStorage,
        bl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        super::cuda::linear(NAME, (x, xl), (w, wl), Some((b, bl)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (grad_x, grad_w) = backward(x, w, grad)?;
        #[cfg(feature = "cuda")]
        if b.device().is_cuda() && b.track_op() {
            let grad_b = super::cuda::linear_bias_back(NAME, x, w, &grad.contiguous()?)?;
            return Ok((grad_x, grad_w, Some(grad_b)));
        }
        let grad_b = b.track_op().then(|| grad.sum(0)).transpose()?;
        Ok((grad_x, grad_w, grad_b))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernels::gradcheck::{self, operand};

    #[test]
    fn gradients_equal_finite_differences() {
        gradcheck::check(&[operand(&[5, 4], 1), operand(&[3, 4], 2)], |t| linear(&t[0], &t[1], None));
        gradcheck::check(&[operand(&[5, 4], 1), operand(&[3, 4], 2), operand(&[3], 3)], |t| {
            linear(&t[0], &t[1], Some(&t[2]))
        });
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let x = Var::from_tensor(&operand(&[5, 4], 1)).unwrap();
        let (weight, bias) = (operand(&[3, 4], 2), operand(&[3], 3));
        let grads = linear(&x, &weight, Some(&bias)).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some());
        assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none());
    }

    #[test]
    fn a_frozen_input_gets_no_gradient_while_the_weight_trains() {
        let x = operand(&[5, 4], 1);
        let weight = Var::from_tensor(&operand(&[3, 4], 2)).unwrap();
        let grads = linear(&x, &weight, None).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&weight).is_some() && grads.get(&x).is_none());
    }

    #[test]
    fn another_type_and_a_wrong_width_are_refused_in_words() {
        let x = operand(&[5, 4], 1).to_dtype(candle_core::DType::F16).unwrap();
        let weight = operand(&[3, 4], 2);
        assert!(linear(&x, &weight, None).unwrap_err().to_string().contains("computes in f32"));
        let narrow = operand(&[5, 3], 1);
        assert!(linear(&narrow, &weight, None).unwrap_err().to_string().contains("the weight takes 4"));
    }

    #[test]
    fn one_row_and_many_rows_agree() {
        let (x, weight) = (operand(&[9, 70], 1), operand(&[300, 70], 2));
        let rows = || {
            let all = linear(&x, &weight, None).unwrap();
            let alone = |row| linear(&x.narrow(0, row, 1).unwrap(), &weight, None).unwrap();
            (0..9).map(|row| (alone(row), all.narrow(0, row, 1).unwrap())).collect::<Vec<_>>()
        };
        for (alone, among) in rows() {
            gradcheck::assert_close(&alone, &among, 1e-5);
        }
        for (alone, among) in few_rows::each_row_alone(rows) {
            assert_eq!(gradcheck::flat(&alone), gradcheck::flat(&among));
        }
    }
}
