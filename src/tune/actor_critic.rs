//! A policy with a value head (an actor and its critic on one trunk): whatever method tunes the model, and beside it
//! a linear map from the states behind the last norm to one number, the reward that is still to be expected there.
//! The head belongs to a run and not to the adapter: it trains and is kept in checkpoints, and no artifact has it.

use candle_core::{DType, Device, Tensor, Var};

use super::{Method, Place, Trainable, TuningMethod};
use crate::error::Result;
use crate::kernels::Weight;
use crate::models::{Attention, LowRank, Site, Tuning};

/// The head's name in checkpoints.
pub const VALUE_HEAD: &str = "value_head.weight";

/// A method with a value head.
pub struct ActorCritic {
    actor: Box<dyn Method>,
    /// The actor's, and the head last.
    trainables: Vec<Trainable>,
}

impl ActorCritic {
    /// With a new head for states of `width`. It begins at zero: nothing is expected anywhere until something was
    /// seen, so that the first advantages are rewards and no noise of a drawn head. One row of a linear map learns
    /// from there as from anywhere else, because its gradient is made of states and errors only.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(actor: Box<dyn Method>, width: usize, device: &Device) -> Result<Self> {
        Self::with_head(actor, &Tensor::zeros((1, width), DType::F32, device)?)
    }

    /// With a head of this weight, `[1, width]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn with_head(actor: Box<dyn Method>, weight: &Tensor) -> Result<Self> {
        let head = Trainable { name: VALUE_HEAD.into(), var: Var::from_tensor(weight)?, place: Place::Top };
        let trainables = actor.trainables().iter().cloned().chain([head]).collect();
        Ok(Self { actor, trainables })
    }
}

/// The decoder sees the actor alone.
impl Tuning for ActorCritic {
    fn linear(&self, site: Site, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> candle_core::Result<Tensor> {
        self.actor.linear(site, x, weight, bias)
    }

    fn after_attention(&self, layer: usize, residual: &Tensor, added: Tensor) -> candle_core::Result<Tensor> {
        self.actor.after_attention(layer, residual, added)
    }

    fn after_mlp(&self, layer: usize, residual: &Tensor, added: Tensor) -> candle_core::Result<Tensor> {
        self.actor.after_mlp(layer, residual, added)
    }

    fn low_rank(&self, site: Site, weight: &Weight) -> candle_core::Result<Option<LowRank>> {
        self.actor.low_rank(site, weight)
    }

    fn beside_attention(&self, attention: &Attention<'_>, heads: Tensor) -> candle_core::Result<Tensor> {
        self.actor.beside_attention(attention, heads)
    }

    fn soft_tokens(&self) -> usize {
        self.actor.soft_tokens()
    }

    fn soft_prompt(&self) -> Option<&Tensor> {
        self.actor.soft_prompt()
    }

    fn prefix_tokens(&self) -> usize {
        self.actor.prefix_tokens()
    }

    fn prefix(&self, layer: usize) -> candle_core::Result<Option<(Tensor, Tensor)>> {
        self.actor.prefix(layer)
    }

    fn head(&self) -> Option<&Tensor> {
        self.actor.head()
    }
}

impl Method for ActorCritic {
    fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }

    fn pass(&self, dropout_key: u64) -> Option<Box<dyn Tuning + '_>> {
        self.actor.pass(dropout_key)
    }

    fn set_dropout(&mut self, method: &TuningMethod) {
        self.actor.set_dropout(method);
    }

    fn artifact(&self) -> Result<Vec<(String, Tensor)>> {
        self.actor.artifact()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::{Decoder, DecoderConfig};
    use crate::rng::Rng;
    use crate::tune::{
        AdapterConfig, Arrangement, LlamaAdapterConfig, LoraConfig, PrefixConfig, PromptConfig, VirtualTokens,
    };

    #[test]
    fn the_decoder_and_the_artifact_see_the_actor_alone_whatever_the_method() {
        let file = json!({"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1});
        let base = DecoderConfig::parse(&file.to_string()).unwrap();
        let random = || VirtualTokens::Random;
        for method in [
            TuningMethod::Lora(LoraConfig { rank: 2, dropout: 0.5, ..Default::default() }),
            TuningMethod::Adapter(AdapterConfig { reduction_factor: 2.0, ..AdapterConfig::of(Arrangement::Houlsby) }),
            TuningMethod::Prefix(PrefixConfig { tokens: 3, begin: random(), projection: None }),
            TuningMethod::Prompt(PromptConfig { tokens: 3, begin: random() }),
            TuningMethod::LlamaAdapter(LlamaAdapterConfig { length: 2, layers: None }),
            TuningMethod::Head,
            TuningMethod::Full,
        ] {
            let decoder = Decoder::random(base.clone(), 1, &Device::Cpu, method.form()).unwrap();
            let build = || {
                let built = method.build(&decoder, None, 1).unwrap();
                for one in built.trainables() {
                    let noise = Rng::new(7, &one.name, 0).normals(one.var.elem_count(), 0.3);
                    one.var.set(&Tensor::from_vec(noise, one.var.dims(), &Device::Cpu).unwrap()).unwrap();
                }
                built
            };
            let logits = |tuning: &dyn Tuning| -> Vec<f32> {
                decoder.logits(&[1, 2, 3], &[3], tuning).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            let (alone, critic) = (build(), ActorCritic::new(build(), 8, &Device::Cpu).unwrap());
            let name = method.name();
            assert_eq!(logits(&*alone), logits(&critic), "{name}");
            assert_eq!(alone.virtual_tokens(), critic.virtual_tokens(), "{name}");
            match (alone.pass(3), critic.pass(3)) {
                (Some(alone), Some(critic)) => assert_eq!(logits(&*alone), logits(&*critic), "{name}"),
                (alone, critic) => assert!(alone.is_none() && critic.is_none(), "{name}"),
            }
            let names = |method: &dyn Method| -> Vec<String> {
                method.artifact().unwrap().into_iter().map(|(name, _)| name).collect()
            };
            assert_eq!(names(&*alone), names(&critic), "{name}");
            let (last, others) = critic.trainables().split_last().unwrap();
            assert_eq!(
                (last.name.as_str(), last.place, others.len()),
                (VALUE_HEAD, Place::Top, alone.trainables().len())
            );
            assert_eq!(last.var.to_vec2::<f32>().unwrap(), [[0.0; 8]], "{name}");
        }
    }
}
