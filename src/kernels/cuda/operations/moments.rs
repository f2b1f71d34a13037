//! The optimizer's moments of tensors on a device: on the device itself, or in the host's memory.

use candle_core::{CudaStorage, DType, Device, Layout, Result, Tensor, bail};

use crate::kernels::AdamWStep;
use crate::kernels::cuda::adamw;
use crate::kernels::cuda::copies::Copies;
use crate::kernels::cuda::device::{Cuda, Held, Memory, view};
use crate::kernels::cuda::launch::{Element, Machine, View};
use crate::kernels::cuda::paged::{Paged, Update};
use crate::kernels::paging::Paging;

/// Both moments of a weight, on its device.
#[derive(Debug)]
pub struct DeviceMoments {
    cuda: Cuda,
    mean: Memory,
    square: Memory,
}

impl DeviceMoments {
    /// Those of a run that begins or goes on, where `weight` lies.
    ///
    /// # Errors
    /// When the weight is not on a GPU, or the GPU has no room.
    pub fn new(weight: &Tensor, mean: &[f32], square: &[f32]) -> Result<Self> {
        let cuda = Cuda::of_tensor(weight)?;
        let (mean, square) = (cuda.upload(mean)?, cuda.upload(square)?);
        Ok(Self { cuda, mean, square })
    }

    /// Those of a run that begins, where `weight` lies.
    ///
    /// # Errors
    /// When the weight is not on a GPU, or the GPU has no room.
    pub fn zeros(weight: &Tensor) -> Result<Self> {
        let cuda = Cuda::of_tensor(weight)?;
        let zeros = || cuda.zeros(Element::F32, weight.elem_count());
        let (mean, square) = (zeros()?, zeros()?);
        Ok(Self { cuda, mean, square })
    }

    /// Mean and mean square, on the host.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn values(&self) -> Result<[Vec<f32>; 2]> {
        Ok([self.cuda.download(&self.mean)?, self.cuda.download(&self.square)?])
    }

    /// One update of a weight, in place.
    ///
    /// # Errors
    /// When the weight is not f32, or the sizes differ.
    pub fn update(
        &self,
        step: &AdamWStep,
        weight: (&CudaStorage, &Layout),
        gradient: (&CudaStorage, &Layout),
    ) -> Result<()> {
        let (weight, gradient) = (view("adamw", weight.0, weight.1)?, view("adamw", gradient.0, gradient.1)?);
        let weight = trained(weight)?;
        step.cuda_update(&self.cuda, [weight, gradient, self.cuda.view(&self.mean), self.cuda.view(&self.square)])
    }
}

fn trained(weight: View<'_>) -> Result<View<'_>> {
    if weight.element != Element::F32 {
        bail!("adamw: weights that train are f32, not {:?}", weight.element);
    }
    Ok(weight)
}

/// The update of one tensor whose moments are paged.
#[derive(Debug)]
pub struct PagedUpdate<'a> {
    /// Which of the tensors that the moments were made for.
    pub tensor: usize,
    /// What is done.
    pub step: AdamWStep,
    /// f32, contiguous, on the moments' device; written.
    pub weight: &'a Tensor,
    /// As many values, contiguous.
    pub gradient: Tensor,
}

/// Both moments of all weights of a run, in page-locked memory of the host.
pub struct PagedMoments {
    device: Device,
    paged: Paged<Copies>,
}

impl PagedMoments {
    /// Zeros, for weights of so many values each on a GPU.
    ///
    /// # Errors
    /// When `device` is no GPU, or host or GPU have no room.
    pub fn zeros(device: &Device, paging: Paging, counts: &[usize]) -> Result<Self> {
        let copies = Copies::of(Cuda::of_device(device)?)?;
        Ok(Self { device: device.clone(), paged: Paged::zeros(copies, paging, counts)? })
    }

    /// Mean and mean square of a weight.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn values(&self, tensor: usize) -> Result<[Vec<f32>; 2]> {
        self.paged.values(tensor)
    }

    /// Sets mean and mean square of a weight.
    ///
    /// # Errors
    /// When the sizes differ, or the GPU fails.
    pub fn set(&mut self, tensor: usize, mean: &[f32], square: &[f32]) -> Result<()> {
        self.paged.set(tensor, mean, square)
    }

    /// One update of each of these weights, in place and in rising order.
    ///
    /// # Errors
    /// When a weight is not f32 on the moments' GPU, or sizes differ.
    pub fn update(&mut self, updates: &[PagedUpdate<'_>]) -> Result<()> {
        const OP: &str = "adamw";
        let held: Vec<_> =
            updates.iter().map(|one| [one.weight, &one.gradient].map(|tensor| Held::of(OP, tensor))).collect();
        let mut given = Vec::with_capacity(updates.len());
        for (one, [weight, gradient]) in updates.iter().zip(&held) {
            if !one.weight.device().same_device(&self.device) || !one.gradient.device().same_device(&self.device) {
                bail!("{OP}: weight and gradient belong on the device of the moments");
            }
            let (weight, gradient) = (trained(weight.view()?)?, gradient.view()?);
            given.push(Update { tensor: one.tensor, step: one.step, weight, gradient });
        }
        self.paged.update(&given)
    }
}

/// Σ x² over a tensor on a GPU, f32 or bf16.
///
/// # Errors
/// When the GPU fails.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    debug_assert!(matches!(x.dtype(), DType::F32 | DType::BF16));
    let held = Held::of("norm", x);
    adamw::sum_of_squares(&Cuda::of_tensor(x)?, held.view()?)
}
