//! Where a tuning method enters the decoder. The decoder calls these hooks; a method overrides the
//! ones it needs, and the bodies here are the plain model.

use candle_core::{Result, Tensor};

use crate::kernels::Weight;

/// A linear map of a layer; which ones a model has, [`DecoderConfig::projections`](super::DecoderConfig) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// Hidden to queries.
    Query,
    /// Hidden to keys.
    Key,
    /// Hidden to values.
    Value,
    /// Hidden to queries, keys and values at once, in that order.
    QueryKeyValue,
    /// Attention's result back to hidden.
    Output,
    /// Hidden to the MLP's gate.
    Gate,
    /// Hidden to the MLP's other half.
    Up,
    /// Hidden to the gate and the other half at once, in that order.
    GateUp,
    /// The MLP's inside back to hidden.
    Down,
}

impl Projection {
    /// Every kind of map that any model has, in the order they run.
    pub const ALL: [Self; 9] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::QueryKeyValue,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::GateUp,
        Self::Down,
    ];

    /// The last part of the module's name in transformers, as `target_modules` lists it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::QueryKeyValue => "qkv_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::GateUp => "gate_up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The module's name within its layer.
    pub fn module(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::QueryKeyValue => "self_attn.qkv_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::GateUp => "mlp.gate_up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// A linear map in the decoder: which one, in which layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Counted from the embedding, first is 0.
    pub layer: usize,
    /// Which of the layer's maps.
    pub projection: Projection,
}

impl Site {
    /// The module's full name in transformers, for example `model.layers.0.self_attn.q_proj`.
    pub fn name(self) -> String {
        format!("model.layers.{}.{}", self.layer, self.projection.module())
    }
}

/// A low-rank update of a linear map.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `[r, in]`.
    pub a: Tensor,
    /// `[out, r]`, of one that no longer trains perhaps with its columns together.
    pub b: Tensor,
    /// What the update is multiplied with.
    pub scale: f64,
    /// What each output is multiplied with, `[out]`, update included and bias not.
    pub stretch: Option<Tensor>,
}

/// A layer's attention, as seen by what is added beside it.
pub struct Attention<'a> {
    /// Counted from the embedding, first is 0.
    pub layer: usize,
    /// Queries after the rotation, `[N, heads, head_dim]`.
    pub queries: &'a Tensor,
    /// Factor of the scores.
    pub scale: f64,
    /// The layer's own key projection, without a tuning.
    pub keys: &'a dyn Fn(&Tensor) -> Result<Tensor>,
    /// The layer's own value projection, without a tuning.
    pub values: &'a dyn Fn(&Tensor) -> Result<Tensor>,
}

/// A linear map of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct Map<'a> {
    /// Which one.
    pub site: Site,
    /// `[out, in]`.
    pub weight: &'a Weight,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
}

/// What a tuning method changes in the decoder.
pub trait Tuning: Send + Sync {
    /// A linear map: `x` `[N, in]`, `weight` `[out, in]`, `bias` `[out]` to `[N, out]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn linear(&self, site: Site, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
        let _ = site;
        weight.apply(x, bias)
    }

    /// Several linear maps of one `x`, each as [`Tuning::linear`].
    ///
    /// # Errors
    /// When shapes do not fit.
    fn linears(&self, x: &Tensor, maps: &[Map<'_>]) -> Result<Vec<Tensor>> {
        maps.iter().map(|Map { site, weight, bias }| self.linear(*site, x, weight, *bias)).collect()
    }

    /// The part of [`Tuning::linear`] that is the tuning's own, for rows that share the base's product with rows of
    /// other tunings. A method that overrides `linear` says here what it adds, without dropout.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn low_rank(&self, site: Site, weight: &Weight) -> Result<Option<LowRank>> {
        let _ = (site, weight);
        Ok(None)
    }

    /// What attention adds to the residual stream: `residual` and `added` are `[N, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn after_attention(&self, layer: usize, residual: &Tensor, added: Tensor) -> Result<Tensor> {
        let _ = (layer, residual);
        Ok(added)
    }

    /// What the MLP adds to the residual stream: `residual` and `added` are `[N, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn after_mlp(&self, layer: usize, residual: &Tensor, added: Tensor) -> Result<Tensor> {
        let _ = (layer, residual);
        Ok(added)
    }

    /// The heads' result before the output projection, `[N, heads * head_dim]`, with what stands beside them.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn beside_attention(&self, attention: &Attention<'_>, heads: Tensor) -> Result<Tensor> {
        let _ = attention;
        Ok(heads)
    }

    /// How many rows [`Tuning::soft_prompt`] has.
    fn soft_tokens(&self) -> usize {
        0
    }

    /// Embeddings in front of every record, `[soft_tokens, hidden]`; they stand at the first positions.
    fn soft_prompt(&self) -> Option<&Tensor> {
        None
    }

    /// How many keys and values [`Tuning::prefix`] has; the first token of a record stands behind them.
    fn prefix_tokens(&self) -> usize {
        0
    }

    /// Keys and values in front of every record's own, each `[prefix_tokens, kv_heads, head_dim]`. They are
    /// taken as they are, without a rotation.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn prefix(&self, layer: usize) -> Result<Option<(Tensor, Tensor)>> {
        let _ = layer;
        Ok(None)
    }

    /// An output head in place of the base's, `[vocab, hidden]`.
    fn head(&self) -> Option<&Tensor> {
        None
    }

    /// Positions that the method takes from every record.
    fn virtual_tokens(&self) -> usize {
        self.soft_tokens() + self.prefix_tokens()
    }
}

/// The base model as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Frozen;

impl Tuning for Frozen {}
