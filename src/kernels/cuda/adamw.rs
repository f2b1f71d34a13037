//! Launches for the optimizer; `adamw.cu` has the kernels.

use candle_core::Result;

use super::launch::{Element, Launch, Machine, Module, THREADS, View, module, narrow};
use crate::kernels::AdamWStep;

static MODULE: Module = module!("adamw");
/// Values that a block adds the squares of: fixed, so the bits depend on the shape alone.
const STRIP: usize = 1 << 14;

impl AdamWStep {
    /// One update of `weight` and both moments (f32) by `gradient`, all in place.
    pub(in crate::kernels) fn cuda_update<M: Machine>(
        &self,
        machine: &M,
        [weight, gradient, mean, square]: [View<'_>; 4],
    ) -> Result<()> {
        let count = gradient.expect("adamw", weight.len)?.len;
        let launch = Launch::each(&MODULE, "adamw", gradient.element, count)?.with(weight).with(gradient);
        let launch = launch.with(mean.expect("adamw", count)?).with(square.expect("adamw", count)?).with_total(count);
        let launch = launch.with(self.scale).with(self.keep).with(self.mean_rate).with(self.square_decay);
        machine.launch(&launch.with(self.square_rate).with(self.root_bias).with(self.step).with(self.epsilon))
    }
}

/// Σ x².
pub(in crate::kernels) fn sum_of_squares<M: Machine>(machine: &M, x: View<'_>) -> Result<f64> {
    let blocks = x.len.div_ceil(STRIP);
    let sums = machine.allocate(Element::F64, blocks)?;
    let grid = [narrow("strips", blocks)?, 1, 1];
    let launch = Launch::blocks(&MODULE, "sum_of_squares", x.element, grid, THREADS)?;
    machine.launch(&launch.with(x).with(machine.view(&sums)).with_total(x.len).with_count(STRIP)?)?;
    Ok(machine.download::<f64>(&sums)?.iter().sum())
}
