//! A linear map with a low-rank update (LoRA, arXiv 2106.09685): y = xWᵀ + b + s·(drop(x)Aᵀ)Bᵀ.
//! Where W and b are frozen all of it is one operation, so the backward pass costs two products with
//! W's shape instead of three and keeps nothing but x.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::dropout::Dropout;
use super::linear::Sizes;
use super::matmul::{Matrix, Threads, Write, matmul, product};
use super::operand::{Values, values};
use super::weight::{Frozen, Weight};

const NAME: &str = "lora_linear";

/// `x` `[N, in]`, `weight` `[out, in]`, `bias` `[out]`, `a` `[r, in]`, `b` `[out, r]`: `[N, out]`.
/// B is read by rows or, on the CPU, by columns, as it lies. Dropout falls on the input of the update alone, as in peft.
///
/// # Errors
/// When the shapes do not fit, the dropout's probability is outside `[0, 1)`, or an operand is not
/// f32 on the CPU.
pub fn lora_linear(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    dropout: Option<&Dropout>,
) -> Result<Tensor> {
    let sizes = Sizes::of(NAME, x.shape(), &weight.dims()?.into(), bias.map(Tensor::shape))?;
    let ((rank, inputs), (outputs, rank_of_b)) = (a.dims2()?, b.dims2()?);
    if (inputs, outputs) != (sizes.inputs, sizes.outputs) || rank != rank_of_b {
        bail!("{NAME}: A {:?} and B {:?} do not make an update of W {:?}", a.shape(), b.shape(), weight.dims()?);
    }
    let dropout = dropout.filter(|dropout| dropout.probability != 0.0).copied();
    if let Some(dropout) = &dropout {
        dropout.check()?;
    }
    let (x, a) = (x.contiguous()?, a.contiguous()?);
    // One that no longer trains may lie by columns.
    let b = if x.device().is_cpu() && b.t()?.is_contiguous() { b.clone() } else { b.contiguous()? };
    if weight.trains() || bias.is_some_and(Tensor::track_op) {
        let update = LoraLinear { base: None, outputs, rank, scale, dropout };
        return weight.apply(&x, bias)? + x.apply_op3(&a, &b, update)?;
    }
    // The frozen part has no place among candle's three operands and needs no gradient.
    let base = Frozen { weight: weight.clone(), bias: bias.map(Tensor::contiguous).transpose()? };
    x.apply_op3(&a, &b, LoraLinear { base: Some(base), outputs, rank, scale, dropout })
}

