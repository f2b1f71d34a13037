//! The gated activation of Llama's feed-forward block (Shazeer, arXiv 2002.05202): silu(gate) · up,
//! with silu(x) = x / (1 + e^-x), in one pass and with nothing kept but the operands.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::operand::{Values, values};
use super::vector::{sigmoid, vectorized};

const NAME: &str = "swiglu";
/// Elements per parallel task.
const CHUNK: usize = 1 << 13;

/// `gate` and `up` of one shape: silu(gate) · up of that shape.
///
/// # Errors
/// When the shapes differ, or an operand is not f32 on the CPU.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("{NAME}: gate {:?} and up {:?} differ in shape", gate.shape(), up.shape());
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, Swiglu)
}

struct Swiglu;

/// `out[i] = term(a[i], b[i], c[i])`.
fn map(a: &[f32], b: &[f32], c: &[f32], term: impl Fn(f32, f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0f32; a.len()];
    let operands = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).zip(c.par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(operands).for_each(|(out, ((a, b), c))| {
        vectorized(
            #[inline(always)]
            || {
                for (((out, a), b), c) in out.iter_mut().zip(a).zip(b).zip(c) {
                    *out = term(*a, *b, *c);
                }
            },
        );
    });
    out
}

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(NAME, gate, gl)?, values(NAME, up, ul)?);
        let out = map(gate, up, up, |gate, up, _| gate * sigmoid(gate) * up);
        Ok((CpuStorage::F32(out), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (gates, ups, grads) = (Values::of(NAME, gate)?, Values::of(NAME, up)?, Values::of(NAME, &grad)?);
        let grad_gate = gate.track_op().then(|| {
            let slope = map(&gates, &ups, &grads, |gate, up, grad| {
                let open = sigmoid(gate);
                grad * up * open * (1.0 + gate * (1.0 - open))
            });
            Tensor::from_vec(slope, gate.shape(), gate.device())
        });
        let grad_up = up.track_op().then(|| {
            let slope = map(&gates, &grads, &grads, |gate, grad, _| grad * gate * sigmoid(gate));
            Tensor::from_vec(slope, up.shape(), up.device())
        });
        Ok((grad_gate.transpose()?, grad_up.transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernels::gradcheck::{self, operand};

    #[test]
    fn gradients_equal_finite_differences() {
        let gate = (operand(&[4, 9], 1) * 4.0).unwrap();
        gradcheck::check(&[gate, operand(&[4, 9], 2)], |t| swiglu(&t[0], &t[1]));
    }

    #[test]
    fn a_frozen_operand_gets_no_gradient() {
        let gate = Var::from_tensor(&operand(&[4, 9], 1)).unwrap();
        let up = operand(&[4, 9], 2);
        let grads = swiglu(&gate, &up).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&gate).is_some() && grads.get(&up).is_none());
    }

    #[test]
    fn far_gates_stay_finite_and_shut_or_open() {
        let gate = Tensor::new(&[-1e4f32, -200.0, 200.0, 1e4], &candle_core::Device::Cpu).unwrap();
        let up = gate.ones_like().unwrap();
        let out = gradcheck::flat(&swiglu(&gate, &up).unwrap());
        assert!(out[0].abs() < 1e-30 && out[1].abs() < 1e-30);
        assert_eq!(&out[2..], &[200.0, 1e4]);
    }
}
