//! Keys and values of the tokens that went through the decoder already, so that each new token
//! costs one row and not the whole text again.

use candle_core::{Result, Tensor};

use crate::models::Memory;

/// Room is made for this many tokens more than are there; then it doubles.
const SPARE: usize = 128;

/// The keys and values of one conversation.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<Option<Held>>,
}

/// One layer's; each tensor is `[capacity, kv_heads, head_dim]`, of which the first `tokens` rows count.
#[derive(Debug)]
struct Held {
    keys: Tensor,
    values: Tensor,
    tokens: usize,
}

impl Cache {
    /// Empty, for a decoder with this many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| None).collect() }
    }

    /// How many rows all layers have seen: tokens, and what a method puts in front of them.
    pub fn tokens(&self) -> usize {
        self.layers.last().and_then(Option::as_ref).map_or(0, |held| held.tokens)
    }
}

impl Held {
    /// Copies what there is into room for twice as much as needed.
    fn with_room(old: Option<Self>, like: &Tensor, needed: usize) -> Result<Self> {
        let (_, heads, width) = like.dims3()?;
        let shape = (2 * needed + SPARE, heads, width);
        let empty = || Tensor::zeros(shape, like.dtype(), like.device());
        let mut new = Self { keys: empty()?, values: empty()?, tokens: 0 };
        if let Some(old) = old {
            new.append(&old.keys.narrow(0, 0, old.tokens)?, &old.values.narrow(0, 0, old.tokens)?)?;
        }
        Ok(new)
    }

    fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        self.keys.slice_set(&keys.contiguous()?, 0, self.tokens)?;
        self.values.slice_set(&values.contiguous()?, 0, self.tokens)?;
        self.tokens += keys.dim(0)?;
        Ok(())
    }
}

impl Memory for Cache {
    fn is_empty(&self, layer: usize) -> bool {
        self.layers[layer].is_none()
    }

    fn extend(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let slot = &mut self.layers[layer];
        let needed = slot.as_ref().map_or(0, |held| held.tokens) + keys.dim(0)?;
        let mut held = match slot.take() {
            Some(held) if held.keys.dim(0)? >= needed => held,
            old => Held::with_room(old, keys, needed)?,
        };
        held.append(keys, values)?;
        let all = (held.keys.narrow(0, 0, needed)?, held.values.narrow(0, 0, needed)?);
        *slot = Some(held);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn what_was_given_comes_back_in_order_also_when_the_room_grows() {
        let mut cache = Cache::new(1);
        let mut expected = Vec::new();
        for tokens in [3, 1, 400, 1] {
            let values: Vec<f32> = (0..tokens * 2).map(|i| (expected.len() + i) as f32).collect();
            let keys = Tensor::from_slice(&values, (tokens, 1, 2), &Device::Cpu).unwrap();
            expected.extend(values);
            let (all_keys, all_values) = cache.extend(0, &keys, &(&keys * 2.0).unwrap()).unwrap();
            assert_eq!(all_keys.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
            let doubled: Vec<f32> = expected.iter().map(|v| v * 2.0).collect();
            assert_eq!(all_values.flatten_all().unwrap().to_vec1::<f32>().unwrap(), doubled);
        }
        assert_eq!(cache.tokens(), 405);
    }
}
