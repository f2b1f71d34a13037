//! The linear map with a low-rank update, as products on a machine. A and B are f32 parameters; they are
//! converted to the type of x for the products, and their gradients come out as f32.

use candle_core::Result;

use super::launch::{Element, Machine, View};
use super::product::{Matrix, Product, Write, multiplied};
use super::vector::Converted;
use crate::kernels::dropout::Dropout;
use crate::kernels::linear::Sizes;

/// The operands of one pass.
pub(in crate::kernels) struct Update<'a> {
    pub(in crate::kernels) sizes: Sizes,
    pub(in crate::kernels) rank: usize,
    pub(in crate::kernels) scale: f32,
    pub(in crate::kernels) dropout: Option<Dropout>,
    pub(in crate::kernels) x: View<'a>,
    pub(in crate::kernels) a: View<'a>,
    pub(in crate::kernels) b: View<'a>,
}

/// The gradients of x, A and B, those that are wanted.
pub(in crate::kernels) type Gradients<M> = [Option<<M as Machine>::Memory>; 3];

impl Update<'_> {
    /// What the frozen base gives, if there is one, plus s·(drop(x)Aᵀ)Bᵀ.
    pub(in crate::kernels) fn cuda_forward<M: Machine>(
        &self,
        machine: &M,
        weight: Option<View<'_>>,
        bias: Option<View<'_>>,
    ) -> Result<M::Memory> {
        let (Sizes { rows, inputs, outputs }, element) = (self.sizes, self.x.element);
        let (out, write) = match weight {
            Some(weight) => (self.sizes.cuda_forward(machine, self.x, weight, bias)?, Write::Add),
            None => (machine.allocate(element, rows * outputs)?, Write::Replace),
        };
        let seen = self.seen(machine)?;
        let (a, b) = (Converted::new(machine, self.a, element)?, Converted::new(machine, self.b, element)?);
        let a = Matrix::new(a.view(machine), self.rank, inputs)?;
        let low = multiplied(machine, element, 1.0, self.sizes.inputs(seen.view(machine))?, a.t())?;
        let low = Matrix::new(machine.view(&low), rows, self.rank)?;
        let b = Matrix::new(b.view(machine), outputs, self.rank)?;
        machine.multiply(&Product::new(machine.view(&out), write, self.scale, low, b.t())?)?;
        Ok(out)
    }

    /// The gradients; that of x with the share of the frozen base, if there is one.
    pub(in crate::kernels) fn cuda_backward<M: Machine>(
        &self,
        machine: &M,
        weight: Option<View<'_>>,
        grad: View<'_>,
        wanted: [bool; 3],
    ) -> Result<Gradients<M>> {
        let (Sizes { rows, inputs, outputs }, element) = (self.sizes, self.x.element);
        let upstream = self.sizes.outputs(grad)?;
        let seen = self.seen(machine)?;
        let seen = self.sizes.inputs(seen.view(machine))?;
        let (a, b) = (Converted::new(machine, self.a, element)?, Converted::new(machine, self.b, element)?);
        let (down, up) =
            (Matrix::new(a.view(machine), self.rank, inputs)?, Matrix::new(b.view(machine), outputs, self.rank)?);
        let grad_low = multiplied(machine, element, self.scale, upstream, up)?;
        let grad_low = Matrix::new(machine.view(&grad_low), rows, self.rank)?;
        let grad_a = wanted[1].then(|| multiplied(machine, Element::F32, 1.0, grad_low.t(), seen));
        let grad_b = wanted[2].then(|| -> Result<M::Memory> {
            let low = multiplied(machine, element, self.scale, seen, down.t())?;
            let low = Matrix::new(machine.view(&low), rows, self.rank)?;
            multiplied(machine, Element::F32, 1.0, upstream.t(), low)
        });
        let grad_x = wanted[0].then(|| -> Result<M::Memory> {
            let mut update = multiplied(machine, element, 1.0, grad_low, down)?;
            if let Some(dropout) = &self.dropout {
                update = dropout.cuda_masked(machine, machine.view(&update))?;
            }
            if let Some(weight) = weight {
                let weight = Matrix::new(weight, outputs, inputs)?;
                machine.multiply(&Product::new(machine.view(&update), Write::Add, 1.0, upstream, weight)?)?;
            }
            Ok(update)
        });
        Ok([grad_x.transpose()?, grad_a.transpose()?, grad_b.transpose()?])
    }

    /// x behind the dropout.
    fn seen<M: Machine>(&self, machine: &M) -> Result<Converted<'_, M>> {
        match &self.dropout {
            Some(dropout) => Ok(Converted::Copy(dropout.cuda_masked(machine, self.x)?)),
            None => Ok(Converted::Same(self.x)),
        }
    }
}
