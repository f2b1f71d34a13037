//! The same rows in front of every record of a flat stream: a soft prompt before the embeddings, a prefix
//! before the keys and values. The rows' gradient is the sum over the records.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::operand::{Values, values};

const NAME: &str = "lead";

/// `x` `[N, ...]` whose records have these `lengths`, `rows` `[n, ...]`: `[N + n · records, ...]`.
///
/// # Errors
/// When the lengths do not sum to N, the other dimensions differ, or an operand is not f32 on the CPU.
pub fn lead(rows: &Tensor, x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    if rows.dims().is_empty() || rows.dims().get(1..) != x.dims().get(1..) {
        bail!("{NAME}: rows {:?} do not go before {:?}", rows.shape(), x.shape());
    }
    if lengths.iter().sum::<usize>() != x.dim(0)? {
        bail!("{NAME}: records of {lengths:?} do not make up {:?}", x.shape());
    }
    rows.contiguous()?.apply_op2(&x.contiguous()?, Lead { lengths: lengths.into() })
}

pub(super) struct Lead {
    pub(super) lengths: Arc<[usize]>,
}

impl CustomOp2 for Lead {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, rows: &CpuStorage, rl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, x) = (values(NAME, rows, rl)?, values(NAME, x, xl)?);
        let width: usize = xl.dims()[1..].iter().product();
        let mut out = Vec::with_capacity(x.len() + self.lengths.len() * rows.len());
        let mut start = 0;
        for length in self.lengths.iter() {
            out.extend_from_slice(rows);
            out.extend_from_slice(&x[start * width..(start + length) * width]);
            start += length;
        }
        let mut dims = xl.dims().to_vec();
        dims[0] += self.lengths.len() * rl.dims()[0];
        Ok((CpuStorage::F32(out), dims.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        rows: &candle_core::CudaStorage,
        rl: &Layout,
        x: &candle_core::CudaStorage,
        xl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device(NAME, (rows, rl), (x, xl))
    }

    fn bwd(&self, rows: &Tensor, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on_device(NAME, rows, x, &grad);
        }
        let grads = Values::of(NAME, &grad)?;
        let width: usize = x.dims()[1..].iter().product();
        let leading = rows.elem_count();
        let (mut grad_rows, mut grad_x) = (vec![0f32; leading], Vec::with_capacity(x.elem_count()));
        let mut rest = &grads[..];
        for length in self.lengths.iter() {
            let (front, later) = rest.split_at(leading);
            let (own, later) = later.split_at(length * width);
            for (sum, value) in grad_rows.iter_mut().zip(front) {
                *sum += value;
            }
            grad_x.extend_from_slice(own);
            rest = later;
        }
        let give = |operand: &Tensor, values: Vec<f32>| {
            operand.track_op().then(|| Tensor::from_vec(values, operand.shape(), operand.device())).transpose()
        };
        Ok((give(rows, grad_rows)?, give(x, grad_x)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gradcheck::{self, flat, operand};

    #[test]
    fn every_record_gets_the_rows_in_front() {
        let (rows, x) = (operand(&[2, 1], 1), operand(&[3, 1], 2));
        let (r, v) = (flat(&rows), flat(&x));
        let out = lead(&rows, &x, &[1, 2]).unwrap();
        assert_eq!(flat(&out), [r[0], r[1], v[0], r[0], r[1], v[1], v[2]]);
    }

    #[test]
    fn gradients_equal_finite_differences() {
        gradcheck::check(&[operand(&[2, 2, 3], 1), operand(&[6, 2, 3], 2)], |t| lead(&t[0], &t[1], &[1, 0, 3, 2]));
    }

    #[test]
    fn a_frozen_operand_gets_no_gradient_and_what_does_not_fit_is_refused() {
        let (rows, x) = (operand(&[2, 3], 1), operand(&[4, 3], 2));
        let rows = candle_core::Var::from_tensor(&rows).unwrap();
        let grads = lead(&rows, &x, &[4]).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&rows).is_some() && grads.get(&x).is_none());
        assert!(lead(&rows, &x, &[3]).is_err());
        assert!(lead(&operand(&[2, 4], 1), &x, &[4]).is_err());
    }
}
