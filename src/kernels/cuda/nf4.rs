//! Decoding NF4 on a machine; `nf4.cu` has the kernel. A weight is decoded whole before each product with it:
//! the memory comes from the machine's pool, so all weights of a model take turns in the same room.

use candle_core::Result;

use super::launch::{Element, Launch, Machine, Module, module};
use crate::kernels::nf4::{DYNAMIC_MAP, LEVELS, Nf4};

static MODULE: Module = module!("nf4");

/// A matrix in NF4 on a machine, with the tables it is read by.
pub(in crate::kernels) struct Resident<M: Machine> {
    codes: M::Memory,
    magnitudes: M::Memory,
    nested: M::Memory,
    levels: M::Memory,
    map: M::Memory,
    offset: f32,
    len: usize,
}

impl<M: Machine> Resident<M> {
    /// Brings a matrix onto the machine.
    pub(in crate::kernels) fn new(machine: &M, matrix: &Nf4) -> Result<Self> {
        let parts = matrix.parts();
        Ok(Self {
            codes: machine.upload(parts.codes)?,
            magnitudes: machine.upload(parts.magnitudes)?,
            nested: machine.upload(parts.nested)?,
            levels: machine.upload(&LEVELS)?,
            map: machine.upload(&*DYNAMIC_MAP)?,
            offset: parts.offset,
            len: matrix.dims().0 * matrix.dims().1,
        })
    }

    /// All values, row-major, as `element`.
    pub(in crate::kernels) fn decode(&self, machine: &M, element: Element) -> Result<M::Memory> {
        let out = machine.allocate(element, self.len)?;
        let mut launch = Launch::each(&MODULE, "nf4_decode", element, self.len.div_ceil(2))?;
        for part in [&self.codes, &self.magnitudes, &self.nested, &self.levels, &self.map, &out] {
            launch = launch.with(machine.view(part));
        }
        machine.launch(&launch.with_total(self.len).with(self.offset))?;
        Ok(out)
    }
}
