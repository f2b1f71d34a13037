//! Copies between a device and page-locked memory of the host, on two streams beside the device's own.

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};
use candle_core::{Result, bail};

use super::device::Cuda;
use super::launch::{Element, View};
use super::paged::{Copier, Queue};

/// A device and its streams for copies.
#[derive(Debug, Clone)]
pub(in crate::kernels) struct Copies {
    cuda: Cuda,
    inward: Arc<CudaStream>,
    outward: Arc<CudaStream>,
}

impl Copies {
    /// For a device.
    pub(super) fn of(cuda: Cuda) -> Result<Self> {
        let context = cuda.stream()?.context().clone();
        let (inward, outward) = (context.new_stream().w()?, context.new_stream().w()?);
        Ok(Self { cuda, inward, outward })
    }

    fn stream(&self, queue: Queue) -> Result<Arc<CudaStream>> {
        match queue {
            Queue::Work => self.cuda.stream(),
            Queue::In => Ok(self.inward.clone()),
            Queue::Out => Ok(self.outward.clone()),
        }
    }

    fn check(pinned: &PinnedHostSlice<f32>, view: View<'_>) -> Result<()> {
        if (view.element, view.len) != (Element::F32, pinned.len()) {
            bail!("cuda: a copy of {} f32 to or from {} {:?}", pinned.len(), view.len, view.element);
        }
        Ok(())
    }
}

impl Copier for Copies {
    type On = Cuda;
    type Pinned = PinnedHostSlice<f32>;
    type Event = Arc<CudaEvent>;

    fn machine(&self) -> &Cuda {
        &self.cuda
    }

    #[expect(unsafe_code, reason = "memory that holds nothing in particular")]
    fn pin(&self, len: usize) -> Result<Self::Pinned> {
        // Memory that the host reads, too, for checkpoints: not combined for writing alone.
        const READABLE: u32 = 0;
        // SAFETY: the values are plain numbers and are written right here.
        let mut pinned = unsafe { self.outward.context().alloc_pinned_with_flags(len, READABLE) }.w()?;
        pinned.as_mut_slice().w()?.fill(0.0);
        Ok(pinned)
    }

    fn len(&self, pinned: &Self::Pinned) -> usize {
        pinned.len()
    }

    fn values<'a>(&self, pinned: &'a Self::Pinned) -> Result<&'a [f32]> {
        pinned.as_slice().w()
    }

    fn values_mut<'a>(&self, pinned: &'a mut Self::Pinned) -> Result<&'a mut [f32]> {
        pinned.as_mut_slice().w()
    }

    #[expect(unsafe_code, reason = "the driver copies to memory by its address")]
    fn copy_in(&self, from: &Self::Pinned, to: View<'_>) -> Result<()> {
        Self::check(from, to)?;
        self.inward.context().bind_to_thread().w()?;
        // SAFETY: both sides have as many values. The host's stay where they are and unchanged, and the device's
        // stay taken, until the copier has settled: `Paged` sees to it.
        unsafe { result::memcpy_htod_async(to.address, from.as_slice().w()?, self.inward.cu_stream()) }.w()
    }

    #[expect(unsafe_code, reason = "the driver copies from memory by its address")]
    fn copy_out(&self, from: View<'_>, to: &mut Self::Pinned) -> Result<()> {
        Self::check(to, from)?;
        self.outward.context().bind_to_thread().w()?;
        // SAFETY: as in `copy_in`; nobody looks at the host's values before the copier has settled.
        unsafe { result::memcpy_dtoh_async(to.as_mut_slice().w()?, from.address, self.outward.cu_stream()) }.w()
    }

    fn record(&self, queue: Queue) -> Result<Self::Event> {
        Ok(Arc::new(self.stream(queue)?.record_event(None).w()?))
    }

    fn wait(&self, queue: Queue, event: &Self::Event) -> Result<()> {
        self.stream(queue)?.wait(event).w()
    }

    fn settle(&self) -> Result<()> {
        for queue in [Queue::In, Queue::Work, Queue::Out] {
            self.stream(queue)?.synchronize().w()?;
        }
        Ok(())
    }
}
