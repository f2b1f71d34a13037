//! A head of one row: a number for each of some positions, as reward and value models have it. One row is little
//! work beside a layer's maps, so the arithmetic is plain f64 on the host, whatever the device.

use candle_core::{Result, Tensor, bail};

const NAME: &str = "scalar_head";

/// The numbers of some rows, with all that a backward pass needs.
#[derive(Debug, Clone)]
pub struct ScalarHead {
    /// One for each row that was asked for.
    pub values: Vec<f64>,
    rows: Vec<usize>,
    /// The states of these rows, one after the other.
    states: Vec<f32>,
    weight: Vec<f32>,
    hidden: Tensor,
}

/// `hidden` `[N, H]` times `weight` `[1, H]` at `rows`, which are below N and ascend.
///
/// # Errors
/// When shapes do not fit, a row lies outside, or the device fails.
pub fn scalar_head(hidden: &Tensor, weight: &Tensor, rows: Vec<usize>) -> Result<ScalarHead> {
    let (count, width) = hidden.dims2()?;
    if weight.dims() != [1, width] {
        bail!("{NAME}: states of {width} values, a head of shape {:?}", weight.shape());
    }
    if !rows.is_sorted() || rows.last().is_some_and(|row| *row >= count) {
        bail!("{NAME}: positions {rows:?} among {count} rows");
    }
    let hidden = hidden.detach();
    // A copy out of the device for all rows and not for each: there may be one for every token.
    let places: Vec<u32> = rows.iter().filter_map(|row| u32::try_from(*row).ok()).collect();
    let places = Tensor::from_vec(places, rows.len(), hidden.device())?;
    let states = if rows.is_empty() {
        Vec::new()
    } else {
        hidden.contiguous()?.index_select(&places, 0)?.flatten_all()?.to_vec1::<f32>()?
    };
    let weight = weight.detach().flatten_all()?.to_vec1::<f32>()?;
    let dot = |state: &[f32]| state.iter().zip(&weight).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    let values = states.chunks_exact(width).map(dot).collect();
    Ok(ScalarHead { values, rows, states, weight, hidden })
}

impl ScalarHead {
    /// Given d loss / d value of each, d loss / d hidden `[N, H]` and d loss / d weight `[1, H]`.
    ///
    /// # Errors
    /// When there are not as many slopes as values, or the device fails.
    pub fn pull_back(&self, slopes: &[f64]) -> Result<(Tensor, Tensor)> {
        if slopes.len() != self.values.len() {
            bail!("{NAME}: {} slopes of {} values", slopes.len(), self.values.len());
        }
        let (count, width) = self.hidden.dims2()?;
        let (mut of_hidden, mut of_weight) = (vec![0f32; count * width], vec![0f64; width]);
        for ((row, state), slope) in self.rows.iter().zip(self.states.chunks_exact(width)).zip(slopes) {
            for (at, (x, w)) in state.iter().zip(&self.weight).enumerate() {
                of_hidden[row * width + at] += (slope * f64::from(*w)) as f32;
                of_weight[at] += slope * f64::from(*x);
            }
        }
        let of_weight: Vec<f32> = of_weight.into_iter().map(|value| value as f32).collect();
        let device = self.hidden.device();
        Ok((Tensor::from_vec(of_hidden, (count, width), device)?, Tensor::from_vec(of_weight, (1, width), device)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn values_and_slopes_are_those_of_the_product() {
        let hidden = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, -6.0]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[[0.5f32, -1.0]], &Device::Cpu).unwrap();
        let head = scalar_head(&hidden, &weight, vec![0, 2]).unwrap();
        assert_eq!(head.values, [-1.5, 8.5]);
        let (of_hidden, of_weight) = head.pull_back(&[2.0, -1.0]).unwrap();
        assert_eq!(of_hidden.to_vec2::<f32>().unwrap(), [[1.0, -2.0], [0.0, 0.0], [-0.5, 1.0]]);
        assert_eq!(of_weight.to_vec2::<f32>().unwrap(), [[-3.0, 10.0]]);
    }

    #[test]
    fn positions_outside_and_heads_of_another_width_are_refused() {
        let hidden = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let weight = |width: usize| Tensor::zeros((1, width), DType::F32, &Device::Cpu).unwrap();
        assert!(scalar_head(&hidden, &weight(3), vec![2]).is_err());
        assert!(scalar_head(&hidden, &weight(3), vec![1, 0]).is_err());
        assert!(scalar_head(&hidden, &weight(2), vec![0]).is_err());
        assert!(scalar_head(&hidden, &weight(3), vec![1]).unwrap().pull_back(&[]).is_err());
    }
}
