//! Mean and mean square of every trainable's gradients, wherever they live: beside the weights, or, where a GPU
//! has no room for them, in the host's memory, from which they visit the GPU. The update is the same everywhere.

use std::borrow::Cow;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor, bail};

use crate::error::{Error, Result};
use crate::kernels::AdamWStep;
use crate::tune::Trainable;

/// The moments of all trainables of a run, in order.
pub(super) enum Moments {
    Host(Vec<[Vec<f32>; 2]>),
    #[cfg(feature = "cuda")]
    Device(Vec<crate::kernels::DeviceMoments>),
    #[cfg(feature = "cuda")]
    Paged(Box<crate::kernels::PagedMoments>),
}

/// The update of one trainable.
pub(super) struct Update<'a> {
    /// Its place among the trainables.
    pub(super) index: usize,
    pub(super) step: AdamWStep,
    pub(super) weight: &'a Tensor,
    pub(super) gradient: &'a Tensor,
}

impl Moments {
    /// Zeros: beside the weights, or, when `paged`, in the host's memory beside a GPU.
    ///
    /// # Errors
    /// When there is no room for them, or nothing that updates where the weights lie.
    pub(super) fn zeros(trainables: &[Trainable], paged: bool) -> Result<Self> {
        let Some(first) = trainables.first() else { return Ok(Self::Host(Vec::new())) };
        let device = first.var.device();
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            use crate::kernels::{DeviceMoments, PagedMoments, Paging};
            if paged {
                let counts: Vec<usize> = trainables.iter().map(|one| one.var.elem_count()).collect();
                let zeros = PagedMoments::zeros(device, Paging::USUAL, &counts);
                let zeros = zeros.map_err(|cause| Error::from(cause).at("taking page-locked memory"))?;
                return Ok(Self::Paged(Box::new(zeros)));
            }
            let zeros = trainables.iter().map(|one| DeviceMoments::zeros(&one.var));
            return Ok(Self::Device(zeros.collect::<candle_core::Result<_>>()?));
        }
        if !device.is_cpu() || paged {
            let place = device.location();
            return Err(Error::internal(anyhow::anyhow!("adamw: no update on {place:?}, paged: {paged}")));
        }
        let zeros = trainables.iter().map(|one| [(); 2].map(|()| vec![0.0; one.var.elem_count()]));
        Ok(Self::Host(zeros.collect()))
    }

    /// Mean and mean square of the trainable at `index`, on the host.
    pub(super) fn values(&self, index: usize) -> Result<[Cow<'_, [f32]>; 2]> {
        match self {
            Self::Host(all) => match all.get(index) {
                Some(moments) => Ok(moments.each_ref().map(|values| values.as_slice().into())),
                None => Err(missing(index)),
            },
            #[cfg(feature = "cuda")]
            Self::Device(all) => {
                let moments = all.get(index).ok_or_else(|| missing(index))?;
                Ok(moments.values()?.map(Cow::from))
            }
            #[cfg(feature = "cuda")]
            Self::Paged(paged) => Ok(paged.values(index)?.map(Cow::from)),
        }
    }

    /// Takes up mean and mean square of the trainable at `index`, whose weight is `weight`.
    pub(super) fn set(&mut self, index: usize, weight: &Tensor, [mean, square]: [Vec<f32>; 2]) -> Result<()> {
        if [mean.len(), square.len()] != [weight.elem_count(); 2] {
            return Err(Error::internal(anyhow::anyhow!("adamw: moments that are not of the weight's size")));
        }
        match self {
            Self::Host(all) => *all.get_mut(index).ok_or_else(|| missing(index))? = [mean, square],
            #[cfg(feature = "cuda")]
            Self::Device(all) => {
                let moments = crate::kernels::DeviceMoments::new(weight, &mean, &square)?;
                *all.get_mut(index).ok_or_else(|| missing(index))? = moments;
            }
            #[cfg(feature = "cuda")]
            Self::Paged(paged) => paged.set(index, &mean, &square)?,
        }
        Ok(())
    }

    /// Makes the updates, in rising order.
    pub(super) fn update(&mut self, updates: Vec<Update<'_>>) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Self::Paged(paged) = self {
            let updates = updates.into_iter().map(|Update { index, step, weight, gradient }| {
                let gradient = gradient.contiguous()?;
                Ok(crate::kernels::PagedUpdate { tensor: index, step, weight, gradient })
            });
            return Ok(paged.update(&updates.collect::<candle_core::Result<Vec<_>>>()?)?);
        }
        for Update { index, step, weight, gradient } in updates {
            let moments = Mutex::new(&mut *self);
            weight.inplace_op2(&gradient.contiguous()?, &InPlace { index, step, moments })?;
        }
        Ok(())
    }
}

fn missing(index: usize) -> Error {
    Error::internal(anyhow::anyhow!("adamw: there are no moments of the trainable {index}"))
}

/// The update of one weight, as an operation that writes into it.
struct InPlace<'a> {
    index: usize,
    step: AdamWStep,
    moments: Mutex<&'a mut Moments>,
}

impl InplaceOp2 for InPlace<'_> {
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
        #[cfg_attr(not(feature = "cuda"), expect(irrefutable_let_patterns, reason = "a GPU's moments are elsewhere"))]
        let Moments::Host(all) = &mut **moments else { bail!("adamw: the weight is on the CPU, its moments are not") };
        let Some([mean, square]) = all.get_mut(self.index) else { bail!("adamw: a weight without moments") };
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
        let Moments::Device(all) = &**moments else { bail!("adamw: the weight is on a GPU, its moments are not") };
        let Some(moments) = all.get(self.index) else { bail!("adamw: a weight without moments") };
        moments.update(&self.step, (weight, weight_layout), (gradient, gradient_layout))
    }
}
