//! AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) in the order of operations of
//! `torch.optim.AdamW`, written in place: one pass over weight, gradient and both moments. Its state
//! is named tensors, because a checkpoint must hold all of it.

use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp2, Layout, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::tune::Trainable;

/// Elements per parallel task.
const CHUNK: usize = 1 << 14;

/// What does not change during a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWSettings {
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) epsilon: f64,
    /// Applied to matrices only: pulling norms and biases to zero does harm (as in transformers' Trainer).
    pub(crate) weight_decay: f64,
}

/// Mean and mean square of one trainable's gradients.
struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// The optimizer's state for a list of trainables.
pub(crate) struct AdamW {
    settings: AdamWSettings,
    /// Updates so far: skipped steps do not count.
    updates: u64,
    moments: Vec<Moments>,
}

impl AdamW {
    /// No update yet.
    pub(crate) fn new(trainables: &[Trainable], settings: AdamWSettings) -> Self {
        let zeros = |one: &Trainable| {
            let count = one.var.elem_count();
            Moments { mean: vec![0.0; count], square: vec![0.0; count] }
        };
        Self { settings, updates: 0, moments: trainables.iter().map(zeros).collect() }
    }

    /// One update of every trainable that got a gradient; each gradient counts `scale` times.
    ///
    /// # Errors
    /// When a tensor is not contiguous f32 on the CPU.
    pub(crate) fn update(
        &mut self,
        trainables: &[Trainable],
        gradients: &[Option<Tensor>],
        scale: f64,
        learning_rate: f64,
    ) -> Result<()> {
        self.updates += 1;
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        let updates = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let first_bias = 1.0 - beta1.powi(updates);
        let second_bias = 1.0 - beta2.powi(updates);
        for ((one, gradient), moments) in trainables.iter().zip(gradients).zip(&mut self.moments) {
            let Some(gradient) = gradient else { continue };
            let decay = if one.var.dims().len() >= 2 { weight_decay } else { 0.0 };
            let update = Update {
                moments: Mutex::new(moments),
                scale: scale as f32,
                keep: (1.0 - learning_rate * decay) as f32,
                mean_rate: (1.0 - beta1) as f32,
                square_decay: beta2 as f32,
                square_rate: (1.0 - beta2) as f32,
                root_bias: second_bias.sqrt() as f32,
                step: (learning_rate / first_bias) as f32,
                epsilon: epsilon as f32,
            };
            one.var.inplace_op2(&gradient.contiguous()?, &update)?;
        }
        Ok(())
    }

    /// How many updates were made.
    pub(crate) fn updates(&self) -> u64 {
        self.updates
    }

    /// The state as named tensors, for a checkpoint.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn tensors(&self, trainables: &[Trainable]) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::with_capacity(2 * trainables.len());
        for (one, moments) in trainables.iter().zip(&self.moments) {
            let device = one.var.device();
            tensors.push((mean_of(one), Tensor::from_slice(&moments.mean, one.var.shape(), device)?));
            tensors.push((square_of(one), Tensor::from_slice(&moments.square, one.var.shape(), device)?));
        }
        Ok(tensors)
    }

    /// Takes up the state of a checkpoint; `read` finds a tensor by name and shape.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub(crate) fn restore(
        &mut self,
        trainables: &[Trainable],
        updates: u64,
        read: impl Fn(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<()> {
        for (one, moments) in trainables.iter().zip(&mut self.moments) {
            moments.mean = read(&mean_of(one), one.var.dims())?.flatten_all()?.to_vec1()?;
            moments.square = read(&square_of(one), one.var.dims())?.flatten_all()?.to_vec1()?;
        }
        self.updates = updates;
        Ok(())
    }
}

fn mean_of(one: &Trainable) -> String {
    format!("{}.exp_avg", one.name)
}

fn square_of(one: &Trainable) -> String {
    format!("{}.exp_avg_sq", one.name)
}

/// The update of one weight, as an operation that writes into it.
struct Update<'a> {
    moments: Mutex<&'a mut Moments>,
    scale: f32,
    keep: f32,
    mean_rate: f32,
    square_decay: f32,
    square_rate: f32,
    root_bias: f32,
    step: f32,
    epsilon: f32,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (Some((from, to)), Some((start, end))) =
            (weight_layout.contiguous_offsets(), gradient_layout.contiguous_offsets())
        else {
            bail!("adamw: weight and gradient must be contiguous");
        };
        let (CpuStorage::F32(weight), CpuStorage::F32(gradient)) = (weight, gradient) else {
            bail!("adamw: weight and gradient must be f32");
        };
        let Ok(mut moments) = self.moments.lock() else { bail!("adamw: the state is lost") };
        let Moments { mean, square } = &mut **moments;
        if to - from != end - start || mean.len() != end - start {
            bail!("adamw: a weight of {} values, a gradient of {}", to - from, end - start);
        }
        weight[from..to]
            .par_chunks_mut(CHUNK)
            .zip(gradient[start..end].par_chunks(CHUNK))
            .zip(mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK)))
            .for_each(|((weight, gradient), (mean, square))| self.run(weight, gradient, mean, square));
        Ok(())
    }
}

