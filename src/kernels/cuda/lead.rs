//! Launches for rows in front of records; `lead.cu` has the kernels.

use candle_core::Result;

use super::launch::{Launch, Machine, Module, View, module};
use super::vector::gather;
use crate::kernels::lead::Lead;

static MODULE: Module = module!("lead");

impl Lead {
    /// `x` `[N, width]` with `rows` `[n, width]` in front of every record.
    pub(in crate::kernels) fn cuda_forward<M: Machine>(
        &self,
        machine: &M,
        rows: View<'_>,
        x: View<'_>,
        width: usize,
    ) -> Result<M::Memory> {
        let leading = (rows.len / width.max(1)) as u32;
        let mut places = Vec::new();
        let mut next = leading;
        for length in self.lengths.iter() {
            places.extend((0..leading).chain(next..next + *length as u32));
            next += *length as u32;
        }
        let count = places.len() * width;
        let (places, out) = (machine.upload(&places)?, machine.allocate(x.element, count)?);
        let launch = Launch::each(&MODULE, "lead_forward", x.element, count)?.with(rows).with(x);
        let launch = launch.with(machine.view(&places)).with(machine.view(&out)).with_total(count);
        machine.launch(&launch.with_count(width)?.with(leading))?;
        Ok(out)
    }

    /// The gradients of the `leading` rows and of `x`, those of the two that are wanted.
    pub(in crate::kernels) fn cuda_backward<M: Machine>(
        &self,
        machine: &M,
        grad: View<'_>,
        leading: usize,
        width: usize,
        wanted: [bool; 2],
    ) -> Result<[Option<M::Memory>; 2]> {
        let (mut starts, mut places, mut next) = (Vec::new(), Vec::new(), 0);
        for length in self.lengths.iter() {
            starts.push(next as u32);
            next += leading;
            places.extend(next as u32..(next + length) as u32);
            next += length;
        }
        let grad_rows = wanted[0].then(|| -> Result<M::Memory> {
            let (count, starts) = (leading * width, machine.upload(&starts)?);
            let out = machine.allocate(grad.element, count)?;
            let launch = Launch::each(&MODULE, "lead_backward", grad.element, count)?.with(grad);
            let launch = launch.with(machine.view(&starts)).with(machine.view(&out));
            machine.launch(&launch.with_count(self.lengths.len())?.with_total(count).with_count(width)?)?;
            Ok(out)
        });
        let grad_x = wanted[1].then(|| gather(machine, grad, machine.view(&machine.upload(&places)?), width));
        Ok([grad_rows.transpose()?, grad_x.transpose()?])
    }
}
