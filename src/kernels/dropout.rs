//! Dropout whose mask is a function of a key and the element's position: nothing is stored, and a
//! layer that is run again in the backward pass drops the same elements.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::operand::values;
use crate::rng::mix;

const NAME: &str = "dropout";
/// Elements per parallel task.
const CHUNK: usize = 1 << 14;

/// Inverted dropout: an element is zeroed with `probability`, the others are divided by
/// `1 - probability`, so the mean stays. The same `key` gives the same mask for the same shape;
/// callers make a key from seed, step, layer and site.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Chance that an element is dropped, in `[0, 1)`.
    pub probability: f32,
    /// Names the mask.
    pub key: u64,
}

/// What a mask is drawn with.
pub(super) struct Mask {
    /// What an element that stays is multiplied by.
    pub(super) kept: f32,
    /// Of 2³² equally likely values, those below drop the element.
    pub(super) threshold: u64,
    /// The key, spread over all bits.
    pub(super) stream: u64,
}

impl Dropout {
    /// `x` with this mask applied; the gradient goes through the same mask.
    ///
    /// # Errors
    /// When the probability is outside `[0, 1)`, or `x` is not f32 on the CPU.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.check()?;
        x.contiguous()?.apply_op1(*self)
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.probability) {
            bail!("{NAME}: the probability is {}, it must be at least 0 and below 1", self.probability);
        }
        Ok(())
    }

    pub(super) fn mask(&self) -> Mask {
        Mask {
            kept: 1.0 / (1.0 - self.probability),
            threshold: (f64::from(self.probability) * 2f64.powi(32)) as u64,
            stream: mix(self.key),
        }
    }

    /// `x` with the mask applied, in fresh memory.
    pub(super) fn masked(&self, x: &[f32]) -> Vec<f32> {
        let Mask { kept, threshold, stream } = self.mask();
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(chunk, (out, x))| {
            for (offset, (out, x)) in out.iter_mut().zip(x).enumerate() {
                let position = (chunk * CHUNK + offset) as u64;
                let draw = mix(stream ^ position.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 32;
                *out = if draw < threshold { 0.0 } else { x * kept };
            }
        });
        out
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.masked(values(NAME, x, layout)?);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device(NAME, (x, layout))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // The gradient tensor is not tracked, so this builds no graph.
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(self)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gradcheck;

    #[test]
    fn the_same_key_drops_the_same_elements_and_another_key_others() {
        let x = vec![1f32; 40_000];
        let dropout = Dropout { probability: 0.3, key: 7 };
        assert_eq!(dropout.masked(&x), dropout.masked(&x));
        let other = Dropout { key: 8, ..dropout }.masked(&x);
        let equal = dropout.masked(&x).iter().zip(&other).filter(|(a, b)| a == b).count() as f64 / 40_000.0;
        // Two independent masks agree where both keep or both drop: 0.7² + 0.3².
        assert!((equal - 0.58).abs() < 0.02, "{equal}");
    }

    #[test]
    fn the_mean_stays_and_the_share_of_zeros_is_the_probability() {
        let x = vec![1f32; 200_000];
        for probability in [0.0, 0.05, 0.5, 0.9] {
            let out = Dropout { probability, key: 3 }.masked(&x);
            let mean = out.iter().map(|v| f64::from(*v)).sum::<f64>() / 200_000.0;
            let zeros = out.iter().filter(|v| **v == 0.0).count() as f64 / 200_000.0;
            assert!((mean - 1.0).abs() < 0.03, "p {probability}: mean {mean}");
            assert!((zeros - f64::from(probability)).abs() < 0.005, "p {probability}: zeros {zeros}");
        }
    }

    #[test]
    fn the_gradient_goes_through_the_same_mask() {
        let dropout = Dropout { probability: 0.4, key: 11 };
        gradcheck::check(&[gradcheck::operand(&[5, 7], 1)], |x| dropout.apply(&x[0]));
    }

    #[test]
    fn a_probability_of_one_is_refused() {
        let x = gradcheck::operand(&[2, 2], 1);
        assert!(Dropout { probability: 1.0, key: 0 }.apply(&x).is_err());
        assert!(Dropout { probability: f32::NAN, key: 0 }.apply(&x).is_err());
    }
}
