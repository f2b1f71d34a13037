//! The launch of dropout; `dropout.cu` has the kernel.

use candle_core::Result;

use super::launch::{Launch, Machine, Module, View, module};
use crate::kernels::dropout::Dropout;

static MODULE: Module = module!("dropout");

impl Dropout {
    /// `x` with the mask applied.
    pub(in crate::kernels) fn cuda_masked<M: Machine>(&self, machine: &M, x: View<'_>) -> Result<M::Memory> {
        let mask = self.mask();
        let out = machine.allocate(x.element, x.len)?;
        let launch = Launch::each(&MODULE, "dropout", x.element, x.len)?.with(x).with(machine.view(&out));
        machine.launch(&launch.with_total(x.len).with(mask.stream).with(mask.threshold).with(mask.kept))?;
        Ok(out)
    }
}
