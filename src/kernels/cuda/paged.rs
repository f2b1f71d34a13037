//! AdamW whose moments live in page-locked memory of the host: page by page they visit a few buffers of the
//! device, are updated there by the same kernel, and travel back. Copies go beside the work, each way in a queue of
//! its own: while a page is worked on, the next one comes and the last one goes. What must not overtake what is
//! said by events, and nothing but events keeps the order between queues.

use candle_core::{Result, bail};

use super::launch::{Element, Machine, View};
use crate::kernels::AdamWStep;
use crate::kernels::paging::{Paging, Piece};

/// A queue of a machine: what is given to one is done in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) enum Queue {
    /// Where launches go, and where memory is taken and given back.
    Work,
    /// Copies onto the machine.
    In,
    /// Copies from the machine.
    Out,
}

/// Copies between the host's memory and a machine, beside what the machine does.
pub(in crate::kernels) trait Copier {
    /// The machine.
    type On: Machine;
    /// f32 values in page-locked memory of the host.
    type Pinned;
    /// A point in a queue.
    type Event: Clone;

    /// The machine.
    fn machine(&self) -> &Self::On;

    /// Page-locked memory of so many zeros, at least one.
    fn pin(&self, len: usize) -> Result<Self::Pinned>;

    /// How many values it has.
    fn len(&self, pinned: &Self::Pinned) -> usize;

    /// Its values. Whoever looks has settled before.
    fn values<'a>(&self, pinned: &'a Self::Pinned) -> Result<&'a [f32]>;

    /// Its values, to be changed. Whoever does has settled before.
    fn values_mut<'a>(&self, pinned: &'a mut Self::Pinned) -> Result<&'a mut [f32]>;

    /// Gives the copy of all values to the queue [`Queue::In`].
    fn copy_in(&self, from: &Self::Pinned, to: View<'_>) -> Result<()>;

    /// Gives the copy of all values to the queue [`Queue::Out`].
    fn copy_out(&self, from: View<'_>, to: &mut Self::Pinned) -> Result<()>;

    /// The end of what was given to a queue so far.
    fn record(&self, queue: Queue) -> Result<Self::Event>;

    /// What is given to `queue` from now on waits for the event.
    fn wait(&self, queue: Queue, event: &Self::Event) -> Result<()>;

    /// Waits until every queue is empty.
    fn settle(&self) -> Result<()>;
}

/// The update of one tensor.
pub(in crate::kernels) struct Update<'a> {
    /// Which of the tensors that the moments were made for.
    pub(in crate::kernels) tensor: usize,
    pub(in crate::kernels) step: AdamWStep,
    /// f32, written.
    pub(in crate::kernels) weight: View<'a>,
    pub(in crate::kernels) gradient: View<'a>,
}

/// The moments of all tensors.
pub(in crate::kernels) struct Paged<C: Copier> {
    paging: Paging,
    /// Where the values of each tensor begin, and where the last one's end.
    starts: Vec<usize>,
    /// Means and mean squares of each page's values.
    pages: Vec<C::Pinned>,
    /// Where pages lie on the machine.
    buffers: Vec<<C::On as Machine>::Memory>,
    /// Behind the last page that left.
    last: Option<C::Event>,
    /// Dropped last: what it copies has to be there until it has settled.
    copier: C,
}

