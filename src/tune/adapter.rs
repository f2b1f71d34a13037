//! Bottleneck adapters: a small two-layer net, down · activation · up, whose result is added to what a
//! sub-block gives. Where they stand is the difference: after attention and after the MLP on the sub-block's
//! result (Houlsby et al. 2019, arXiv 1902.00751), after the MLP on the sum (Pfeiffer et al. 2020,
//! arXiv 2005.00247), or beside the MLP on its input, times four (He et al. 2021, arXiv 2110.04366). Names
//! and numbers are those of the library `adapters`; they cannot be merged into the base.

use candle_core::Tensor;

use super::parameters::{Parameters, zeros};
use super::{Method, Place, Trainable};
use crate::error::{Error, Result};
use crate::kernels;
use crate::models::{Decoder, DecoderConfig, Tuning};

/// What our adapters are called inside their files.
pub const ADAPTER_NAME: &str = "tunesmith";

/// Where the bottleneck stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// After attention and after the MLP, on what each gives.
    Houlsby,
    /// After the MLP, on the sum of its input and what it gives.
    Pfeiffer,
    /// Beside the MLP, on its input.
    Parallel,
}

impl Arrangement {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Houlsby, Self::Pfeiffer, Self::Parallel];

    /// The name in hyperparameters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Houlsby => "houlsby",
            Self::Pfeiffer => "pfeiffer",
            Self::Parallel => "parallel",
        }
    }

    /// The paper's own: how many times narrower the bottleneck is.
    pub fn reduction_factor(self) -> f64 {
        if self == Self::Parallel { 2.0 } else { 16.0 }
    }

    /// The library's default.
    pub fn activation(self) -> Activation {
        if self == Self::Houlsby { Activation::Swish } else { Activation::Relu }
    }

    /// What the bottleneck's result is multiplied with.
    pub fn scaling(self) -> f64 {
        if self == Self::Parallel { 4.0 } else { 1.0 }
    }
}

/// What stands between down and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x · sigmoid(x).
    Swish,
    /// x · Φ(x).
    Gelu,
    /// tanh.
    Tanh,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Relu, Self::Swish, Self::Gelu, Self::Tanh];

    /// The name in hyperparameters and in the library.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Swish => "swish",
            Self::Gelu => "gelu",
            Self::Tanh => "tanh",
        }
    }

    fn apply(self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Relu => x.relu(),
            Self::Swish => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::Tanh => x.tanh(),
        }
    }
}

/// What bottleneck adapters are made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterConfig {
    /// Where the bottlenecks stand.
    pub arrangement: Arrangement,
    /// How many times narrower than the model a bottleneck is.
    pub reduction_factor: f64,
    /// What stands between down and up.
    pub activation: Activation,
    /// What a bottleneck's result is multiplied with.
    pub scaling: f64,
}

impl AdapterConfig {
    /// As the paper of this arrangement has it.
    pub fn of(arrangement: Arrangement) -> Self {
        Self {
            arrangement,
            reduction_factor: arrangement.reduction_factor(),
            activation: arrangement.activation(),
            scaling: arrangement.scaling(),
        }
    }

    /// Width of a bottleneck in a model of this width.
    pub fn width(&self, hidden: usize) -> usize {
        ((hidden as f64 / self.reduction_factor) as usize).max(1)
    }
}

struct Bottleneck {
    down: (Tensor, Tensor),
    up: (Tensor, Tensor),
}

/// Bottlenecks in every layer.
pub struct BottleneckAdapter {
    config: AdapterConfig,
    attention: Vec<Bottleneck>,
    mlp: Vec<Bottleneck>,
    trainables: Vec<Trainable>,
}

impl BottleneckAdapter {
    /// New ones: weights from N(0, 0.02) as BERT's, so that training starts near the base but not at it; the
    /// parallel ones with up zero, which starts at the base exactly.
    ///
    /// # Errors
    /// When the device cannot hold them.
    pub fn new(decoder: &Decoder, config: AdapterConfig, seed: u64) -> Result<Self> {
        Self::build(decoder.config(), config, ADAPTER_NAME, Parameters::new(seed, decoder.device()))
    }

    pub(super) fn build(
        base: &DecoderConfig,
        config: AdapterConfig,
        name: &str,
        parameters: Parameters<'_>,
    ) -> Result<Self> {
        if !config.reduction_factor.is_finite() || config.reduction_factor <= 0.0 {
            return Err(Error::validation("an adapter needs a positive reduction factor"));
        }
        let (hidden, width) = (base.hidden_size, config.width(base.hidden_size));
        let parallel = config.arrangement == Arrangement::Parallel;
        let bottleneck = |layer: usize, group: &str| -> Result<Bottleneck> {
            let module = format!("model.layers.{layer}.{group}.adapters.{name}");
            let place = Place::Layer(layer);
            let take = |part: &str, outputs: usize, inputs: usize, still: bool| -> Result<(Tensor, Tensor)> {
                let count = outputs * inputs;
                // The library starts a parallel one as LoRA does: down kaiming-uniform with a = √5.
                let bound = 1.0 / (inputs as f32).sqrt();
                let weight = parameters.take(&format!("{module}.{part}.weight"), &[outputs, inputs], place, |rng| {
                    match (parallel, still) {
                        (true, true) => vec![0.0; count],
                        (true, false) => rng.uniforms(count, -bound, bound),
                        (false, _) => rng.normals(count, 0.02),
                    }
                })?;
                Ok((weight, parameters.take(&format!("{module}.{part}.bias"), &[outputs], place, zeros(outputs))?))
            };
            let down = take("adapter_down.0", width, hidden, false)?;
            Ok(Bottleneck { down, up: take("adapter_up", hidden, width, true)? })
        };
        let (mut attention, mut mlp) = (Vec::new(), Vec::new());
        for layer in 0..base.layers {
            if config.arrangement == Arrangement::Houlsby {
                attention.push(bottleneck(layer, "attention_adapters")?);
            }
            mlp.push(bottleneck(layer, "output_adapters")?);
        }
        Ok(Self { config, attention, mlp, trainables: parameters.into_trainables() })
    }

    fn run(&self, bottleneck: &Bottleneck, x: &Tensor) -> candle_core::Result<Tensor> {
        let low = kernels::linear(x, &bottleneck.down.0, Some(&bottleneck.down.1))?;
        let up = kernels::linear(&self.config.activation.apply(&low)?, &bottleneck.up.0, Some(&bottleneck.up.1))?;
        if self.config.scaling == 1.0 { Ok(up) } else { up * self.config.scaling }
    }
}

impl Tuning for BottleneckAdapter {
    fn after_attention(&self, layer: usize, _: &Tensor, added: Tensor) -> candle_core::Result<Tensor> {
        match self.attention.get(layer) {
            Some(bottleneck) => &added + self.run(bottleneck, &added)?,
            None => Ok(added),
        }
    }

    fn after_mlp(&self, layer: usize, residual: &Tensor, added: Tensor) -> candle_core::Result<Tensor> {
        let Some(bottleneck) = self.mlp.get(layer) else { return Ok(added) };
        let seen = match self.config.arrangement {
            Arrangement::Houlsby => added.clone(),
            Arrangement::Pfeiffer => (residual + &added)?,
            Arrangement::Parallel => residual.clone(),
        };
        added + self.run(bottleneck, &seen)?
    }
}

impl Method for BottleneckAdapter {
    fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }
}
