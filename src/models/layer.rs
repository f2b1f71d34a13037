//! One decoder layer: normalise, attend, add; normalise, MLP, add.

use std::collections::BTreeMap;

use candle_core::{Error, Result, Tensor};

use super::config::DecoderConfig;
use super::packing::Packing;
use super::tuning::{Attention, Frozen, Map, Projection, Site, Tuning};
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
    pub(super) linears: BTreeMap<Projection, Linear>,
    pub(super) attention_norm: Tensor,
    pub(super) mlp_norm: Tensor,
    /// Norms of what attention and the MLP give, in models that have them; each `[hidden]`.
    pub(super) post_norms: Option<(Tensor, Tensor)>,
    /// Per-head norms of query and key, in models that have them; each `[head_dim]`.
    pub(super) query_key_norms: Option<(Tensor, Tensor)>,
    /// How many tokens back a token sees.
    pub(super) window: Option<usize>,
    /// Which of the packing's angles turn its queries and keys, if any.
    pub(super) rotary: Option<usize>,
}

impl Layer {
    /// Bytes of its maps; the norms and biases are small beside them.
    pub(super) fn bytes(&self) -> usize {
        self.linears.values().map(|linear| linear.weight.bytes()).sum()
    }

    /// `x` `[N, hidden]` to `[N, hidden]`.
    pub(super) fn forward(
        &self,
        config: &DecoderConfig,
        x: &Tensor,
        packing: &Packing,
        tuning: &dyn Tuning,
        memory: Option<&mut dyn Memory>,
    ) -> Result<Tensor> {
        let norm = |x: &Tensor, weight: &Tensor| kernels::rms_norm(x, weight, config.norm_eps, config.norm_offset);
        let normed = norm(x, &self.attention_norm)?;
        let mut added = self.attend(config, &normed, packing, tuning, memory)?;
        if let Some((after_attention, _)) = &self.post_norms {
            added = norm(&added, after_attention)?;
        }
        let x = (x + tuning.after_attention(self.index, x, added)?)?;

        let normed = norm(&x, &self.mlp_norm)?;
        let (gate, up) = self.gate_and_up(config, &normed, tuning)?;
        let mut added = self.linear(Projection::Down, &kernels::gated(&gate, &up, config.activation)?, tuning)?;
        if let Some((_, after_mlp)) = &self.post_norms {
            added = norm(&added, after_mlp)?;
        }
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
        let [q, k, v] = self.queries_keys_values(config, x, tuning)?;
        let mut q = q.reshape((tokens, heads, width))?;
        let mut k = k.reshape((tokens, kv_heads, width))?;
        let mut v = v.reshape((tokens, kv_heads, width))?;
        if let Some((query_norm, key_norm)) = &self.query_key_norms {
            q = kernels::rms_norm(&q, query_norm, config.norm_eps, config.norm_offset)?;
            k = kernels::rms_norm(&k, key_norm, config.norm_eps, config.norm_offset)?;
        }
        if let Some((cos, sin)) = self.rotary.map(|rotary| &packing.angles[rotary]) {
            q = kernels::rope(&q, cos, sin)?;
            k = kernels::rope(&k, cos, sin)?;
        }
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
        let scale = 1.0 / config.query_pre_attn_scalar.sqrt();
        let y = kernels::attention(&q, &k, &v, &packing.spans, scale, self.window, config.attention_softcap)?;
        let y = y.reshape((tokens, heads * width))?;
        let beside = Attention {
            layer: self.index,
            queries: &q,
            scale,
            keys: &|x| self.linear(Projection::Key, x, &Frozen),
            values: &|x| self.linear(Projection::Value, x, &Frozen),
        };
        self.linear(Projection::Output, &tuning.beside_attention(&beside, y)?, tuning)
    }

    /// Queries `[N, heads · head_dim]`, keys and values `[N, kv_heads · head_dim]`, fused or not.
    fn queries_keys_values(&self, config: &DecoderConfig, x: &Tensor, tuning: &dyn Tuning) -> Result<[Tensor; 3]> {
        if !self.linears.contains_key(&Projection::QueryKeyValue) {
            return self.linears_of([Projection::Query, Projection::Key, Projection::Value], x, tuning);
        }
        let all = self.linear(Projection::QueryKeyValue, x, tuning)?;
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        Ok([all.narrow(1, 0, queries)?, all.narrow(1, queries, keys)?, all.narrow(1, queries + keys, keys)?])
    }

    /// The two halves of the MLP, each `[N, intermediate]`, fused or not.
    fn gate_and_up(&self, config: &DecoderConfig, x: &Tensor, tuning: &dyn Tuning) -> Result<(Tensor, Tensor)> {
        if !self.linears.contains_key(&Projection::GateUp) {
            return self.linears_of([Projection::Gate, Projection::Up], x, tuning).map(<(Tensor, Tensor)>::from);
        }
        let (both, width) = (self.linear(Projection::GateUp, x, tuning)?, config.intermediate_size);
        Ok((both.narrow(1, 0, width)?, both.narrow(1, width, width)?))
    }

    fn linear(&self, projection: Projection, x: &Tensor, tuning: &dyn Tuning) -> Result<Tensor> {
        let Map { site, weight, bias } = self.map(projection);
        tuning.linear(site, x, weight, bias)
    }

    fn linears_of<const N: usize>(
        &self,
        projections: [Projection; N],
        x: &Tensor,
        tuning: &dyn Tuning,
    ) -> Result<[Tensor; N]> {
        let made = tuning.linears(x, &projections.map(|projection| self.map(projection)))?;
        made.try_into().map_err(|made: Vec<Tensor>| Error::Msg(format!("{} maps of {N} were made", made.len())))
    }

    fn map(&self, projection: Projection) -> Map<'_> {
        let Linear { weight, bias } = &self.linears[&projection];
        Map { site: Site { layer: self.index, projection }, weight, bias: bias.as_ref() }
    }
}