impl<C: Copier> Paged<C> {
    /// Zeros for tensors of so many values each.
    ///
    /// # Errors
    /// When the host or the machine has no room.
    pub(in crate::kernels) fn zeros(copier: C, paging: Paging, counts: &[usize]) -> Result<Self> {
        let mut starts = vec![0];
        starts.extend(counts.iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        }));
        let total = starts.last().copied().unwrap_or(0);
        let sizes: Vec<usize> = paging.pages(total).collect();
        let pages = sizes.iter().map(|size| copier.pin(2 * size)).collect::<Result<Vec<_>>>()?;
        let most = sizes.first().copied().unwrap_or(0);
        let machine = copier.machine();
        let count = sizes.len().min(paging.buffers.max(1));
        let buffers = (0..count).map(|_| machine.allocate(Element::F32, 2 * most)).collect::<Result<_>>()?;
        // The buffers are there from this point of the machine's work on.
        copier.wait(Queue::In, &copier.record(Queue::Work)?)?;
        Ok(Self { paging, starts, pages, buffers, last: None, copier })
    }

    fn pieces(&self, tensor: usize) -> Result<impl Iterator<Item = Piece> + use<C>> {
        match self.starts.get(tensor..tensor + 2) {
            Some([start, end]) => Ok(self.paging.pieces(*start, end - start)),
            _ => bail!("adamw: there are no moments of a tensor {tensor}"),
        }
    }

    /// Mean and mean square of a tensor.
    pub(in crate::kernels) fn values(&self, tensor: usize) -> Result<[Vec<f32>; 2]> {
        self.copier.settle()?;
        let (mut mean, mut square) = (Vec::new(), Vec::new());
        for Piece { page, in_page, len, .. } in self.pieces(tensor)? {
            let (means, squares) = halves(self.copier.values(&self.pages[page])?);
            mean.extend_from_slice(&means[in_page..in_page + len]);
            square.extend_from_slice(&squares[in_page..in_page + len]);
        }
        Ok([mean, square])
    }

    /// Sets mean and mean square of a tensor.
    pub(in crate::kernels) fn set(&mut self, tensor: usize, mean: &[f32], square: &[f32]) -> Result<()> {
        self.copier.settle()?;
        let pieces: Vec<Piece> = self.pieces(tensor)?.collect();
        let count: usize = pieces.iter().map(|piece| piece.len).sum();
        if [mean.len(), square.len()] != [count; 2] {
            bail!("adamw: moments of {} and {} values for a tensor of {count}", mean.len(), square.len());
        }
        for Piece { page, in_page, in_tensor, len } in pieces {
            let values = self.copier.values_mut(&mut self.pages[page])?;
            let (means, squares) = values.split_at_mut(values.len() / 2);
            means[in_page..in_page + len].copy_from_slice(&mean[in_tensor..in_tensor + len]);
            squares[in_page..in_page + len].copy_from_slice(&square[in_tensor..in_tensor + len]);
        }
        Ok(())
    }

    /// One update of each of these tensors, in rising order.
    pub(in crate::kernels) fn update(&mut self, updates: &[Update<'_>]) -> Result<()> {
        let mut pieces = Vec::new();
        for update in updates {
            let own: Vec<Piece> = self.pieces(update.tensor)?.collect();
            let count = own.iter().map(|piece| piece.len).sum();
            update.weight.expect("adamw", count)?;
            update.gradient.expect("adamw", count)?;
            pieces.extend(own.into_iter().map(|piece| (update, piece)));
        }
        if !pieces.is_sorted_by_key(|(_, piece)| piece.page) {
            bail!("adamw: tensors are updated in their order");
        }
        // A page that this update takes in was brought out by an earlier one, and so were the buffers.
        if let Some(last) = &self.last {
            self.copier.wait(Queue::In, last)?;
        }
        let mut gone: Vec<Option<C::Event>> = self.buffers.iter().map(|_| None).collect();
        for (turn, visit) in pieces.chunk_by(|(_, one), (_, next)| one.page == next.page).enumerate() {
            let (page, place) = (visit[0].1.page, turn % self.buffers.len());
            if let Some(gone) = gone[place].take() {
                self.copier.wait(Queue::In, &gone)?;
            }
            gone[place] = Some(self.visit(page, place, visit)?);
        }
        Ok(())
    }

    /// One page into a buffer, updated there, and back; the point at which it is gone.
    fn visit(&mut self, page: usize, place: usize, visit: &[(&Update<'_>, Piece)]) -> Result<C::Event> {
        let (copier, page) = (&self.copier, &mut self.pages[page]);
        let machine = copier.machine();
        let values = copier.len(page);
        let buffer = machine.view(&self.buffers[place]).part(0, values)?;
        copier.copy_in(page, buffer)?;
        copier.wait(Queue::Work, &copier.record(Queue::In)?)?;
        for (update, Piece { in_page, in_tensor, len, .. }) in visit {
            let mean = buffer.part(*in_page, *len)?;
            let square = buffer.part(values / 2 + in_page, *len)?;
            let (weight, gradient) = (update.weight.part(*in_tensor, *len)?, update.gradient.part(*in_tensor, *len)?);
            update.step.cuda_update(machine, [weight, gradient, mean, square])?;
        }
        copier.wait(Queue::Out, &copier.record(Queue::Work)?)?;
        copier.copy_out(buffer, page)?;
        let gone = copier.record(Queue::Out)?;
        self.last = Some(gone.clone());
        Ok(gone)
    }
}

/// Means and mean squares of a page.
fn halves(values: &[f32]) -> (&[f32], &[f32]) {
    values.split_at(values.len() / 2)
}

impl<C: Copier> Drop for Paged<C> {
    fn drop(&mut self) {
        // Nothing may be on its way when its memory goes. A machine that failed has said so before.
        let _ = self.copier.settle();
    }
}
