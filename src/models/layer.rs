//! One decoder layer: normalise, attend, add; normalise, MLP, add.

use candle_core::{Result, Tensor};

use super::config::DecoderConfig;
use super::packing::Packing;
use super::tuning::{Attention, Projection, Site, Tuning};
use crate::kernels::{self, Weight};

/// Keys and values kept between passes, for generation.
pub trait Memory {
    /// Whether the layer has seen nothing yet.
    fn is_empty(&self, layer: usize) -> bool;

    /// Appends a layer's new keys and values, each `[N, kv_heads, head_dim]`, and gives back all
    /// that the layer has seen, oldest first.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn extend(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)>;
}

/// A weight `[out, in]` with its optional bias `[out]`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) weight: Weight,
    pub(super) bias: Option<Tensor>,
}

/// The weights of one layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) index: usize,
    /// In the order of [`Projection::ALL`].
    pub(super) linears: Vec<Linear>,
    pub(super) attention_norm: Tensor,
    pub(super) mlp_norm: Tensor,
    /// Per-head norms of query and key, in models that have them; each `[head_dim]`.
    pub(super) query_key_norms: Option<(Tensor, Tensor)>,
    /// How many tokens back a token sees.
    pub(super) window: Option<usize>,
}

impl Layer {
    /// `x` `[N, hidden]` to `[N, hidden]`.
    pub(super) fn forward(
        &self,
        config: &DecoderConfig,
        x: &Tensor,
        packing: &Packing,
        tuning: &dyn Tuning,
        memory: Option<&mut dyn Memory>,
    ) -> Result<Tensor> {
        let normed = kernels::rms_norm(x, &self.attention_norm, config.norm_eps)?;
        let added = self.attend(config, &normed, packing, tuning, memory)?;
        let x = (x + tuning.after_attention(self.index, x, added)?)?;

        let normed = kernels::rms_norm(&x, &self.mlp_norm, config.norm_eps)?;
        let gate = self.linear(Projection::Gate, &normed, tuning)?;
        let up = self.linear(Projection::Up, &normed, tuning)?;
        let added = self.linear(Projection::Down, &kernels::swiglu(&gate, &up)?, tuning)?;
        &x + tuning.after_mlp(self.index, &x, added)?
    }

    fn attend(
        &self,
        config: &DecoderConfig,
        x: &Tensor,
        packing: &Packing,
        tuning: &dyn Tuning,
        memory: Option<&mut dyn Memory>,
    ) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let (heads, kv_heads, width) = (config.heads, config.kv_heads, config.head_dim);
        let mut q = self.linear(Projection::Query, x, tuning)?.reshape((tokens, heads, width))?;
        let mut k = self.linear(Projection::Key, x, tuning)?.reshape((tokens, kv_heads, width))?;
        let mut v = self.linear(Projection::Value, x, tuning)?.reshape((tokens, kv_heads, width))?;
        if let Some((query_norm, key_norm)) = &self.query_key_norms {
            q = kernels::rms_norm(&q, query_norm, config.norm_eps)?;
            k = kernels::rms_norm(&k, key_norm, config.norm_eps)?;
        }
        let q = kernels::rope(&q, &packing.cos, &packing.sin)?;
        k = kernels::rope(&k, &packing.cos, &packing.sin)?;
        let prefix = tuning.prefix(self.index)?;
        match (memory, prefix) {
            (Some(memory), prefix) => {
                if let Some((keys, values)) = prefix.filter(|_| memory.is_empty(self.index)) {
                    memory.extend(self.index, &keys, &values)?;
                }
                (k, v) = memory.extend(self.index, &k, &v)?;
            }
            (None, Some((keys, values))) => {
                k = kernels::lead(&keys, &k, &packing.lengths)?;
                v = kernels::lead(&values, &v, &packing.lengths)?;
            }
            (None, None) => {}
        }
        let scale = 1.0 / (width as f64).sqrt();
        let y = kernels::attention(&q, &k, &v, &packing.spans, scale, self.window)?;
        let mut y = y.reshape((tokens, heads * width))?;
        let project = |projection: Projection, x: &Tensor| {
            let Linear { weight, bias } = &self.linears[projection as usize];
            weight.apply(x, bias.as_ref())
        };
        let beside = Attention {
            layer: self.index,
            queries: &q,
            scale,
            keys: &|x| project(Projection::Key, x),
            values: &|x| project(Projection::Value, x),
        };
        if let Some(added) = tuning.beside_attention(&beside)? {
            y = (y + added)?;
        }
        self.linear(Projection::Output, &y, tuning)
    }

    fn linear(&self, projection: Projection, x: &Tensor, tuning: &dyn Tuning) -> Result<Tensor> {
        let Linear { weight, bias } = &self.linears[projection as usize];
        tuning.linear(Site { layer: self.index, projection }, x, weight, bias.as_ref())
    }
}
