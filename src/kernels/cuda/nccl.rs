//! Sums over the GPUs of one process by NCCL, from GPU to GPU. Every GPU is a rank and is driven by a thread of its
//! own; the sums are made on the GPU's one stream, in the place of what was brought. Which order NCCL adds up in
//! depends on how the GPUs are connected, but every rank gets the same bits.
//!
//! A rank that fails must not leave the others waiting on their GPUs for what never comes: each waits for its
//! sums with an eye on the others, and gives its own part of the connection up when one of them has failed.

use std::ffi::{c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use candle_core::cuda_backend::cudarc::nccl::result::{self, NcclError};
use candle_core::cuda_backend::cudarc::nccl::sys;
use candle_core::{Device, Result, Tensor, bail};

use super::device::{Cuda, Held};
use super::launch::{Element, View};

/// What the operation is called in messages.
const OP: &str = "all-reduce";

/// One GPU's end of the connection.
struct End {
    comm: sys::ncclComm_t,
}

#[expect(unsafe_code, reason = "NCCL's handle is a pointer")]
// SAFETY: NCCL lets any one thread at a time use a communicator, and it is only reached through a mutex.
unsafe impl Send for End {}

/// The connection of some GPUs of this process.
pub struct Nccl {
    /// Of each rank; none when it was given up.
    ends: Vec<Mutex<Option<End>>>,
    /// Some rank has failed.
    failed: AtomicBool,
}

/// What NCCL says went wrong.
fn said(error: &NcclError) -> candle_core::Error {
    candle_core::Error::msg(format!("{OP}: NCCL says {:?}", error.0))
}

impl Nccl {
    /// Connects these GPUs, all different; the first is rank 0.
    ///
    /// # Errors
    /// When one is no GPU, or NCCL refuses.
    #[expect(unsafe_code, reason = "NCCL writes its handles by address")]
    pub fn open(devices: &[Device]) -> Result<Self> {
        let mut numbers: Vec<c_int> = Vec::with_capacity(devices.len());
        for device in devices {
            numbers.push(Cuda::of_device(device)?.stream()?.context().ordinal() as c_int);
        }
        let mut comms = vec![std::ptr::null_mut(); devices.len()];
        // SAFETY: there is room for a handle of every device, and as many numbers.
        unsafe { result::comm_init_all(comms.as_mut_ptr(), numbers.len() as c_int, numbers.as_ptr()) }
            .map_err(|error| said(&error))?;
        let ends = comms.into_iter().map(|comm| Mutex::new(Some(End { comm }))).collect();
        Ok(Self { ends, failed: AtomicBool::new(false) })
    }

    /// Tensors that may be summed in their place: those that share memory with another one are copied.
    ///
    /// # Errors
    /// When one is not contiguous f32 on a GPU, or the GPU has no room.
    pub fn own(tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let mut ranges = Vec::with_capacity(tensors.len());
        for tensor in &tensors {
            let held = Held::of(OP, tensor);
            let view = values(held.view()?)?;
            ranges.push((view.address, view.address + (view.len * Element::F32.size()) as u64));
        }
        let shared = overlapping(&ranges);
        let own =
            tensors.into_iter().zip(shared).map(|(tensor, shared)| if shared { tensor.copy() } else { Ok(tensor) });
        own.collect()
    }

    /// Puts the sums over all ranks in the place of these tensors of `rank`, which share no memory. Called by every
    /// rank at the same time, each on a thread of its own, with as many tensors of the same sizes.
    ///
    /// # Errors
    /// When NCCL or the GPU fails, here or on another rank; then no more sums can be had.
    pub fn sum_in_place(&self, rank: usize, tensors: &[Tensor]) -> Result<()> {
        let Some(end) = self.ends.get(rank) else { bail!("{OP}: there is no rank {rank}") };
        let Ok(mut end) = end.lock() else { bail!("{OP}: rank {rank} panicked before") };
        let summed = match &*end {
            Some(open) if !self.failed.load(Ordering::Acquire) => self.sum(open, tensors),
            _ => Err(candle_core::Error::msg(format!("{OP}: the connection of the GPUs was given up"))),
        };
        if summed.is_err() {
            self.failed.store(true, Ordering::Release);
            if let Some(end) = end.take() {
                end.give_up();
            }
        }
        summed
    }

    fn sum(&self, end: &End, tensors: &[Tensor]) -> Result<()> {
        let Some(first) = tensors.first() else { return Ok(()) };
        let stream = Cuda::of_tensor(first)?.stream()?;
        let held: Vec<Held<'_>> = tensors.iter().map(|tensor| Held::of(OP, tensor)).collect();
        let views = held.iter().map(|held| values(held.view()?)).collect::<Result<Vec<_>>>()?;
        result::group_start().map_err(|error| said(&error))?;
        let given = views.iter().try_for_each(|view| end.give(*view, stream.cu_stream().cast()));
        // The group ends whatever happened in it, or the next one would be inside it.
        let ended = result::group_end().map_err(|error| said(&error));
        given?;
        ended?;
        self.wait(end, &stream.record_event(None).w()?)
    }

    /// Until the sums are there; an error as soon as some rank has failed.
    fn wait(&self, end: &End, sums: &CudaEvent) -> Result<()> {
        while !sums.try_is_complete().w()? {
            if self.failed.load(Ordering::Acquire) {
                bail!("{OP}: another GPU of this run failed");
            }
            end.check()?;
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl End {
    #[expect(unsafe_code, reason = "NCCL takes addresses")]
    fn give(&self, view: View<'_>, stream: sys::cudaStream_t) -> Result<()> {
        let (from, to) = (view.address as *const c_void, view.address as *mut c_void);
        let (kind, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        // SAFETY: the memory has so many f32, is in nobody else's hands, and what is done with it later is given to
        // the same stream.
        unsafe { result::all_reduce(from, to, view.len, kind, sum, self.comm, stream) }
            .map(drop)
            .map_err(|error| said(&error))
    }

    /// An error when something went wrong that no call has reported.
    #[expect(unsafe_code, reason = "NCCL writes its answer by address")]
    fn check(&self) -> Result<()> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is open, and the answer lives through the call.
        unsafe { sys::ncclCommGetAsyncError(self.comm, &raw mut state) }.result().map_err(|error| said(&error))?;
        state.result().map(drop).map_err(|error| said(&error))
    }

    /// Ends what is still waiting on this GPU.
    #[expect(unsafe_code, reason = "NCCL takes its handle back")]
    fn give_up(self) {
        // SAFETY: the communicator is open and nobody uses it after this. There is nobody to tell of a failure who has
        // not been told already.
        let _ = unsafe { result::comm_abort(self.comm) };
    }
}

impl Drop for Nccl {
    #[expect(unsafe_code, reason = "NCCL takes its handles back")]
    fn drop(&mut self) {
        for end in &mut self.ends {
            let end = end.get_mut().ok().and_then(Option::take);
            // SAFETY: the communicator is open, all its sums are there, and nobody uses it after this.
            let _ = end.map(|end| unsafe { result::comm_destroy(end.comm) });
        }
    }
}

fn values(view: View<'_>) -> Result<View<'_>> {
    if view.element != Element::F32 {
        bail!("{OP}: gradients are f32, not {:?}", view.element);
    }
    Ok(view)
}

/// Whether each range of addresses shares some with another one that is not to be copied.
fn overlapping(ranges: &[(u64, u64)]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|at| ranges[*at]);
    let (mut shared, mut taken) = (vec![false; ranges.len()], 0);
    for at in order {
        let (from, to) = ranges[at];
        if to > from {
            shared[at] = from < taken;
            taken = taken.max(to);
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_tensors_that_share_memory_all_but_one_are_copied() {
        let ranges = [(100, 200), (300, 400), (100, 200), (250, 300), (390, 410), (150, 150)];
        assert_eq!(overlapping(&ranges), [false, false, true, false, true, false]);
    }
}
