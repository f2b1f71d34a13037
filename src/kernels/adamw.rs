//! One update of AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) in the order of operations of
//! `torch.optim.AdamW`: weight and both moments in place, in one pass.

use rayon::prelude::*;

/// Elements per parallel task.
const CHUNK: usize = 1 << 14;

/// What all elements of an update share.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// What the gradient counts.
    pub scale: f32,
    /// What stays of the weight: 1 - learning rate · weight decay.
    pub keep: f32,
    /// 1 - β₁.
    pub mean_rate: f32,
    /// β₂.
    pub square_decay: f32,
    /// 1 - β₂.
    pub square_rate: f32,
    /// √(1 - β₂ᵗ).
    pub root_bias: f32,
    /// learning rate / (1 - β₁ᵗ).
    pub step: f32,
    /// Added to the root of the mean square.
    pub epsilon: f32,
}

impl AdamWStep {
    /// The update of a weight; all four have one length.
    pub fn update(&self, weight: &mut [f32], gradient: &[f32], mean: &mut [f32], square: &mut [f32]) {
        weight
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK)))
            .for_each(|((weight, gradient), (mean, square))| self.run(weight, gradient, mean, square));
    }

    fn run(&self, weight: &mut [f32], gradient: &[f32], mean: &mut [f32], square: &mut [f32]) {
        for (((w, g), m), v) in weight.iter_mut().zip(gradient).zip(mean).zip(square) {
            let g = g * self.scale;
            *m += (g - *m) * self.mean_rate;
            *v = *v * self.square_decay + g * g * self.square_rate;
            let denominator = v.sqrt() / self.root_bias + self.epsilon;
            *w = *w * self.keep - self.step * (*m / denominator);
        }
    }
}
