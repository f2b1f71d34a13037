//! Data parallelism within one process: every slot holds the model and an optimizer of its own on a device of its
//! own, takes its share of each batch, and all slots add up their gradients (all-reduce) before each makes the same
//! update. Every slot sees the same bits of the sum over slots, so the copies never drift apart; a batch gives the
//! same step on one slot as on several, up to the rounding of that sum.

mod collective;

use candle_core::{Device, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};

use self::collective::Collective;
use super::backprop::{self, Gradients};
use super::objective::Criterion;
use super::optim::{AdamW, AdamWSettings};
use super::{LossSum, StopFlag};
use crate::data::{Batch, MicroBatch};
use crate::error::{Error, Result};
use crate::models::{Decoder, Tuning};
use crate::rng;
use crate::tune::{Method, Trainable};

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
    collective: Box<dyn Collective>,
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
    /// When a method is not the first one's, the devices cannot be connected, or the system gives no more threads.
    pub(super) fn open(
        first: &[Trainable],
        state: &AdamW,
        settings: AdamWSettings,
        others: Vec<(&'a Decoder, Box<dyn Method>)>,
    ) -> Result<Self> {
        let ranks = others.len() + 1;
        let Some(one) = first.first() else {
            return Err(Error::internal(anyhow::anyhow!("a run in which nothing trains")));
        };
        let of_others = others.iter().map(|(decoder, _)| decoder.device().clone());
        let devices: Vec<Device> = std::iter::once(one.var.device().clone()).chain(of_others).collect();
        let collective = collective::between(&devices)?;
        // Before the first update they are zeros everywhere.
        let moments = if state.updates() > 0 { state.tensors(first)? } else { Vec::new() };
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
            if state.updates() > 0 {
                optimizer.take_up(method.trainables(), state.updates(), &moments)?;
            }
            backprop::prepare(decoder, method.trainables());
            peers.push(Peer { decoder, method, optimizer });
        }
        let threads = (rayon::current_num_threads() / ranks).max(1);
        let pool = |_| ThreadPoolBuilder::new().num_threads(threads).build().map_err(Error::internal);
        let pools = (0..ranks).map(pool).collect::<Result<_>>()?;
        Ok(Self { peers, pools, collective })
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
        let share = |rank: usize, (decoder, method): (&Decoder, &dyn Method)| -> Result<Option<Share>> {
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
        for result in self.on_every_slot(slots.iter().copied(), share) {
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
        let brought = slots
            .iter()
            .zip(gradients)
            .map(|((_, method), gradients)| self.collective.ready(complete(gradients, method.trainables(), &reached)?));
        let reduce = |rank: usize, tensors: Vec<Tensor>| -> Result<Gradients> {
            let mut sums = self.collective.all_reduce(rank, tensors)?.into_iter();
            let all = reached.iter().map(|reached| if *reached { sums.next() } else { None });
            Ok(Gradients::from(all.collect::<Vec<_>>()))
        };
        let mut reduced = self.on_every_slot(brought.collect::<Result<Vec<_>>>()?, reduce).into_iter();
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

    /// `work` on every rank and its item at once, each on its slot's threads; the results in the order of the ranks.
    fn on_every_slot<T: Send, R: Send>(
        &self,
        items: impl IntoIterator<Item = T>,
        work: impl Fn(usize, T) -> R + Sync,
    ) -> Vec<R> {
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (self.pools.iter().zip(items).enumerate())
                .map(|(rank, (pool, item))| scope.spawn(move || pool.install(|| work(rank, item))))
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

/// The gradients of all weights that some slot's loss reached, as the collective takes them.
fn complete(gradients: Gradients, trainables: &[Trainable], reached: &[bool]) -> Result<Vec<Tensor>> {
    let all = gradients.into_sums().into_iter().zip(trainables).zip(reached).filter(|(_, reached)| **reached);
    let contiguous = all.map(|((gradient, one), _)| match gradient {
        Some(gradient) => Ok(gradient.contiguous()?),
        None => Ok(Tensor::zeros(one.var.shape(), one.var.dtype(), one.var.device())?),
    });
    contiguous.collect()
}
