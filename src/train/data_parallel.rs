//! Data parallelism within one process: every slot holds the model and an optimizer of its own, takes its
//! share of each batch, and all slots add up their gradients (all-reduce) before each makes the same
//! update. The sum over slots has one fixed order and every slot sees the same bits, so the copies never
//! drift apart; a batch gives the same step on one slot as on several, up to the rounding of that sum.

use std::sync::{Barrier, RwLock};

use candle_core::Tensor;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::backprop::{self, Gradients};
use super::objective::Criterion;
use super::optim::{AdamW, AdamWSettings};
use super::{LossSum, StopFlag};
use crate::data::{Batch, MicroBatch};
use crate::error::{Error, Result};
use crate::models::{Decoder, Tuning};
use crate::rng;
use crate::tune::{Method, Trainable};

/// Adds up buffers of one length, one from every rank, and gives each rank the sum.
pub(super) trait Collective: Sync {
    /// Called by every rank, each on a thread of its own; returns when all have called.
    ///
    /// # Errors
    /// When the ranks bring different lengths, or one of them is gone.
    fn all_reduce(&self, rank: usize, buffer: Vec<f32>) -> Result<Vec<f32>>;
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
}

fn gone<T>(_: T) -> Error {
    Error::internal(anyhow::anyhow!("a slot ended in the middle of an all-reduce"))
}

impl Collective for InProcess {
    fn all_reduce(&self, rank: usize, buffer: Vec<f32>) -> Result<Vec<f32>> {
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

/// A slot beside the first one, whose state is the run's own.
struct Peer<'a> {
    decoder: &'a Decoder,
    method: Box<dyn Method>,
    optimizer: AdamW,
}

/// The slots of a run that has more than one.
pub(super) struct Slots<'a> {
    peers: Vec<Peer<'a>>,
    /// One for every slot, the first one's first.
    pools: Vec<ThreadPool>,
    collective: Box<dyn Collective + 'a>,
}

/// What one slot's passes gave: the losses of its micro-batches by their number in the step, and their gradients.
type Share = (Vec<(usize, LossSum)>, Gradients);

/// What one step's passes gave.
pub(super) struct Passed {
    /// Of every micro-batch, in order.
    pub(super) sums: Vec<LossSum>,
    /// The sum of all slots' gradients, where the first slot's weights lie.
    pub(super) gradients: Gradients,
    /// The same where each other slot's weights lie.
    pub(super) of_peers: Vec<Gradients>,
}

