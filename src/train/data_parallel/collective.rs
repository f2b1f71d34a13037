//! All-reduce: every slot brings its gradients and gets the sum of what all brought. Slots on several GPUs do it with
//! NCCL from GPU to GPU (feature `nccl`), all others through the memory of the process that they share.

use std::sync::{Barrier, RwLock};

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// Adds up tensors of the same shapes, some from every rank, and gives each rank the sums, where its own lay.
pub(super) trait Collective: Sync {
    /// What a rank is going to bring, made ready. What can fail for one rank alone fails here, before any rank waits
    /// for the others.
    ///
    /// # Errors
    /// When the device has no room.
    fn ready(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        Ok(tensors)
    }

    /// Called by every rank, each on a thread of its own; returns when all have called. Every rank gets the same bits.
    ///
    /// # Errors
    /// When the ranks bring different lengths, or one of them failed.
    fn all_reduce(&self, rank: usize, tensors: Vec<Tensor>) -> Result<Vec<Tensor>>;
}

/// The collective of slots on these devices.
///
/// # Errors
/// When NCCL cannot connect the GPUs.
pub(super) fn between(devices: &[Device]) -> Result<Box<dyn Collective>> {
    #[cfg(feature = "nccl")]
    if devices.iter().all(Device::is_cuda) {
        return Ok(Box::new(crate::kernels::Nccl::open(devices)?));
    }
    Ok(Box::new(InProcess::new(devices.len())))
}

#[cfg(feature = "nccl")]
impl Collective for crate::kernels::Nccl {
    fn ready(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        Ok(Self::own(tensors)?)
    }

    fn all_reduce(&self, rank: usize, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        self.sum_in_place(rank, &tensors)?;
        Ok(tensors)
    }
}

/// The collective of slots that share this process's memory. As rings do it: each rank adds up one part
/// of the buffers (reduce-scatter) and takes the other parts from the others (all-gather).
pub(super) struct InProcess {
    barrier: Barrier,
    given: Vec<RwLock<Vec<f32>>>,
    sums: Vec<RwLock<Vec<f32>>>,
}

impl InProcess {
    /// For so many ranks.
    pub(super) fn new(ranks: usize) -> Self {
        let empty = || (0..ranks).map(|_| RwLock::default()).collect();
        Self { barrier: Barrier::new(ranks), given: empty(), sums: empty() }
    }

    /// The sum of all ranks' buffers, which have one length.
    fn sum(&self, rank: usize, buffer: Vec<f32>) -> Result<Vec<f32>> {
        let (ranks, count) = (self.given.len(), buffer.len());
        *self.given[rank].write().map_err(gone)? = buffer;
        self.barrier.wait();
        let part = count.div_ceil(ranks).max(1);
        let own = (rank * part).min(count)..((rank + 1) * part).min(count);
        let mut sum = vec![0f32; own.len()];
        let mut alike = true;
        for given in &self.given {
            let given = given.read().map_err(gone)?;
            alike &= given.len() == count;
            if alike {
                sum.iter_mut().zip(&given[own.clone()]).for_each(|(sum, value)| *sum += value);
            }
        }
        *self.sums[rank].write().map_err(gone)? = sum;
        // Behind this nobody reads what was given, and nobody writes a sum before all have come here again.
        self.barrier.wait();
        *self.given[rank].write().map_err(gone)? = Vec::new();
        if !alike {
            return Err(Error::internal(anyhow::anyhow!("the ranks of an all-reduce bring different lengths")));
        }
        let mut all = Vec::with_capacity(count);
        for sum in &self.sums {
            all.extend_from_slice(&sum.read().map_err(gone)?);
        }
        Ok(all)
    }
}

fn gone<T>(_: T) -> Error {
    Error::internal(anyhow::anyhow!("a slot ended in the middle of an all-reduce"))
}

impl Collective for InProcess {
    fn all_reduce(&self, rank: usize, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let places: Vec<_> = tensors.iter().map(|tensor| (tensor.shape().clone(), tensor.device().clone())).collect();
        // A rank that cannot read its own brings nothing, so that the others learn of it instead of waiting.
        let (buffer, read) = match flatten(&tensors) {
            Ok(buffer) => (buffer, Ok(())),
            Err(cause) => (Vec::new(), Err(cause)),
        };
        drop(tensors);
        let sum = self.sum(rank, buffer);
        read?;
        let sum = sum?;
        let mut rest = sum.as_slice();
        let tensors = places.into_iter().map(|(shape, device)| {
            let (own, behind) = rest.split_at(shape.elem_count());
            rest = behind;
            Ok(Tensor::from_slice(own, shape, &device)?)
        });
        tensors.collect()
    }
}

