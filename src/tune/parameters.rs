//! Where the parameters of a tuning method come from: drawn for a new one, or read from an artifact; and
//! whether they train. Each method asks for its parameters in one place and works with either.

use std::cell::RefCell;

use candle_core::{Device, Tensor, Var};

use super::{Place, Trainable};
use crate::error::{Error, Result};
use crate::models::Weights;
use crate::rng::Rng;

/// Gives a method its parameters.
pub(super) struct Parameters<'a> {
    source: Source<'a>,
    trains: bool,
    device: &'a Device,
    taken: RefCell<Vec<Trainable>>,
}

enum Source<'a> {
    Seed(u64),
    File(&'a Weights),
}

impl<'a> Parameters<'a> {
    /// Drawn from a seed, to be trained. The same seed gives the same values.
    pub(super) fn new(seed: u64, device: &'a Device) -> Self {
        Self { source: Source::Seed(seed), trains: true, device, taken: RefCell::default() }
    }

    /// As they lie in an artifact, to answer with or to go on training.
    pub(super) fn read(weights: &'a Weights, trains: bool, device: &'a Device) -> Self {
        Self { source: Source::File(weights), trains, device, taken: RefCell::default() }
    }

    /// Whether they are drawn.
    pub(super) fn are_new(&self) -> bool {
        matches!(self.source, Source::Seed(_))
    }

    /// The parameter of this name and shape; `begin` gives the values of a new one.
    pub(super) fn take(
        &self,
        name: &str,
        shape: &[usize],
        place: Place,
        begin: impl FnOnce(&mut Rng) -> Vec<f32>,
    ) -> Result<Tensor> {
        let tensor = match self.source {
            Source::Seed(seed) => Tensor::from_vec(begin(&mut Rng::new(seed, name, 0)), shape, self.device)?,
            Source::File(_) => self.tensor(name, shape)?,
        };
        self.adopt(name, &tensor, place)
    }

    /// A tensor of the artifact as it is, not yet a parameter.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.source {
            Source::File(weights) => weights.get(name, shape, self.device),
            Source::Seed(_) => Err(Error::internal(anyhow::anyhow!("{name} has no artifact to come from"))),
        }
    }

    /// Makes a parameter of a tensor that was computed or cut out of another.
    pub(super) fn adopt(&self, name: &str, tensor: &Tensor, place: Place) -> Result<Tensor> {
        if !self.trains {
            return Ok(tensor.clone());
        }
        let var = Var::from_tensor(tensor)?;
        let tensor = var.as_tensor().clone();
        self.taken.borrow_mut().push(Trainable { name: name.to_string(), var, place });
        Ok(tensor)
    }

    /// Everything that trains, in the order in which it was taken.
    pub(super) fn into_trainables(self) -> Vec<Trainable> {
        self.taken.into_inner()
    }
}

/// `count` zeros.
pub(super) fn zeros(count: usize) -> impl FnOnce(&mut Rng) -> Vec<f32> {
    move |_| vec![0.0; count]
}
