//! For the tests of training: gradients through a whole decoder, checked against what the loss is a little beside.

use candle_core::{Device, Tensor};

use super::backprop::{Gradients, MicroBatch, evaluate, pass};
use super::objective::Criterion;
use crate::models::Decoder;
use crate::rng::Rng;
use crate::tune::{Method, Trainable};

/// Moves weights far from their small beginnings, so that every path through the model matters.
pub(super) fn shake(trainables: &[Trainable]) {
    for one in trainables {
        let noise = Rng::new(77, &one.name, 0).normals(one.var.elem_count(), 0.3);
        let noise = Tensor::from_vec(noise, one.var.dims(), &Device::Cpu).unwrap();
        one.var.set(&(one.var.as_detached_tensor() + noise).unwrap()).unwrap();
    }
}

/// Moves each weight along a random direction: the loss must change as the gradient says, up to `tolerance` of the
/// gradient's length.
#[track_caller]
pub(super) fn assert_slopes(
    decoder: &Decoder,
    method: &dyn Method,
    criterion: &dyn Criterion,
    batch: &MicroBatch,
    tolerance: f64,
) {
    let trainables = method.trainables();
    let mut gradients = Gradients::new(trainables);
    pass(decoder, trainables, method, criterion, batch, &mut gradients, true).unwrap();
    for (one, gradient) in trainables.iter().zip(gradients.sums()) {
        let gradient: Vec<f32> = gradient.as_ref().unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let direction = Rng::new(31, &one.name, 0).normals(gradient.len(), 1.0);
        let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let length: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let direction = Tensor::from_vec(direction, one.var.dims(), &Device::Cpu).unwrap();
        let start = one.var.as_detached_tensor().copy().unwrap();
        let at = |step: f64| {
            one.var.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
            evaluate(decoder, trainables, method, criterion, batch).unwrap().loss_sum
        };
        // Five points: the third derivative along so long a direction is not small.
        let step = 2e-3;
        let measured = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
        at(0.0);
        assert!((measured - slope).abs() < tolerance * length, "{}: {measured}, gradient says {slope}", one.name);
    }
}
