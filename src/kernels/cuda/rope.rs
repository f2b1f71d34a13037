//! The launch of rotary position embedding; `rope.cu` has the kernel.

use candle_core::Result;

use super::launch::{Launch, Machine, Module, View, module};
use crate::kernels::rope::Rope;

static MODULE: Module = module!("rope");

impl Rope {
    /// `x` `[N, heads, d]` turned by the angle (`turn` 1) or back by it (`turn` -1); `cos` and `sin` are f32.
    pub(in crate::kernels) fn cuda_turn<M: Machine>(
        &self,
        machine: &M,
        [x, cos, sin]: [View<'_>; 3],
        turn: f32,
    ) -> Result<M::Memory> {
        let out = machine.allocate(x.element, x.len)?;
        let count = x.len / self.size * (self.size - self.half);
        let launch = Launch::each(&MODULE, "rope", x.element, count)?;
        let launch = launch.with(x).with(cos).with(sin).with(machine.view(&out)).with_total(count);
        let launch = launch.with_count(self.heads)?.with_count(self.size)?.with_count(self.half)?;
        machine.launch(&launch.with(turn))?;
        Ok(out)
    }
}
