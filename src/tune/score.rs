//! The head of a reward model: one number for a text, a linear map of the state of its last token. It lies beside a
//! low-rank adapter, where `peft` keeps the head of a sequence classifier.

use candle_core::{Tensor, Var};

use super::{Place, Trainable};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// The tensor's name in the artifact, and in checkpoints.
pub const SCORE: &str = "base_model.model.score.weight";
/// A new one is drawn from N(0, 0.02), as transformers draws it.
const DEVIATION: f32 = 0.02;

/// The weight of a new head for states of `width`, `[1, width]`. The same seed gives the same.
///
/// # Errors
/// When the device fails.
pub fn new_score(width: usize, seed: u64, device: &candle_core::Device) -> Result<Tensor> {
    Ok(Tensor::from_vec(Rng::new(seed, SCORE, 0).normals(width, DEVIATION), (1, width), device)?)
}

/// Makes a trainable of a head's weight.
pub(super) fn trainable(weight: &Tensor) -> Result<Trainable> {
    Ok(Trainable { name: SCORE.into(), var: Var::from_tensor(weight)?, place: Place::Top })
}

/// What a method without a place for a head says.
pub(super) fn refused() -> Error {
    Error::validation("a reward model is a low-rank adapter with a head: tuningMethod must be lora or qlora")
}
