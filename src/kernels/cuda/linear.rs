//! The linear map as products on a machine. Operands are of one type, f32 or bf16; products are added in f32.

use candle_core::Result;

use super::launch::{Machine, View};
use super::product::{Matrix, Product, Write, multiplied};
use super::vector::{repeat, sum_rows};
use crate::kernels::linear::Sizes;

impl Sizes {
    /// xWᵀ + b, in the type of x.
    pub(in crate::kernels) fn cuda_forward<M: Machine>(
        self,
        machine: &M,
        x: View<'_>,
        weight: View<'_>,
        bias: Option<View<'_>>,
    ) -> Result<M::Memory> {
        let (element, x, weight) = (x.element, self.inputs(x)?, Matrix::new(weight, self.outputs, self.inputs)?);
        let Some(bias) = bias else { return multiplied(machine, element, 1.0, x, weight.t()) };
        let out = repeat(machine, bias, self.rows)?;
        machine.multiply(&Product::new(machine.view(&out), Write::Add, 1.0, x, weight.t())?)?;
        Ok(out)
    }

    /// The gradient of x, given that of the output.
    pub(in crate::kernels) fn cuda_grad_x<M: Machine>(
        self,
        machine: &M,
        weight: View<'_>,
        grad: View<'_>,
    ) -> Result<M::Memory> {
        let weight = Matrix::new(weight, self.outputs, self.inputs)?;
        multiplied(machine, grad.element, 1.0, self.outputs(grad)?, weight)
    }

    /// The gradient of the weight.
    pub(in crate::kernels) fn cuda_grad_weight<M: Machine>(
        self,
        machine: &M,
        x: View<'_>,
        grad: View<'_>,
    ) -> Result<M::Memory> {
        multiplied(machine, x.element, 1.0, self.outputs(grad)?.t(), self.inputs(x)?)
    }

    /// The gradient of the bias.
    pub(in crate::kernels) fn cuda_grad_bias<M: Machine>(self, machine: &M, grad: View<'_>) -> Result<M::Memory> {
        sum_rows(machine, grad, self.outputs)
    }

    /// `[N, in]`.
    pub(super) fn inputs(self, x: View<'_>) -> Result<Matrix<'_>> {
        Matrix::new(x, self.rows, self.inputs)
    }

    /// `[N, out]`.
    pub(super) fn outputs(self, grad: View<'_>) -> Result<Matrix<'_>> {
        Matrix::new(grad, self.rows, self.outputs)
    }
}
