//! The tuning methods, one file each: what they train and how they enter the decoder. [`TuningMethod`] is
//! what a caller asks for; [`Method`] is one at work; [`read_adapter`] takes one up from its files.

mod actor_critic;
mod adapter;
mod full;
mod head;
mod llama_adapter;
mod lora;
mod method;
mod parameters;
mod prefix;
mod prompt;
mod read;
mod score;
mod size;
mod virtual_tokens;

use candle_core::{Tensor, Var};

pub use actor_critic::{ActorCritic, VALUE_HEAD};
pub use adapter::{ADAPTER_NAME, Activation, AdapterConfig, Arrangement, BottleneckAdapter};
pub use full::Full;
pub use head::Head;
pub use llama_adapter::{LlamaAdapter, LlamaAdapterConfig};
pub use lora::{Lora, LoraConfig};
pub use method::TuningMethod;
pub use prefix::{Prefix, PrefixConfig};
pub use prompt::{PromptConfig, SoftPrompt};
pub use read::{Adapter, QUANTIZATION, WEIGHT_FILES, adapter_bytes, read_adapter, weight_file};
pub use score::{SCORE, new_score};
pub use virtual_tokens::VirtualTokens;

use crate::error::{Error, Result};
use crate::models::Tuning;

/// Which part of the decoder holds a trainable weight, or the lowest part that uses it: the backward
/// pass goes no deeper than the deepest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Before the first layer.
    Embedding,
    /// In the layer of this index.
    Layer(usize),
    /// After the last layer: final norm and head.
    Top,
}

/// A weight that trains.
#[derive(Debug, Clone)]
pub struct Trainable {
    /// Names it in checkpoints; mostly the tensor's name in the artifact too.
    pub name: String,
    /// The weight itself; setting it changes what the decoder computes.
    pub var: Var,
    /// Where it acts.
    pub place: Place,
}

/// A way to tune a base model.
pub trait Method: Tuning {
    /// Everything that trains, in a fixed order: gradients and optimizer state follow it.
    fn trainables(&self) -> &[Trainable];

    /// The hooks of one training pass, where they differ from the method's own because it drops something.
    /// `dropout_key` names the masks: a pass and its recomputation use the same one, each micro-batch
    /// another. The method itself, used as hooks, drops nothing: that is evaluation.
    fn pass(&self, dropout_key: u64) -> Option<Box<dyn Tuning + '_>> {
        let _ = dropout_key;
        None
    }

    /// Takes the dropout of a run: an adapter that is tuned further comes without one.
    fn set_dropout(&mut self, method: &TuningMethod) {
        let _ = method;
    }

    /// Lays what was learned as answering reads it fastest, in as much memory. It can only be asked from then on:
    /// nothing of it trains, and it gives no artifact.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// The head of a reward model, `[1, hidden]`, where the method is one.
    fn score(&self) -> Option<&Tensor> {
        None
    }

    /// Becomes a reward model with this head, which trains too.
    ///
    /// # Errors
    /// `Validation` when the method has no place for one.
    fn take_score(&mut self, weight: &Tensor) -> Result<()> {
        let _ = weight;
        Err(score::refused())
    }

    /// The base's weights, by their Hugging Face names, that become others when what was learned is put into them.
    ///
    /// # Errors
    /// `Validation` that says why it cannot be put there.
    fn merged_weights(&self) -> Result<Vec<String>> {
        Err(Error::validation("What was learned stands beside the base's weights and cannot be put into them"))
    }

    /// Puts what was learned into some whole rows of one of [`Method::merged_weights`], the first of them row `first`.
    ///
    /// # Errors
    /// When the weight is none of them.
    fn merge_rows(&self, weight: &str, first: usize, values: &mut [f32]) -> Result<()> {
        let _ = (first, values);
        Err(Error::internal(anyhow::anyhow!("nothing to be put into {weight}")))
    }

    /// The tensors of the artifact by their names there.
    ///
    /// # Errors
    /// When the device fails.
    fn artifact(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(self.trainables().iter().map(|one| (one.name.clone(), one.var.as_tensor().clone())).collect())
    }
}
