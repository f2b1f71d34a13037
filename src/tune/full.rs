//! Full tuning: every weight of the base trains. The artifact is a whole model.

use candle_core::Var;

use super::{Method, Place, Trainable};
use crate::error::{Error, Result};
use crate::models::{Decoder, Tuning};

/// Every weight of a decoder that was loaded as trainable.
pub struct Full {
    trainables: Vec<Trainable>,
}

impl Full {
    /// All weights of `decoder`; a tied embedding trains once, by both its uses.
    ///
    /// # Errors
    /// When the decoder's weights are not variables.
    pub fn new(decoder: &Decoder) -> Result<Self> {
        let mut trainables = Vec::with_capacity(decoder.named_weights().len());
        for (name, tensor) in decoder.named_weights() {
            if !tensor.is_variable() {
                return Err(Error::internal(anyhow::anyhow!("full tuning needs a decoder loaded as trainable")));
            }
            let var = Var::from_tensor(tensor)?;
            trainables.push(Trainable { name: name.clone(), var, place: place(name) });
        }
        Ok(Self { trainables })
    }
}

fn place(name: &str) -> Place {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
    match layer {
        Some(layer) => Place::Layer(layer),
        None if name.starts_with("model.embed_tokens") => Place::Embedding,
        None => Place::Top,
    }
}

impl Tuning for Full {}

impl Method for Full {
    fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }
}
