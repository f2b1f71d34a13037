//! The gated activation of a feed-forward block (Shazeer, arXiv 2002.05202): act(gate) · up, in one
//! pass and with nothing kept but the operands. Both activations have the form x · σ(z(x)): SiLU with
//! z = x (SwiGLU), and the tanh approximation of GELU with z = 2·√(2/π)·(x + 0.044715·x³) (GeGLU).

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::operand::{Values, values};
use super::vector::{sigmoid, vectorized};

const NAME: &str = "gated";
/// Elements per parallel task.
const CHUNK: usize = 1 << 13;

/// What opens the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x): Llama and most others.
    Silu,
    /// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))): Gemma.
    GeluTanh,
}

impl Activation {
    /// The name in a model's `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }
}

/// `gate` and `up` of one shape: act(gate) · up of that shape.
///
/// # Errors
/// When the shapes differ, or an operand is not f32 on the CPU.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("{NAME}: gate {:?} and up {:?} differ in shape", gate.shape(), up.shape());
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    match activation {
        Activation::Silu => gate.apply_op2(&up, Gated { activation, opened: silu }),
        Activation::GeluTanh => gate.apply_op2(&up, Gated { activation, opened: gelu_tanh }),
    }
}

/// σ(z) and dz/dx of an activation x · σ(z(x)).
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    (sigmoid(x), 1.0)
}

/// As [`silu`]: ½·(1 + tanh(u)) is σ(2u).
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const CUBE: f32 = 0.044_715;
    // √(2/π)
    const ROOT: f32 = 0.797_884_6;
    // Shut or open long before ±30; further out the cube would overflow.
    let x = x.clamp(-30.0, 30.0);
    let square = x * x;
    (sigmoid(2.0 * ROOT * x * (1.0 + CUBE * square)), 2.0 * ROOT * (1.0 + 3.0 * CUBE * square))
}

/// The operation with one activation, which each function is compiled for.
struct Gated<F> {
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU's loop is compiled for `opened`"))]
    activation: Activation,
    opened: F,
}

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

impl<F: Fn(f32) -> (f32, f32) + Send + Sync> CustomOp2 for Gated<F> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(NAME, gate, gl)?, values(NAME, up, ul)?);
        let out = map(
            gate,
            up,
            up,
            #[inline(always)]
            |gate, up, _| gate * (self.opened)(gate).0 * up,
        );
        Ok((CpuStorage::F32(out), gl.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        gate: &candle_core::CudaStorage,
        gl: &Layout,
        up: &candle_core::CudaStorage,
        ul: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.activation.on_device(NAME, (gate, gl), (up, ul))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if gate.device().is_cuda() {
            return self.activation.back_on_device(NAME, gate, up, &grad);
        }
        let (gates, ups, grads) = (Values::of(NAME, gate)?, Values::of(NAME, up)?, Values::of(NAME, &grad)?);
        let grad_gate = gate.track_op().then(|| {
            let slope = map(
                &gates,
                &ups,
                &grads,
                #[inline(always)]
                |gate, up, grad| {
                    let (open, steepness) = (self.opened)(gate);
                    grad * up * open * (1.0 + gate * (1.0 - open) * steepness)
                },
            );
            Tensor::from_vec(slope, gate.shape(), gate.device())
        });
        let grad_up = up.track_op().then(|| {
            let slope = map(
                &gates,
                &grads,
                &grads,
                #[inline(always)]
                |gate, grad, _| grad * gate * (self.opened)(gate).0,
            );
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

    const BOTH: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

    #[test]
    fn gradients_equal_finite_differences() {
        for activation in BOTH {
            let gate = (operand(&[4, 9], 1) * 4.0).unwrap();
            gradcheck::check(&[gate, operand(&[4, 9], 2)], |t| gated(&t[0], &t[1], activation));
        }
    }

    #[test]
    fn a_frozen_operand_gets_no_gradient() {
        let gate = Var::from_tensor(&operand(&[4, 9], 1)).unwrap();
        let up = operand(&[4, 9], 2);
        let grads = gated(&gate, &up, Activation::Silu).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&gate).is_some() && grads.get(&up).is_none());
    }

    #[test]
    fn far_gates_stay_finite_and_shut_or_open_with_finite_slopes() {
        for activation in BOTH {
            let far = [-1e30f32, -1e4, -200.0, 200.0, 1e4, 1e30];
            let gate = Var::new(&far, &candle_core::Device::Cpu).unwrap();
            let up = gate.ones_like().unwrap();
            let out = gated(&gate, &up, activation).unwrap();
            let slopes = out.sum_all().unwrap().backward().unwrap();
            let (out, slopes) = (gradcheck::flat(&out), gradcheck::flat(slopes.get(&gate).unwrap()));
            assert!(out[1].abs() < 1e-30 && out[2].abs() < 1e-30, "{activation:?} {out:?}");
            assert_eq!(&out[3..], &far[3..], "{activation:?}");
            assert!(slopes[1].abs() < 1e-25 && slopes[2].abs() < 1e-25, "{activation:?} {slopes:?}");
            assert_eq!(&slopes[3..], &[1.0; 3], "{activation:?}");
        }
    }
}
