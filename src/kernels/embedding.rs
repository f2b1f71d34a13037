//! Rows of a table by token id. A table that trains gets a dense gradient in which the rows of a
//! repeated id are added in the order of the tokens.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use super::operand::{Values, values};

const NAME: &str = "embedding";

/// Row `ids[i]` of `table` `[V, H]` for every id of `ids` (u32 `[N]`): `[N, H]`.
///
/// # Errors
/// When an id is not below V, or the operands are not u32 and f32 on the CPU.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (rows, _) = table.dims2()?;
    if ids.dtype() != DType::U32 {
        bail!("{NAME}: ids are u32, not {:?}", ids.dtype());
    }
    let ids = ids.to_vec1::<u32>()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        bail!("{NAME}: id {id} is not in a table of {rows} rows");
    }
    table.contiguous()?.apply_op1(Embedding { ids })
}

pub(super) struct Embedding {
    pub(super) ids: Vec<u32>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.shape().dims2()?.1;
        let table = values(NAME, table, layout)?;
        let mut out = Vec::with_capacity(self.ids.len() * width);
        for id in &self.ids {
            let start = *id as usize * width;
            out.extend_from_slice(&table[start..start + width]);
        }
        Ok((CpuStorage::F32(out), (self.ids.len(), width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, table: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device(NAME, (table, layout))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !table.track_op() {
            return Ok(None);
        }
        let width = table.dims2()?.1;
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if table.device().is_cuda() {
            return Ok(Some(self.back_on_device(NAME, table, &grad)?));
        }
        let grads = Values::of(NAME, &grad)?;
        let mut sum = vec![0f32; table.elem_count()];
        for (id, grad) in self.ids.iter().zip(grads.chunks_exact(width.max(1))) {
            let start = *id as usize * width;
            for (sum, grad) in sum[start..start + width].iter_mut().zip(grad) {
                *sum += grad;
            }
        }
        Ok(Some(Tensor::from_vec(sum, table.shape(), table.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::gradcheck::{self, operand};

    #[test]
    fn gradients_equal_finite_differences_and_repeated_ids_add_up() {
        let ids = Tensor::new(&[2u32, 0, 2, 2, 3], &Device::Cpu).unwrap();
        gradcheck::check(&[operand(&[4, 3], 1)], |t| embedding(&t[0], &ids));
    }

    #[test]
    fn an_id_past_the_table_is_refused() {
        let ids = Tensor::new(&[1u32, 4], &Device::Cpu).unwrap();
        let error = embedding(&operand(&[4, 3], 1), &ids).unwrap_err().to_string();
        assert!(error.contains("id 4 is not in a table of 4 rows"), "{error}");
    }
}