/// All values, one tensor after the other.
fn flatten(tensors: &[Tensor]) -> Result<Vec<f32>> {
    let mut buffer = Vec::with_capacity(tensors.iter().map(Tensor::elem_count).sum());
    for tensor in tensors {
        buffer.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rank's sums, for ranks that bring tensors of these values on `devices`.
    fn reduce(
        collective: &dyn Collective,
        devices: &[Device],
        brought: Vec<Vec<Vec<f32>>>,
    ) -> Vec<Result<Vec<Vec<f32>>>> {
        let round = |rank: usize, brought: &[Vec<f32>], factor: f32| -> Result<Vec<Tensor>> {
            let tensor = |values: &Vec<f32>| -> Result<Tensor> {
                let values: Vec<f32> = values.iter().map(|value| factor * value).collect();
                let count = values.len();
                Ok(Tensor::from_vec(values, count, &devices[rank])?)
            };
            let tensors = brought.iter().map(tensor).collect::<Result<_>>()?;
            collective.all_reduce(rank, collective.ready(tensors)?)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (brought.into_iter().enumerate())
                .map(|(rank, brought)| {
                    // Twice, so that a round cannot read what the one before left.
                    scope.spawn(move || {
                        round(rank, &brought, 2.0)?;
                        round(rank, &brought, 1.0)?.iter().map(|sum| Ok(sum.to_vec1()?)).collect()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Whether `collective` adds up tensors of these lengths.
    fn assert_adds_up(collective: &dyn Collective, devices: &[Device], lengths: &[usize]) {
        let ranks = devices.len();
        let value = |rank: usize, tensor: usize, at: usize| ((rank * 31 + tensor * 13 + at * 7) % 100) as f32;
        let each = |made: &dyn Fn(usize, usize) -> f32| -> Vec<Vec<f32>> {
            let tensors = lengths.iter().enumerate();
            tensors.map(|(tensor, count)| (0..*count).map(|at| made(tensor, at)).collect()).collect()
        };
        let brought = (0..ranks).map(|rank| each(&|tensor, at| value(rank, tensor, at))).collect();
        let sums = each(&|tensor, at| (0..ranks).map(|rank| value(rank, tensor, at)).sum());
        for got in reduce(collective, devices, brought) {
            assert_eq!(got.unwrap(), sums, "{ranks} ranks, tensors of {lengths:?} values");
        }
    }

    #[test]
    fn every_rank_gets_the_sum_of_what_all_brought_whatever_the_length() {
        for ranks in 1..6 {
            for lengths in [&[][..], &[1], &[3, 1], &[17, 0, 5], &[1000]] {
                assert_adds_up(&InProcess::new(ranks), &vec![Device::Cpu; ranks], lengths);
            }
        }
    }

    #[test]
    fn ranks_that_bring_different_lengths_are_told_and_none_is_left_waiting() {
        let brought = [5, 5, 4].map(|count| vec![vec![1.0; count]]).into();
        let all = reduce(&InProcess::new(3), &vec![Device::Cpu; 3], brought);
        assert!(all.iter().all(Result::is_err));
    }

    #[test]
    fn a_rank_that_cannot_read_its_own_tensors_leaves_none_waiting() {
        let collective = InProcess::new(2);
        let [whole, other] = [candle_core::DType::F32, candle_core::DType::U32]
            .map(|kind| vec![Tensor::ones(4, kind, &Device::Cpu).unwrap()]);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| collective.all_reduce(0, whole));
            assert!(collective.all_reduce(1, other).is_err());
            assert!(waits.join().unwrap().is_err());
        });
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn gpus_add_up_what_they_brought() {
        let gpus: Vec<Device> =
            (0..2).filter_map(|number| crate::train::TrainingDevice::Cuda(number).open().ok()).collect();
        if gpus.len() < 2 {
            eprintln!("skipped: no GPU beside another");
            return;
        }
        assert_adds_up(&*between(&gpus).unwrap(), &gpus, &[3, 1, 100_000]);
    }
}