impl<'a> Slots<'a> {
    /// Beside the first slot, whose trainables are `first` and whose optimizer stands at `state`, one on every
    /// decoder of `others`: all begin with the first one's weights and moments.
    ///
    /// # Errors
    /// When a method is not the first one's, or the system gives no more threads.
    pub(super) fn open(
        first: &[Trainable],
        state: &AdamW,
        settings: AdamWSettings,
        others: Vec<(&'a Decoder, Box<dyn Method>)>,
    ) -> Result<Self> {
        let ranks = others.len() + 1;
        let moments = state.tensors(first)?;
        let mut peers = Vec::with_capacity(others.len());
        for (decoder, method) in others {
            let same = method.trainables().iter().map(|one| &one.name).eq(first.iter().map(|one| &one.name));
            if !same {
                return Err(Error::internal(anyhow::anyhow!("the slots of a run do not train the same weights")));
            }
            for (own, first) in method.trainables().iter().zip(first) {
                own.var.set(&first.var.as_detached_tensor().to_device(own.var.device())?)?;
            }
            let mut optimizer = AdamW::new(method.trainables(), settings)?;
            optimizer.restore(method.trainables(), state.updates(), |name, _| {
                let found = moments.iter().find(|(moment, _)| moment == name);
                found
                    .map(|(_, tensor)| tensor.clone())
                    .ok_or_else(|| Error::internal(anyhow::anyhow!("the first slot has no moments {name}")))
            })?;
            peers.push(Peer { decoder, method, optimizer });
        }
        let threads = (rayon::current_num_threads() / ranks).max(1);
        let pool = |_| ThreadPoolBuilder::new().num_threads(threads).build().map_err(Error::internal);
        let pools = (0..ranks).map(pool).collect::<Result<_>>()?;
        Ok(Self { peers, pools, collective: Box::new(InProcess::new(ranks)) })
    }

    /// Forward and backward over the micro-batches of `batch`, dealt out in turn; `None` when the run was asked
    /// to stop.
    pub(super) fn pass(
        &self,
        first: (&Decoder, &dyn Method),
        criterion: &dyn Criterion,
        batch: &Batch,
        key: u64,
        keeps_graphs: bool,
        stop: &StopFlag,
    ) -> Result<Option<Passed>> {
        let slots: Vec<(&Decoder, &dyn Method)> =
            std::iter::once(first).chain(self.peers.iter().map(|peer| (peer.decoder, &*peer.method))).collect();
        let share = |rank: usize| -> Result<Option<Share>> {
            let (decoder, method) = slots[rank];
            let mut gradients = Gradients::new(method.trainables());
            let mut sums = Vec::new();
            for (index, micro) in batch.micro.iter().enumerate().skip(rank).step_by(slots.len()) {
                if stop.is_raised() {
                    return Ok(None);
                }
                let sum = one_pass((decoder, method), criterion, (index, micro), key, &mut gradients, keeps_graphs)?;
                sums.push((index, sum));
            }
            Ok(Some((sums, gradients)))
        };
        // Everyone is back before anyone waits for the others' gradients: a slot that failed leaves none hanging.
        let mut passed = Vec::with_capacity(slots.len());
        for result in self.on_every_slot(share) {
            let Some(one) = result? else { return Ok(None) };
            passed.push(one);
        }
        let (sums, gradients): (Vec<_>, Vec<_>) = passed.into_iter().unzip();
        let mut sums: Vec<(usize, LossSum)> = sums.into_iter().flatten().collect();
        sums.sort_by_key(|(index, _)| *index);
        // A weight that no slot's loss reached stays without a gradient.
        let reached: Vec<bool> = (0..slots[0].1.trainables().len())
            .map(|at| gradients.iter().any(|gradients| gradients.sums()[at].is_some()))
            .collect();
        let reduce = |rank: usize| {
            let trainables = slots[rank].1.trainables();
            let buffer = flatten(&gradients[rank], trainables, &reached)?;
            unflatten(&self.collective.all_reduce(rank, buffer)?, trainables, &reached)
        };
        let mut reduced = self.on_every_slot(reduce).into_iter();
        let first = reduced.next().transpose()?;
        let gradients = first.ok_or_else(|| Error::internal(anyhow::anyhow!("a run without a slot")))?;
        let sums = sums.into_iter().map(|(_, sum)| sum).collect();
        Ok(Some(Passed { sums, gradients, of_peers: reduced.collect::<Result<_>>()? }))
    }

    /// The update that the first slot made, on every other one.
    pub(super) fn update(&mut self, gradients: &[Gradients], scale: f64, learning_rate: f64) -> Result<()> {
        for (peer, gradients) in self.peers.iter_mut().zip(gradients) {
            peer.optimizer.update(peer.method.trainables(), gradients.sums(), scale, learning_rate)?;
        }
        Ok(())
    }

    /// `work` on every rank at once, each on its slot's threads; the results in the order of the ranks.
    fn on_every_slot<R: Send>(&self, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (self.pools.iter().enumerate())
                .map(|(rank, pool)| scope.spawn(move || pool.install(|| work(rank))))
                .collect();
            let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            joined.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }
}

/// Loss and gradients of micro-batch `index` of a step, with the masks that belong to it wherever it is run.
pub(super) fn one_pass(
    (decoder, method): (&Decoder, &dyn Method),
    criterion: &dyn Criterion,
    (index, micro): (usize, &MicroBatch),
    key: u64,
    gradients: &mut Gradients,
    keeps_graphs: bool,
) -> Result<LossSum> {
    let pass = method.pass(rng::key(key, "micro-batch", index as u64));
    let hooks: &dyn Tuning = match &pass {
        Some(pass) => &**pass,
        None => method,
    };
    backprop::pass(decoder, method.trainables(), hooks, criterion, micro, gradients, keeps_graphs)
}

/// The gradients of all weights that were reached, one after the other.
fn flatten(gradients: &Gradients, trainables: &[Trainable], reached: &[bool]) -> Result<Vec<f32>> {
    let mut buffer = Vec::new();
    for ((one, gradient), _) in trainables.iter().zip(gradients.sums()).zip(reached).filter(|(_, reached)| **reached) {
        match gradient {
            Some(gradient) => buffer.extend(gradient.flatten_all()?.to_vec1::<f32>()?),
            None => buffer.resize(buffer.len() + one.var.elem_count(), 0.0),
        }
    }
    Ok(buffer)
}

fn unflatten(mut buffer: &[f32], trainables: &[Trainable], reached: &[bool]) -> Result<Gradients> {
    let mut sums = Vec::with_capacity(trainables.len());
    for (one, reached) in trainables.iter().zip(reached) {
        sums.push(if *reached {
            let (own, rest) = buffer.split_at(one.var.elem_count());
            buffer = rest;
            Some(Tensor::from_slice(own, one.var.shape(), one.var.device())?)
        } else {
            None
        });
    }
    Ok(Gradients::from(sums))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rank's sum, for ranks that bring `buffers`.
    fn reduce(buffers: Vec<Vec<f32>>) -> Vec<Result<Vec<f32>>> {
        let collective = InProcess::new(buffers.len());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (buffers.into_iter().enumerate())
                .map(|(rank, buffer)| {
                    let collective = &collective;
                    // Twice, so that a round cannot read what the one before left.
                    scope.spawn(move || {
                        collective.all_reduce(rank, buffer.iter().map(|value| 2.0 * value).collect())?;
                        collective.all_reduce(rank, buffer)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_gets_the_sum_of_what_all_brought_whatever_the_length() {
        for ranks in 1..6 {
            for count in [0, 1, 3, 17, 1000] {
                let value = |rank: usize, at: usize| ((rank * 31 + at * 7) % 100) as f32;
                let buffers = (0..ranks).map(|rank| (0..count).map(|at| value(rank, at)).collect()).collect();
                let sum: Vec<f32> = (0..count).map(|at| (0..ranks).map(|rank| value(rank, at)).sum()).collect();
                for got in reduce(buffers) {
                    assert_eq!(got.unwrap(), sum, "{ranks} ranks, {count} values");
                }
            }
        }
    }

    #[test]
    fn ranks_that_bring_different_lengths_are_told_and_none_is_left_waiting() {
        let all = reduce(vec![vec![1.0; 5], vec![1.0; 5], vec![1.0; 4]]);
        assert!(all.iter().any(Result::is_err));
    }
}
