//! The row lengths that DoRA (Liu et al. 2024, arXiv 2402.09353) divides by: ‖W + s·B·A‖ of every output.
//! They are constants to the gradient, as in peft, so this is no operation of the graph. The tuned weight
//! itself is never made: its squared rows are those of W, of the update, and twice their product.

use candle_core::{Device, Result, Tensor};

use super::linear::linear;
use super::operand::Values;
use super::weight::Weight;

const NAME: &str = "dora";

/// The squared length of every row of a frozen weight, which stays the same for a whole run.
///
/// # Errors
/// When a dense weight is not f32 on the CPU.
pub fn row_squares(weight: &Weight) -> Result<Vec<f64>> {
    weight.row_squares()
}

/// ‖W + s·B·A‖ of every row, `[out]`, from W `[out, in]`, the squares of its rows, A `[r, in]` and B `[out, r]`.
///
/// # Errors
/// When the shapes do not fit, or an operand is not f32 on the CPU.
pub fn row_norms(weight: &Weight, squares: &[f64], a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let (a, b) = (a.detach().contiguous()?, b.detach().contiguous()?);
    let (rank, outputs) = (a.dim(0)?, b.dim(0)?);
    let (products, gram) = (weight.apply(&a, None)?.detach(), linear(&a, &a, None)?);
    #[cfg(feature = "cuda")]
    if b.device().is_cuda() {
        return super::cuda::row_norms(NAME, [&products, &gram, &b], squares, scale);
    }
    let (products, gram, b) = (Values::of(NAME, &products)?, Values::of(NAME, &gram)?, Values::of(NAME, &b)?);
    let norms = (0..outputs).map(|row| {
        let own = &b[row * rank..(row + 1) * rank];
        let (mut cross, mut square) = (0f64, 0f64);
        for (i, left) in own.iter().enumerate() {
            cross += f64::from(*left) * f64::from(products[i * outputs + row]);
            for (j, right) in own.iter().enumerate() {
                square += f64::from(*left) * f64::from(*right) * f64::from(gram[i * rank + j]);
            }
        }
        (squares[row] + 2.0 * scale * cross + scale * scale * square).max(0.0).sqrt() as f32
    });
    Tensor::from_vec(norms.collect(), outputs, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gradcheck::{self, operand};

    #[test]
    fn they_are_the_lengths_of_the_rows_of_the_tuned_weight() {
        let (w, a, b) = (operand(&[7, 12], 1), operand(&[3, 12], 2), operand(&[7, 3], 3));
        let tuned = (&w + (b.matmul(&a).unwrap() * 0.7).unwrap()).unwrap();
        let expected = tuned.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        let weight = Weight::from(w);
        let norms = row_norms(&weight, &row_squares(&weight).unwrap(), &a, &b, 0.7).unwrap();
        gradcheck::assert_close(&norms, &expected, 1e-6);
    }
}
