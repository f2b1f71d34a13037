//! The norm of all gradients together, and clipping by it as `torch.nn.utils.clip_grad_norm_` does.

use candle_core::Tensor;
use rayon::prelude::*;

use super::adamw::values;
use crate::error::Result;

/// Elements per partial sum: fixed, so the bits do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// The Euclidean norm over all gradients.
///
/// # Errors
/// When a gradient is not f32 on the CPU.
pub(crate) fn norm(gradients: &[Option<Tensor>]) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients.iter().flatten() {
        let gradient = gradient.contiguous()?;
        #[cfg(feature = "cuda")]
        if gradient.device().is_cuda() {
            sum += crate::kernels::sum_of_squares(&gradient)?;
            continue;
        }
        let partial: Vec<f64> = values(&gradient, |values| {
            values.par_chunks(CHUNK).map(|chunk| chunk.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()).collect()
        })?;
        sum += partial.iter().sum::<f64>();
    }
    Ok(sum.sqrt())
}

/// What gradients of this norm are multiplied with so that it does not exceed `max`.
pub(crate) fn clip_factor(norm: f64, max: Option<f64>) -> f64 {
    max.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_norm_is_over_all_gradients_and_missing_ones_count_nothing() {
        let one = Tensor::from_slice(&[3f32; 4], (2, 2), &Device::Cpu).unwrap();
        let other = Tensor::from_slice(&[8f32], 1, &Device::Cpu).unwrap();
        assert_eq!(norm(&[Some(one), None, Some(other)]).unwrap(), 10.0);
    }

    #[test]
    fn gradients_are_scaled_down_but_never_up() {
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!((clip_factor(0.5, Some(1.0)), clip_factor(9.0, None)), (1.0, 1.0));
    }

    #[test]
    fn the_norm_has_the_same_bits_at_any_number_of_threads() {
        let values: Vec<f32> = (0..100_003).map(|i| (i as f32 * 0.37).sin()).collect();
        let gradient = Tensor::from_vec(values, 100_003, &Device::Cpu).unwrap();
        let at = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| norm(&[Some(gradient.clone())]).unwrap().to_bits())
        };
        assert_eq!(at(1), at(2));
        assert_eq!(at(1), at(4));
    }
}
