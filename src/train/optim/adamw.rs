//! AdamW over all trainables; the arithmetic of one update is `kernels::AdamWStep`. Its state lies where the
//! weights lie, and is named tensors, because a checkpoint must hold all of it.

use std::borrow::Cow;
use std::sync::Mutex;

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Storage, Tensor, bail};

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
}

/// Mean and mean square of one trainable's gradients.
enum Moments {
    Host {
        mean: Vec<f32>,
        square: Vec<f32>,
    },
    #[cfg(feature = "cuda")]
    Device(crate::kernels::DeviceMoments),
}

impl Moments {
    /// These moments, where `weight` lies.
    fn new(weight: &Tensor, mean: Vec<f32>, square: Vec<f32>) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if weight.device().is_cuda() {
            return Ok(Self::Device(crate::kernels::DeviceMoments::new(weight, &mean, &square)?));
        }
        if !weight.device().is_cpu() {
            return Err(Error::internal(anyhow::anyhow!("adamw: no update on {:?}", weight.device().location())));
        }
        Ok(Self::Host { mean, square })
    }

    fn zeros(weight: &Tensor) -> Result<Self> {
        let zeros = vec![0.0; weight.elem_count()];
        Self::new(weight, zeros.clone(), zeros)
    }

    /// Mean and mean square on the host.
    fn values(&self) -> Result<[Cow<'_, [f32]>; 2]> {
        match self {
            Self::Host { mean, square } => Ok([mean.into(), square.into()]),
            #[cfg(feature = "cuda")]
            Self::Device(moments) => {
                let (mean, square) = moments.values()?;
                Ok([mean.into(), square.into()])
            }
        }
    }
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
    ///
    /// # Errors
    /// When the device has no room for the state.
    pub(crate) fn new(trainables: &[Trainable], settings: AdamWSettings) -> Result<Self> {
        let moments = trainables.iter().map(|one| Moments::zeros(&one.var)).collect::<Result<_>>()?;
        Ok(Self { settings, updates: 0, moments })
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
            let update = Update { step, moments: Mutex::new(moments) };
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
            let [mean, square] = moments.values()?;
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
        for (one, moments) in trainables.iter().zip(&mut self.moments) {
            let values =
                |name: String| -> Result<Vec<f32>> { Ok(read(&name, one.var.dims())?.flatten_all()?.to_vec1()?) };
            *moments = Moments::new(&one.var, values(mean_of(one))?, values(square_of(one))?)?;
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
    step: AdamWStep,
    moments: Mutex<&'a mut Moments>,
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
        let (mean, square) = match &mut **moments {
            Moments::Host { mean, square } => (mean, square),
            #[cfg(feature = "cuda")]
            Moments::Device(_) => bail!("adamw: the weight is on the CPU, its moments are not"),
        };
        if to - from != end - start || mean.len() != end - start {
            bail!("adamw: a weight of {} values, a gradient of {}", to - from, end - start);
        }
        self.step.update(&mut weight[from..to], &gradient[start..end], mean, square);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        weight: &mut candle_core::CudaStorage,
        weight_layout: &Layout,
        gradient: &candle_core::CudaStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let Ok(moments) = self.moments.lock() else { bail!("adamw: the state is lost") };
        let Moments::Device(moments) = &**moments else { bail!("adamw: the weight is on a GPU, its moments are not") };
        moments.update(&self.step, (weight, weight_layout), (gradient, gradient_layout))
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

    const SETTINGS: AdamWSettings = AdamWSettings { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 };

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

    const GOLDEN: [[f32; 4]; 3] = [
        [0.4475, -0.19875, 0.945_000_05, -0.05],
        [0.425_047_16, -0.148_213_06, 0.906_342_7, -0.099_293_21],
        [0.388_041_85, -0.123_282_164, 0.913_920_76, -0.126_040_62],
    ];
}
