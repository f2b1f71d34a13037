//! AdamW over all trainables; the arithmetic of one update is `kernels::AdamWStep`. Its state lies where
//! `Moments` say, and is named tensors, because a checkpoint must hold all of it.

use candle_core::{CpuStorage, Device, Storage, Tensor};

use super::moments::{Moments, Update};
use crate::error::{Error, Result};
use crate::kernels::AdamWStep;
use crate::tune::Trainable;

/// What does not change during a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWSettings {
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) epsilon: f64,
    /// Applied to matrices only: pulling norms and biases to zero does harm (as in transformers' Trainer).
    pub(crate) weight_decay: f64,
    /// The moments live in the host's memory and visit the GPU that the weights lie on.
    pub(crate) paged: bool,
}

/// The optimizer's state for a list of trainables.
pub(crate) struct AdamW {
    settings: AdamWSettings,
    /// Updates so far: skipped steps do not count.
    updates: u64,
    moments: Moments,
}

impl AdamW {
    /// No update yet.
    ///
    /// # Errors
    /// When there is no room for the state where it is to live.
    pub(crate) fn new(trainables: &[Trainable], settings: AdamWSettings) -> Result<Self> {
        Ok(Self { settings, updates: 0, moments: Moments::zeros(trainables, settings.paged)? })
    }

    /// One update of every trainable that got a gradient; each gradient counts `scale` times.
    ///
    /// # Errors
    /// When a tensor is not f32, or the device fails.
    pub(crate) fn update(
        &mut self,
        trainables: &[Trainable],
        gradients: &[Option<Tensor>],
        scale: f64,
        learning_rate: f64,
    ) -> Result<()> {
        self.updates += 1;
        let AdamWSettings { beta1, beta2, epsilon, weight_decay, .. } = self.settings;
        let count = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let first_bias = 1.0 - beta1.powi(count);
        let second_bias = 1.0 - beta2.powi(count);
        let mut updates = Vec::with_capacity(trainables.len());
        for (index, (one, gradient)) in trainables.iter().zip(gradients).enumerate() {
            let Some(gradient) = gradient else { continue };
            let decay = if one.var.dims().len() >= 2 { weight_decay } else { 0.0 };
            let step = AdamWStep {
                scale: scale as f32,
                keep: (1.0 - learning_rate * decay) as f32,
                mean_rate: (1.0 - beta1) as f32,
                square_decay: beta2 as f32,
                square_rate: (1.0 - beta2) as f32,
                root_bias: second_bias.sqrt() as f32,
                step: (learning_rate / first_bias) as f32,
                epsilon: epsilon as f32,
            };
            updates.push(Update { index, step, weight: &one.var, gradient });
        }
        self.moments.update(updates)
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
        for (index, one) in trainables.iter().enumerate() {
            let [mean, square] = self.moments.values(index)?;
            let tensor = |values: &[f32]| Tensor::from_slice(values, one.var.shape(), &Device::Cpu);
            tensors.push((mean_of(one), tensor(&mean)?));
            tensors.push((square_of(one), tensor(&square)?));
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
        for (index, one) in trainables.iter().enumerate() {
            let values =
                |name: String| -> Result<Vec<f32>> { Ok(read(&name, one.var.dims())?.flatten_all()?.to_vec1()?) };
            self.moments.set(index, &one.var, [values(mean_of(one))?, values(square_of(one))?])?;
        }
        self.updates = updates;
        Ok(())
    }

    /// Takes up what [`AdamW::tensors`] gave after so many updates.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub(crate) fn take_up(
        &mut self,
        trainables: &[Trainable],
        updates: u64,
        tensors: &[(String, Tensor)],
    ) -> Result<()> {
        self.restore(trainables, updates, |name, _| {
            let found = tensors.iter().find(|(known, _)| known == name);
            let missing = || Error::internal(anyhow::anyhow!("among the moments there is no {name}"));
            found.map(|(_, tensor)| tensor.clone()).ok_or_else(missing)
        })
    }
}

fn mean_of(one: &Trainable) -> String {
    format!("{}.exp_avg", one.name)
}

