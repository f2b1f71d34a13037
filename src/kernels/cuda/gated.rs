//! Launches of the gated activation; `gated.cu` has the kernels.

use candle_core::Result;

use super::launch::{Launch, Machine, Module, View, module};
use crate::kernels::gated::Activation;

static MODULE: Module = module!("gated");

impl Activation {
    fn number(self) -> u32 {
        match self {
            Self::Silu => 0,
            Self::GeluTanh => 1,
        }
    }

    /// act(gate) · up.
    pub(in crate::kernels) fn cuda_forward<M: Machine>(
        self,
        machine: &M,
        gate: View<'_>,
        up: View<'_>,
    ) -> Result<M::Memory> {
        let out = machine.allocate(gate.element, gate.len)?;
        let launch = Launch::each(&MODULE, "gated_forward", gate.element, gate.len)?.with(gate).with(up);
        machine.launch(&launch.with(machine.view(&out)).with_total(gate.len).with(self.number()))?;
        Ok(out)
    }

    /// The gradients of gate and up, those of the two that are wanted.
    pub(in crate::kernels) fn cuda_backward<M: Machine>(
        self,
        machine: &M,
        [gate, up, grad]: [View<'_>; 3],
        wanted: [bool; 2],
    ) -> Result<[Option<M::Memory>; 2]> {
        let place = |wanted: bool| wanted.then(|| machine.allocate(gate.element, gate.len)).transpose();
        let places = [place(wanted[0])?, place(wanted[1])?];
        let view =
            |place: usize| places[place].as_ref().map_or(View::null(gate.element), |memory| machine.view(memory));
        let launch = Launch::each(&MODULE, "gated_backward", gate.element, gate.len)?.with(gate).with(up).with(grad);
        let launch = launch.with(view(0)).with(view(1));
        machine.launch(&launch.with_total(gate.len).with(self.number()))?;
        Ok(places)
    }
}
