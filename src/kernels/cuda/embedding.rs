//! Launches of the embedding; `embedding.cu` has the backward kernel.

use candle_core::Result;

use super::launch::{Launch, Machine, Module, View, module};
use super::vector::gather;
use crate::kernels::embedding::Embedding;

static MODULE: Module = module!("embedding");

impl Embedding {
    /// The rows of `table` `[_, width]`.
    pub(in crate::kernels) fn cuda_forward<M: Machine>(
        &self,
        machine: &M,
        table: View<'_>,
        width: usize,
    ) -> Result<M::Memory> {
        let ids = machine.upload(&self.ids)?;
        gather(machine, table, machine.view(&ids), width)
    }

    /// The gradient of a table of `len` values from that of its rows.
    pub(in crate::kernels) fn cuda_backward<M: Machine>(
        &self,
        machine: &M,
        grad: View<'_>,
        len: usize,
        width: usize,
    ) -> Result<M::Memory> {
        let out = machine.zeros(grad.element, len)?;
        let mut tokens: Vec<u32> = (0..self.ids.len() as u32).collect();
        // A stable sort: the tokens of an id stay in their order.
        tokens.sort_by_key(|token| self.ids[*token as usize]);
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        for (place, token) in tokens.iter().enumerate() {
            let id = self.ids[*token as usize];
            if ids.last() != Some(&id) {
                ids.push(id);
                starts.push(place as u32);
            }
        }
        starts.push(tokens.len() as u32);
        let launch = Launch::rows(&MODULE, "embedding_backward", grad.element, ids.len(), width)?;
        let [ids, starts, tokens] = [machine.upload(&ids)?, machine.upload(&starts)?, machine.upload(&tokens)?];
        let launch = launch.with(grad).with(machine.view(&ids)).with(machine.view(&starts));
        machine.launch(&launch.with(machine.view(&tokens)).with(machine.view(&out)).with_count(width)?)?;
        Ok(out)
    }
}