fn square_of(one: &Trainable) -> String {
    format!("{}.exp_avg_sq", one.name)
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
    use candle_core::Var;

    use super::*;
    use crate::tune::Place;

    fn trainable(values: &[f32], shape: &[usize]) -> Trainable {
        let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        Trainable { name: "w".into(), var: Var::from_tensor(&tensor).unwrap(), place: Place::Top }
    }

    fn weights(one: &Trainable) -> Vec<f32> {
        one.var.flatten_all().unwrap().to_vec1().unwrap()
    }

    const SETTINGS: AdamWSettings =
        AdamWSettings { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, paged: false };

    fn gradient(step: usize) -> Option<Tensor> {
        let values: [[f32; 4]; 3] = [[0.3, -1.0, 0.02, 5.0], [-0.1, -0.8, 0.0, 4.0], [0.7, 0.5, -0.03, -2.0]];
        Some(Tensor::from_slice(&values[step], (2, 2), &Device::Cpu).unwrap())
    }

    /// torch 2.15.0: AdamW([w], lr=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1), the gradients above.
    #[test]
    fn three_updates_equal_those_of_torch() {
        let weight = trainable(&[0.5, -0.25, 1.0, 0.0], &[2, 2]);
        let mut optimizer = AdamW::new(std::slice::from_ref(&weight), SETTINGS).unwrap();
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
            .unwrap()
            .update(std::slice::from_ref(&one), &[gradient(0)], 0.5, 0.1)
            .unwrap();
        AdamW::new(std::slice::from_ref(&other), SETTINGS)
            .unwrap()
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
        AdamW::new(&both, SETTINGS).unwrap().update(&both, &[Some(zero), None], 1.0, 0.1).unwrap();
        assert_eq!((weights(&both[0]), weights(&both[1])), (vec![1.0, 2.0], vec![3.0; 4]));
    }

    #[test]
    fn an_optimizer_that_was_saved_and_restored_goes_on_with_the_same_bits() {
        let run = |interrupt: bool| {
            let weight = trainable(&[0.5, -0.25, 1.0, 0.0], &[2, 2]);
            let mut optimizer = AdamW::new(std::slice::from_ref(&weight), SETTINGS).unwrap();
            for step in 0..3 {
                if interrupt {
                    let tensors = optimizer.tensors(std::slice::from_ref(&weight)).unwrap();
                    let updates = optimizer.updates();
                    optimizer = AdamW::new(std::slice::from_ref(&weight), SETTINGS).unwrap();
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

    #[test]
    fn moments_are_not_paged_where_there_is_no_gpu_to_page_them_to() {
        let weight = trainable(&[1.0; 4], &[2, 2]);
        assert!(AdamW::new(std::slice::from_ref(&weight), AdamWSettings { paged: true, ..SETTINGS }).is_err());
    }

    /// Three updates of two weights on a GPU, one of them once without a gradient, with a save and a restore in
    /// between; weights and state after them.
    #[cfg(feature = "cuda")]
    fn on_gpu(gpu: &Device, paged: bool) -> Vec<Vec<f32>> {
        // Longer than a page, so that a page ends in the middle of one and the other shares its last page.
        let counts = [crate::kernels::Paging::USUAL.page * 4 + 1000, 70_001];
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|at| ((at * 31 + seed * 17) % 1009) as f32 / 1009.0 - 0.5).collect()
        };
        let tensor =
            |which: usize, seed: usize| Tensor::from_vec(values(counts[which], seed), counts[which], gpu).unwrap();
        let both: Vec<Trainable> = (0..2)
            .map(|which| Trainable {
                name: format!("w{which}"),
                var: Var::from_tensor(&tensor(which, which)).unwrap(),
                place: Place::Top,
            })
            .collect();
        let settings = AdamWSettings { paged, ..SETTINGS };
        let mut optimizer = AdamW::new(&both, settings).unwrap();
        for step in 0..3 {
            let gradients = [Some(tensor(0, 5 + step)), (step != 1).then(|| tensor(1, 9 + step))];
            optimizer.update(&both, &gradients, 0.7, 0.01).unwrap();
            let tensors = optimizer.tensors(&both).unwrap();
            let read = |name: &str, _: &[usize]| Ok(tensors.iter().find(|(own, _)| own == name).unwrap().1.clone());
            let updates = optimizer.updates();
            optimizer = AdamW::new(&both, settings).unwrap();
            optimizer.restore(&both, updates, read).unwrap();
        }
        let state = optimizer.tensors(&both).unwrap().into_iter().map(|(_, tensor)| tensor.to_vec1().unwrap());
        both.iter().map(weights).chain(state).collect()
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn paged_moments_give_the_bits_of_those_on_the_device() {
        match crate::train::TrainingDevice::Cuda(0).open() {
            Ok(gpu) => assert!(on_gpu(&gpu, true) == on_gpu(&gpu, false)),
            Err(_) => eprintln!("skipped: no GPU"),
        }
    }

    const GOLDEN: [[f32; 4]; 3] = [
        [0.4475, -0.19875, 0.945_000_05, -0.05],
        [0.425_047_16, -0.148_213_06, 0.906_342_7, -0.099_293_21],
        [0.388_041_85, -0.123_282_164, 0.913_920_76, -0.126_040_62],
    ];
}
