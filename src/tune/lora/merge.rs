//! A LoRA put into the weights that it updates, as `peft`'s `merge_and_unload` does it: W + s·B·A, and of DoRA
//! m/‖W + s·B·A‖ · (W + s·B·A), in f32. Each row is made of its own row of W alone, so rows may come in any order.

use candle_core::{Device, Tensor};

use super::{Lora, Site, Update};
use crate::error::{Error, Result};

impl Lora {
    /// What stands behind a site's name in a model file.
    fn updated(&self, weight: &str) -> Option<&Update> {
        let module = weight.strip_suffix(".weight")?;
        self.updates.iter().find(|(site, _)| site.name() == module).map(|(_, update)| update)
    }

    pub(super) fn updated_weights(&self) -> Result<Vec<String>> {
        if self.score.is_some() {
            return Err(Error::validation(
                "A reward model cannot be merged: its head for one number has no place in a model that answers. Load \
                 the adapter over its base instead.",
            ));
        }
        Ok(self.updates.keys().map(|site: &Site| format!("{}.weight", site.name())).collect())
    }

    pub(super) fn update_rows(&self, weight: &str, first: usize, values: &mut [f32]) -> Result<()> {
        let Some(Update { a, b, scale, magnitude }) = self.updated(weight) else {
            return Err(Error::internal(anyhow::anyhow!("no update of {weight}")));
        };
        let inputs = a.dim(1)?;
        let rows = values.len() / inputs.max(1);
        let [a, b] = [a, b].map(|one| one.detach().to_device(&Device::Cpu));
        let update = (b?.narrow(0, first, rows)?.contiguous()?.matmul(&a?.contiguous()?)? * *scale)?;
        for (value, added) in values.iter_mut().zip(numbers(&update)?) {
            *value += added;
        }
        if let Some(magnitude) = magnitude {
            let lengths = numbers(&magnitude.lengths.detach().narrow(0, first, rows)?)?;
            for (row, wanted) in values.chunks_exact_mut(inputs).zip(lengths) {
                let length = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32;
                let factor = wanted / length;
                row.iter_mut().for_each(|value| *value *= factor);
            }
        }
        Ok(())
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
