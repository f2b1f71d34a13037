//! The output head and its loss on a machine; `linear_cross_entropy.cu` has the kernel between the products.

use candle_core::Result;

use super::launch::{Element, Launch, Machine, Module, View, module};
use super::product::{Matrix, Product, Write, multiplied};
use super::vector::{gather, scatter};
use crate::kernels::linear_cross_entropy::{Gradients, Labelled, head_rows};

static MODULE: Module = module!("linear_cross_entropy");

/// The operands of one pass; hidden states `[N, width]` and weight `[vocabulary, width]` are of one type.
pub(in crate::kernels) struct Head<'a> {
    pub(in crate::kernels) hidden: View<'a>,
    pub(in crate::kernels) weight: View<'a>,
    pub(in crate::kernels) width: usize,
    pub(in crate::kernels) vocabulary: usize,
    pub(in crate::kernels) softcap: Option<f32>,
    pub(in crate::kernels) gradients: Gradients,
}

/// What comes out.
pub(in crate::kernels) struct Sums<M: Machine> {
    /// One for every labelled row, in their order.
    pub(in crate::kernels) losses: Vec<f32>,
    /// In the type of the hidden states.
    pub(in crate::kernels) grad_hidden: M::Memory,
    /// In f32.
    pub(in crate::kernels) grad_weight: Option<M::Memory>,
}

impl Head<'_> {
    /// Losses and gradients of the labelled rows.
    pub(in crate::kernels) fn run<M: Machine>(&self, machine: &M, labelled: &[Labelled]) -> Result<Sums<M>> {
        let chunk = head_rows(self.vocabulary, true);
        let losses = machine.allocate(Element::F32, labelled.len())?;
        let grad_hidden = machine.zeros(self.hidden.element, self.hidden.len)?;
        let of_weight = self.gradients.of_weight();
        let grad_weight = of_weight.then(|| machine.zeros(Element::F32, self.weight.len)).transpose()?;
        for (index, chunk_of) in labelled.chunks(chunk).enumerate() {
            let losses = machine.view(&losses).part(index * chunk, chunk_of.len())?;
            let grad_weight = grad_weight.as_ref().map(|memory| machine.view(memory));
            self.chunk(machine, chunk_of, losses, machine.view(&grad_hidden), grad_weight)?;
        }
        Ok(Sums { losses: machine.download(&losses)?, grad_hidden, grad_weight })
    }

    fn chunk<M: Machine>(
        &self,
        machine: &M,
        chunk: &[Labelled],
        losses: View<'_>,
        grad_hidden: View<'_>,
        grad_weight: Option<View<'_>>,
    ) -> Result<()> {
        let (element, rows) = (self.hidden.element, chunk.len());
        let column = |of: fn(&Labelled) -> u32| machine.upload(&chunk.iter().map(of).collect::<Vec<u32>>());
        let (places, labels) = (column(|at| at.row as u32)?, column(|at| at.label as u32)?);
        let scales = machine.upload(&chunk.iter().map(|at| at.scale).collect::<Vec<f32>>())?;
        let seen = gather(machine, self.hidden, machine.view(&places), self.width)?;
        let seen = Matrix::new(machine.view(&seen), rows, self.width)?;
        let weight = Matrix::new(self.weight, self.vocabulary, self.width)?;
        let logits = multiplied(machine, Element::F32, 1.0, seen, weight.t())?;

        // Slopes in f32 take the logits' place; others need room of their own.
        let wanted = self.gradients != Gradients::None;
        let apart = (element != Element::F32)
            .then(|| machine.allocate(element, if wanted { rows * self.vocabulary } else { 0 }))
            .transpose()?;
        let slopes = machine.view(apart.as_ref().unwrap_or(&logits));
        let launch = Launch::rows(&MODULE, "loss_rows", element, rows, self.vocabulary)?;
        let launch = launch.with(machine.view(&logits)).with(slopes).with(machine.view(&labels));
        let launch = launch.with(machine.view(&scales)).with(losses).with_count(self.vocabulary)?;
        machine.launch(&launch.with(self.softcap.unwrap_or(0.0)).with(u32::from(wanted)))?;
        if !wanted {
            return Ok(());
        }
        let slopes = Matrix::new(slopes, rows, self.vocabulary)?;
        if self.gradients.of_hidden() {
            let grads = multiplied(machine, element, 1.0, slopes, weight)?;
            scatter(machine, machine.view(&grads), machine.view(&places), grad_hidden, self.width)?;
        }
        match grad_weight {
            Some(into) => machine.multiply(&Product::new(into, Write::Add, 1.0, slopes.t(), seen)?),
            None => Ok(()),
        }
    }
}
