//! What every operation asks of an operand before it touches the memory: f32, contiguous, on the
//! CPU. The errors say what to do, because a model in another type or on another device ends here.

use std::ops::Deref;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor, bail};

/// The values of a CPU operand of a forward pass, row-major.
pub(super) fn values<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let range = range(op, layout)?;
    match storage {
        CpuStorage::F32(values) => Ok(&values[range]),
        other => bail!("{op} computes in f32 on the CPU: convert the {:?} operand with to_dtype", other.dtype()),
    }
}

fn range(op: &str, layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("{op} reads rows in order: make the operand of shape {:?} contiguous", layout.shape()),
    }
}

/// The values of a whole tensor, row-major, for backward passes: they get tensors, not storages.
pub(super) struct Values<'a> {
    storage: StorageRef<'a>,
    range: std::ops::Range<usize>,
}

impl<'a> Values<'a> {
    /// Borrows the values of a contiguous f32 tensor on the CPU.
    pub(super) fn of(op: &str, tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = range(op, layout)?;
        match &*storage {
            Storage::Cpu(cpu) => {
                values(op, cpu, layout)?;
            }
            other => bail!("{op} has no implementation for {:?} yet: run it on the CPU", other.device().location()),
        }
        Ok(Self { storage, range })
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            // `of` refuses anything else.
            _ => &[],
        }
    }
}