pub(super) struct LoraLinear {
    /// `None` where the base trains too and is computed beside.
    pub(super) base: Option<Frozen>,
    pub(super) outputs: usize,
    pub(super) rank: usize,
    pub(super) scale: f64,
    pub(super) dropout: Option<Dropout>,
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = xl.shape().dims2()?;
        let (outputs, rank) = (self.outputs, self.rank);
        let (x, a) = (values(NAME, x, xl)?, values(NAME, a, al)?);
        let widening = if bl.is_contiguous() {
            Matrix::new(values(NAME, b, bl)?, outputs, rank).t()
        } else {
            Matrix::new(values(NAME, b, &bl.transpose(0, 1)?)?, rank, outputs)
        };
        let mut out = match &self.base {
            Some(base) => base.forward(x, rows)?,
            None => vec![0f32; rows * outputs],
        };
        let dropped = self.dropout.map(|dropout| dropout.masked(x));
        let seen = Matrix::new(dropped.as_deref().unwrap_or(x), rows, inputs);
        let mut low = vec![0f32; rows * rank];
        matmul(&mut low, Write::Replace, 1.0, seen, Matrix::new(a, rank, inputs).t(), Threads::All);
        let low = Matrix::new(&low, rows, rank);
        matmul(&mut out, Write::Add, self.scale as f32, low, widening, Threads::All);
        Ok((CpuStorage::F32(out), (rows, outputs).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        xl: &Layout,
        a: &candle_core::CudaStorage,
        al: &Layout,
        b: &candle_core::CudaStorage,
        bl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device(NAME, [(x, xl), (a, al), (b, bl)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (b, grad) = (&b.contiguous()?, grad.contiguous()?);
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on_device(NAME, [x, a, b, &grad]);
        }
        let (xs, a_values, b_values) = (Values::of(NAME, x)?, Values::of(NAME, a)?, Values::of(NAME, b)?);
        let grads = Values::of(NAME, &grad)?;
        let ((rows, inputs), scale) = (x.dims2()?, self.scale as f32);
        let dropped = self.dropout.map(|dropout| dropout.masked(&xs));
        let seen = Matrix::new(dropped.as_deref().unwrap_or(&xs), rows, inputs);
        let upstream = Matrix::new(&grads, rows, self.outputs);
        let (down, up) = (Matrix::new(&a_values, self.rank, inputs), Matrix::new(&b_values, self.outputs, self.rank));

        let grad_low = product(scale, upstream, up);
        let grad_low = Matrix::new(&grad_low, rows, self.rank);
        let grad_a = a.track_op().then(|| Tensor::from_vec(product(1.0, grad_low.t(), seen), a.shape(), a.device()));
        let grad_b = b.track_op().then(|| {
            // [N, r] is cheap to make again, so the forward pass does not keep it.
            let low = product(scale, seen, down.t());
            let sums = product(1.0, upstream.t(), Matrix::new(&low, rows, self.rank));
            Tensor::from_vec(sums, b.shape(), b.device())
        });
        let grad_x = x.track_op().then(|| -> Result<Tensor> {
            let mut update = product(1.0, grad_low, down);
            if let Some(dropout) = &self.dropout {
                update = dropout.masked(&update);
            }
            if let Some(base) = &self.base {
                base.pull_back(&grads, rows, &mut update)?;
            }
            Tensor::from_vec(update, x.shape(), x.device())
        });
        Ok((grad_x.transpose()?, grad_a.transpose()?, grad_b.transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernels::gradcheck::{self, operand};
    use crate::kernels::linear;

    fn operands() -> [Tensor; 5] {
        [operand(&[6, 5], 1), operand(&[4, 5], 2), operand(&[4], 3), operand(&[2, 5], 4), operand(&[4, 2], 5)]
    }

    #[test]
    fn gradients_equal_finite_differences_with_a_frozen_base() {
        let [x, weight, bias, a, b] = operands();
        let weight = Weight::from(weight);
        for dropout in [None, Some(Dropout { probability: 0.3, key: 5 })] {
            gradcheck::check(&[x.clone(), a.clone(), b.clone()], |t| {
                lora_linear(&t[0], &weight, Some(&bias), &t[1], &t[2], 1.5, dropout.as_ref())
            });
        }
    }

    #[test]
    fn gradients_equal_finite_differences_when_the_base_trains_too() {
        gradcheck::check(&operands(), |t| {
            lora_linear(&t[0], &t[1].clone().into(), Some(&t[2]), &t[3], &t[4], 0.5, None)
        });
    }

    #[test]
    fn a_base_in_bf16_gives_the_answers_and_gradients_of_its_values() {
        let [x, weight, bias, a, b] = operands();
        let rounded = |tensor: &Tensor| Weight::packed(tensor).unwrap().values().unwrap();
        let packed = Weight::packed(&weight).unwrap();
        let run = |weight: &Weight| {
            let vars = [rounded(&x), a.clone(), b.clone()].map(|one| Var::from_tensor(&one).unwrap());
            let [x, a, b] = &vars;
            let y = lora_linear(x, weight, Some(&bias), a, b, 1.5, None).unwrap();
            let grads = (&y * rounded(&operand(&[6, 4], 9))).unwrap().sum_all().unwrap().backward().unwrap();
            [y].into_iter().chain(vars.iter().map(|var| grads.get(var).unwrap().clone())).collect::<Vec<_>>()
        };
        for (got, want) in run(&packed).iter().zip(run(&packed.values().unwrap().into())) {
            gradcheck::assert_close(got, &want, 1e-5);
        }
    }

    #[test]
    fn a_b_that_lies_by_columns_gives_the_values_and_gradients_of_one_that_lies_by_rows() {
        for (rows, rank) in [(1, 2), (3, 8), (4, 16), (7, 16)] {
            let (x, weight, bias) = (operand(&[rows, 24], 1), operand(&[40, 24], 2), operand(&[40], 3));
            let (a, b) = (operand(&[rank, 24], 4), operand(&[40, rank], 5));
            let columns = b.t().unwrap().contiguous().unwrap().t().unwrap();
            assert!(!columns.is_contiguous());
            let run = |b: &Tensor| {
                let x = Var::from_tensor(&x).unwrap();
                let y = lora_linear(&x, &weight.clone().into(), Some(&bias), &a, b, 1.5, None).unwrap();
                let grads = y.sum_all().unwrap().backward().unwrap();
                [y, grads.get(&x).unwrap().clone()]
            };
            for (columns, rows) in run(&columns).iter().zip(run(&b)) {
                gradcheck::assert_close(columns, &rows, 1e-5);
            }
        }
    }

    #[test]
    fn a_zero_b_gives_the_base() {
        let [x, weight, bias, a, b] = operands();
        let tuned =
            lora_linear(&x, &weight.clone().into(), Some(&bias), &a, &b.zeros_like().unwrap(), 2.0, None).unwrap();
        gradcheck::assert_close(&tuned, &linear(&x, &weight, Some(&bias)).unwrap(), 1e-6);
    }

    #[test]
    fn a_frozen_base_and_a_frozen_input_get_no_gradient() {
        let [x, weight, bias, a, b] = operands();
        let (a, b) = (Var::from_tensor(&a).unwrap(), Var::from_tensor(&b).unwrap());
        let y = lora_linear(&x, &weight.clone().into(), Some(&bias), &a, &b, 1.0, None).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&a).is_some() && grads.get(&b).is_some());
        assert!([&x, &weight, &bias].iter().all(|frozen| grads.get(frozen).is_none()));
    }

    #[test]
    fn factors_that_do_not_fit_the_weight_are_refused() {
        let [x, weight, _, a, _] = operands();
        let wrong = operand(&[3, 2], 1);
        assert!(lora_linear(&x, &weight.into(), None, &a, &wrong, 1.0, None).is_err());
    }
}
