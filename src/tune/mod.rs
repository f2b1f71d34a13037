//! The tuning methods, one file each: what they train and how they enter the decoder.

mod full;
mod lora;
mod peft;

use candle_core::Var;

pub use full::Full;
pub use lora::{Lora, LoraConfig};
pub use peft::read_adapter;

use crate::models::Tuning;

/// Which part of the decoder holds a trainable weight: the backward pass goes no deeper than the
/// deepest one.
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
    /// The tensor's name in the artifact.
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

    /// The hooks of one training pass. `dropout_key` names its dropout masks: a pass and its
    /// recomputation use the same one, each micro-batch another. The method itself, used as hooks,
    /// drops nothing: that is evaluation.
    fn pass(&self, dropout_key: u64) -> Box<dyn Tuning + '_>;
}
