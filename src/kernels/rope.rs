//! Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split layout of Hugging Face
//! models: element i of a head turns with element i + r/2, for the first r of its d elements; the rest
//! stay as they are. The backward pass turns the other way.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::operand::{Values, values};
use super::vector::vectorized;

const NAME: &str = "rope";
/// Tokens per parallel task.
const CHUNK: usize = 16;

/// `x` `[N, heads, d]`, the first r ≤ d elements of every head turned by the angles whose `cos` and `sin`
/// `[N, r/2]` are given per token.
/// The angles get no gradient.
///
/// # Errors
/// When the shapes do not fit, or an operand is not f32 on the CPU.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (tokens, heads, size) = x.dims3()?;
    if size % 2 != 0 || heads == 0 || size == 0 {
        bail!("{NAME}: heads of an even size are needed, not {:?}", x.shape());
    }
    let (rows, half) = cos.dims2()?;
    if rows != tokens || half == 0 || 2 * half > size || sin.dims() != cos.dims() {
        bail!("{NAME}: angles {:?} and {:?} do not fit {:?}", cos.shape(), sin.shape(), x.shape());
    }
    x.contiguous()?.apply_op3(&cos.contiguous()?, &sin.contiguous()?, Rope { heads, size, half })
}

pub(super) struct Rope {
    pub(super) heads: usize,
    pub(super) size: usize,
    pub(super) half: usize,
}

impl Rope {
    /// Turns by the angle (`turn` 1) or back by it (`turn` -1).
    fn turn(&self, x: &[f32], cos: &[f32], sin: &[f32], turn: f32) -> Vec<f32> {
        let (row, half) = (self.heads * self.size, self.half);
        let mut out = vec![0f32; x.len()];
        let tokens = out.par_chunks_mut(CHUNK * row).zip(x.par_chunks(CHUNK * row));
        tokens.zip(cos.par_chunks(CHUNK * half).zip(sin.par_chunks(CHUNK * half))).for_each(
            |((out, x), (cos, sin))| {
                vectorized(
                    #[inline(always)]
                    || {
                        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
                        for ((out, x), (cos, sin)) in out.chunks_exact_mut(row).zip(x.chunks_exact(row)).zip(angles) {
                            for (out, x) in out.chunks_exact_mut(self.size).zip(x.chunks_exact(self.size)) {
                                out[2 * half..].copy_from_slice(&x[2 * half..]);
                                let (low, high) = x[..2 * half].split_at(half);
                                let (out_low, out_high) = out[..2 * half].split_at_mut(half);
                                for i in 0..half {
                                    let sin = turn * sin[i];
                                    out_low[i] = low[i] * cos[i] - high[i] * sin;
                                    out_high[i] = high[i] * cos[i] + low[i] * sin;
                                }
                            }
                        }
                    },
                );
            },
        );
        out
    }
}

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        cos: &CpuStorage,
        cl: &Layout,
        sin: &CpuStorage,
        sl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.turn(values(NAME, x, xl)?, values(NAME, cos, cl)?, values(NAME, sin, sl)?, 1.0);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        xl: &Layout,
        cos: &candle_core::CudaStorage,
        cl: &Layout,
        sin: &candle_core::CudaStorage,
        sl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device(NAME, [(x, xl), (cos, cl), (sin, sl)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        if !x.track_op() {
            return Ok((None, None, None));
        }
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return Ok((Some(self.back_on_device(NAME, cos, sin, &grad)?), None, None));
        }
        let (cos, sin, grads) = (Values::of(NAME, cos)?, Values::of(NAME, sin)?, Values::of(NAME, &grad)?);
        let turned = self.turn(&grads, &cos, &sin, -1.0);
        Ok((Some(Tensor::from_vec(turned, x.shape(), x.device())?), None, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gradcheck::{self, operand};

    fn angles(tokens: usize, half: usize) -> (Tensor, Tensor) {
        let angles = (operand(&[tokens, half], 7) * 3.0).unwrap();
        (angles.cos().unwrap(), angles.sin().unwrap())
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (cos, sin) = angles(5, 3);
        gradcheck::check(&[operand(&[5, 2, 6], 1)], |t| rope(&t[0], &cos, &sin));
        gradcheck::check(&[operand(&[5, 2, 10], 1)], |t| rope(&t[0], &cos, &sin));
    }

    #[test]
    fn elements_past_the_angles_stay_as_they_are() {
        let (cos, sin) = angles(5, 3);
        let x = operand(&[5, 2, 10], 1);
        let (turned, first) = (rope(&x, &cos, &sin).unwrap(), x.narrow(2, 0, 6).unwrap());
        assert_eq!(
            gradcheck::flat(&turned.narrow(2, 0, 6).unwrap()),
            gradcheck::flat(&rope(&first, &cos, &sin).unwrap())
        );
        assert_eq!(gradcheck::flat(&turned.narrow(2, 6, 4).unwrap()), gradcheck::flat(&x.narrow(2, 6, 4).unwrap()));
    }

    #[test]
    fn turning_keeps_the_length_and_more_tokens_than_one_task_takes_are_all_turned() {
        let (cos, sin) = angles(2 * CHUNK + 1, 4);
        let x = operand(&[2 * CHUNK + 1, 3, 8], 1);
        let norm = |t: &Tensor| t.sqr().unwrap().sum(2).unwrap();
        gradcheck::assert_close(&norm(&rope(&x, &cos, &sin).unwrap()), &norm(&x), 1e-5);
    }

    #[test]
    fn angles_for_other_tokens_are_refused() {
        let (cos, sin) = angles(4, 3);
        assert!(rope(&operand(&[5, 2, 6], 1), &cos, &sin).is_err());
        assert!(rope(&operand(&[4, 2, 5], 1), &cos, &sin).is_err());
    }
}