impl Update<'_> {
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

/// Looks at the values of a contiguous f32 tensor on the CPU.
pub(super) fn values<T>(tensor: &Tensor, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(look(&values[start..end])),
        _ => Err(Error::internal(anyhow::anyhow!("a gradient is not contiguous f32 on the CPU"))),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::tune::Place;

    fn trainable(values: &[f32], shape: &[usize]) -> Trainable {
        let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        Trainable { name: "w".into(), var: Var::from_tensor(&tensor).unwrap(), place: Place::Top }
    }

    fn weights(one: &Trainable) -> Vec<f32> {
        one.var.flatten_all().unwrap().to_vec1().unwrap()
    }

    const SETTINGS: AdamWSettings = AdamWSettings { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 };

    fn gradient(step: usize) -> Option<Tensor> {
        let values: [[f32; 4]; 3] = [[0.3, -1.0, 0.02, 5.0], [-0.1, -0.8, 0.0, 4.0], [0.7, 0.5, -0.03, -2.0]];
        Some(Tensor::from_slice(&values[step], (2, 2), &Device::Cpu).unwrap())
    }

    /// torch 2.15.0: AdamW([w], lr=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1), the gradients above.
    #[test]
    fn three_updates_equal_those_of_torch() {
        let weight = trainable(&[0.5, -0.25, 1.0, 0.0], &[2, 2]);
        let mut optimizer = AdamW::new(std::slice::from_ref(&weight), SETTINGS);
        let expected = GOLDEN;
        for (step, expected) in expected.iter().enumerate() {
            optimizer.update(std::slice::from_ref(&weight), &[gradient(step)], 1.0, 0.05).unwrap();
            for (ours, theirs) in weights(&weight).iter().zip(expected) {
                assert!((ours - theirs).abs() < 1e-6, "step {step}: {ours}, torch {theirs}");
            }
        }
    }

    #[test]
    fn a_scaled_gradient_is_the_gradient_scaled() {
        let (one, other) = (trainable(&[1.0; 4], &[2, 2]), trainable(&[1.0; 4], &[2, 2]));
        let half = gradient(0).map(|g| (g * 0.5).unwrap());
        AdamW::new(std::slice::from_ref(&one), SETTINGS)
            .update(std::slice::from_ref(&one), &[gradient(0)], 0.5, 0.1)
            .unwrap();
        AdamW::new(std::slice::from_ref(&other), SETTINGS)
            .update(std::slice::from_ref(&other), &[half], 1.0, 0.1)
            .unwrap();
        assert_eq!(weights(&one), weights(&other));
    }

    #[test]
    fn vectors_are_not_decayed_and_weights_without_gradient_stay() {
        let vector = trainable(&[1.0, 2.0], &[2]);
        let untouched = trainable(&[3.0; 4], &[2, 2]);
        let both = [vector, untouched];
        let zero = Tensor::from_slice(&[0f32, 0.0], 2, &Device::Cpu).unwrap();
        AdamW::new(&both, SETTINGS).update(&both, &[Some(zero), None], 1.0, 0.1).unwrap();
        assert_eq!((weights(&both[0]), weights(&both[1])), (vec![1.0, 2.0], vec![3.0; 4]));
    }

    #[test]
    fn an_optimizer_that_was_saved_and_restored_goes_on_with_the_same_bits() {
        let run = |interrupt: bool| {
            let weight = trainable(&[0.5, -0.25, 1.0, 0.0], &[2, 2]);
            let mut optimizer = AdamW::new(std::slice::from_ref(&weight), SETTINGS);
            for step in 0..3 {
                if interrupt {
                    let tensors = optimizer.tensors(std::slice::from_ref(&weight)).unwrap();
                    let updates = optimizer.updates();
                    optimizer = AdamW::new(std::slice::from_ref(&weight), SETTINGS);
                    let read =
                        |name: &str, _: &[usize]| Ok(tensors.iter().find(|(own, _)| own == name).unwrap().1.clone());
                    optimizer.restore(std::slice::from_ref(&weight), updates, read).unwrap();
                }
                optimizer.update(std::slice::from_ref(&weight), &[gradient(step)], 0.3, 0.05).unwrap();
            }
            weights(&weight)
        };
        assert_eq!(run(false), run(true));
    }

    const GOLDEN: [[f32; 4]; 3] = [
        [0.4475, -0.19875, 0.945_000_05, -0.05],
        [0.425_047_16, -0.148_213_06, 0.906_342_7, -0.099_293_21],
        [0.388_041_85, -0.123_282_164, 0.913_920_76, -0.126_040_62],
    ];
}
