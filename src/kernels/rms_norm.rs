//! Root-mean-square normalization (Zhang, Sennrich 2019): y = w · x / sqrt(mean(x²) + eps), over the
//! last dimension, where w may be kept as its difference from an offset (Gemma's is 1). The scale is computed again in the backward pass rather than kept.

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::operand::{Values, values};
use super::vector::{dot, sum_of, vectorized};

const NAME: &str = "rms_norm";
/// Rows per parallel task; also the rows whose weight gradients are added first, so it never changes
/// with the number of threads.
const CHUNK: usize = 16;

/// `x` `[..., H]`, scaled by `offset` + `weight` `[H]`: the shape of `x`. The offset is added here and not
/// to the stored weight, which is saved, and decayed, as it is.
///
/// # Errors
/// When the last dimension is not the weight's, or an operand is not f32 on the CPU.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, offset: f64) -> Result<Tensor> {
    let (width, size) = (x.dim(D::Minus1)?, weight.dims1()?);
    if width != size || width == 0 {
        bail!("{NAME}: rows of {width} values, a weight of {size}");
    }
    x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32, offset: offset as f32 })
}

pub(super) struct RmsNorm {
    pub(super) eps: f32,
    pub(super) offset: f32,
}

impl RmsNorm {
    /// 1 / sqrt(mean(x²) + eps) of one row.
    #[inline(always)]
    fn inverse(&self, x: &[f32]) -> f32 {
        (dot(x, x) / x.len() as f32 + self.eps).sqrt().recip()
    }

    fn forward(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let width = weight.len();
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(CHUNK * width).zip(x.par_chunks(CHUNK * width)).for_each(|(out, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let inverse = self.inverse(x);
                        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                            *out = x * inverse * (self.offset + w);
                        }
                    }
                },
            );
        });
        out
    }

    /// dx = r·w·dy - x·r³/H·Σ(w·dy·x), with r the inverse root mean square and w the offset weight.
    fn input_gradient(&self, x: &[f32], weight: &[f32], grad: &[f32]) -> Vec<f32> {
        let width = weight.len();
        let mut out = vec![0f32; x.len()];
        let rows = out.par_chunks_mut(CHUNK * width).zip(x.par_chunks(CHUNK * width));
        rows.zip(grad.par_chunks(CHUNK * width)).for_each(|((out, x), grad)| {
            vectorized(
                #[inline(always)]
                || {
                    let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width));
                    for ((out, x), grad) in rows {
                        let inverse = self.inverse(x);
                        for ((out, grad), w) in out.iter_mut().zip(grad).zip(weight) {
                            *out = grad * (self.offset + w);
                        }
                        let along = sum_of(out, x, |g, x| g * x) * inverse * inverse / width as f32;
                        for (out, x) in out.iter_mut().zip(x) {
                            *out = (*out - x * along) * inverse;
                        }
                    }
                },
            );
        });
        out
    }

    /// dw = Σ over rows of dy·x·r.
    fn weight_gradient(&self, x: &[f32], grad: &[f32], width: usize) -> Vec<f32> {
        let chunks = x.par_chunks(CHUNK * width).zip(grad.par_chunks(CHUNK * width)).map(|(x, grad)| {
            let mut sum = vec![0f32; width];
            vectorized(
                #[inline(always)]
                || {
                    for (x, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
                        let inverse = self.inverse(x);
                        for ((sum, x), grad) in sum.iter_mut().zip(x).zip(grad) {
                            *sum += grad * x * inverse;
                        }
                    }
                },
            );
            sum
        });
        let chunks: Vec<Vec<f32>> = chunks.collect();
        let mut total = vec![0f32; width];
        for chunk in chunks {
            for (total, part) in total.iter_mut().zip(chunk) {
                *total += part;
            }
        }
        total
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.forward(values(NAME, x, xl)?, values(NAME, w, wl)?);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        xl: &Layout,
        w: &candle_core::CudaStorage,
        wl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device(NAME, (x, xl), (w, wl))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on_device(NAME, x, w, &grad);
        }
        let (xs, ws, gs) = (Values::of(NAME, x)?, Values::of(NAME, w)?, Values::of(NAME, &grad)?);
        let grad_x = x.track_op().then(|| Tensor::from_vec(self.input_gradient(&xs, &ws, &gs), x.shape(), x.device()));
        let grad_w =
            w.track_op().then(|| Tensor::from_vec(self.weight_gradient(&xs, &gs, ws.len()), w.shape(), w.device()));
        Ok((grad_x.transpose()?, grad_w.transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernels::gradcheck::{self, operand};

    #[test]
    fn gradients_equal_finite_differences() {
        for offset in [0.0, 1.0] {
            let run = |t: &[Tensor], eps| rms_norm(&t[0], &t[1], eps, offset);
            gradcheck::check(&[operand(&[3, 2, 19], 1), operand(&[19], 2)], |t| run(t, 1e-5));
            // More rows than one task takes.
            gradcheck::check(&[operand(&[CHUNK + 3, 5], 1), operand(&[5], 2)], |t| run(t, 1e-2));
        }
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let x = Var::from_tensor(&operand(&[4, 8], 1)).unwrap();
        let weight = operand(&[8], 2);
        let grads = rms_norm(&x, &weight, 1e-5, 0.0).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some() && grads.get(&weight).is_none());
    }

    #[test]
    fn a_weight_of_another_width_is_refused() {
        assert!(rms_norm(&operand(&[4, 8], 1), &operand(&[7], 2), 1e-5, 0.0).is_err());
    }

    #[test]
    fn an_offset_is_the_same_as_weights_that_hold_it() {
        let (x, weight) = (operand(&[4, 8], 1), operand(&[8], 2));
        let offset = rms_norm(&x, &weight, 1e-5, 1.0).unwrap();
        let held = rms_norm(&x, &(&weight + 1.0).unwrap(), 1e-5, 0.0).unwrap();
        assert_eq!(gradcheck::flat(&offset), gradcheck::flat(&held));
    }
}
