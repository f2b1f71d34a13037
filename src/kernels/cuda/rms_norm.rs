//! Launches of root-mean-square normalization; `rms_norm.cu` has the kernels.

use candle_core::Result;

use super::launch::{Element, Launch, Machine, Module, View, module};
use super::vector::{STRIP, add_strips, strips};
use crate::kernels::rms_norm::RmsNorm;

static MODULE: Module = module!("rms_norm");
const NAME: &str = "rms_norm";

impl RmsNorm {
    /// `x` `[_, H]` and `weight` `[H]`, of one type: the output, of that type.
    pub(in crate::kernels) fn cuda_forward<M: Machine>(
        &self,
        machine: &M,
        x: View<'_>,
        weight: View<'_>,
    ) -> Result<M::Memory> {
        let width = weight.len;
        let rows = x.len / width;
        let out = machine.allocate(x.element, x.len)?;
        let launch = Launch::rows(&MODULE, "rms_norm_forward", x.element, rows, width)?;
        let launch = launch.with(x.expect(NAME, rows * width)?).with(weight).with(machine.view(&out));
        machine.launch(&launch.with_count(width)?.with(self.eps).with(self.offset))?;
        Ok(out)
    }

    /// The gradients of `x` and, where it trains, of `weight`.
    pub(in crate::kernels) fn cuda_backward<M: Machine>(
        &self,
        machine: &M,
        [x, weight, grad]: [View<'_>; 3],
        weight_trains: bool,
    ) -> Result<(M::Memory, Option<M::Memory>)> {
        let (width, element) = (weight.len, x.element);
        let rows = x.len / width;
        let (out, inverses) = (machine.allocate(element, x.len)?, machine.allocate(Element::F32, rows)?);
        let launch = Launch::rows(&MODULE, "rms_norm_backward", element, rows, width)?;
        let launch = launch.with(x).with(weight).with(grad.expect(NAME, x.len)?);
        let launch = launch.with(machine.view(&out)).with(machine.view(&inverses));
        machine.launch(&launch.with_count(width)?.with(self.eps).with(self.offset))?;
        if !weight_trains {
            return Ok((out, None));
        }
        let sums = machine.allocate(Element::F32, rows.div_ceil(STRIP) * width)?;
        let launch = strips("rms_norm_weight_sums", &MODULE, element, rows, width)?;
        let launch = launch.with(x).with(grad).with(machine.view(&inverses)).with(machine.view(&sums));
        machine.launch(&launch.with_total(rows).with_count(width)?.with_count(STRIP)?)?;
        Ok((out, Some(add_strips(machine, machine.view(&sums), element, width)?)))
    }
}
