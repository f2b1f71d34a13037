//! Launches of attention; `attention.cu` has the kernels. Records are cut into tiles of rows of one side, and
//! a tile says which rows of the other side belong to its record.

use candle_core::{Result, bail};

use super::launch::{Element, Launch, Machine, Module, View, module, narrow};
use crate::kernels::attention::{Attention, Heads};

static MODULE: Module = module!("attention");
const NAME: &str = "attention";
/// Warps of a block, and lanes of a warp: the kernels' own.
const WARPS: usize = 4;
const LANES: usize = 32;

/// A kernel is made for heads of up to so many values, with so many rows to a warp.
#[derive(Clone, Copy)]
struct Variant {
    largest: usize,
    rows: usize,
}

impl Variant {
    const ALL: [Self; 4] = [
        Self { largest: 32, rows: 8 },
        Self { largest: 64, rows: 8 },
        Self { largest: 128, rows: 8 },
        Self { largest: 256, rows: 4 },
    ];

    fn of(size: usize) -> Result<Self> {
        match Self::ALL.into_iter().find(|variant| size <= variant.largest) {
            Some(variant) => Ok(variant),
            None => bail!("{NAME}: heads of {size} values; on a GPU they may have up to 256"),
        }
    }

    /// Rows of a tile.
    fn tile(self) -> usize {
        WARPS * self.rows
    }

    /// Bytes of shared memory for so many tiles of the block's own rows, so many of the other side, and so
    /// many weights for each pair of rows.
    fn shared(self, size: usize, own: usize, other: usize, weights: usize) -> Result<u32> {
        let padded = size.div_ceil(4) * 4;
        let own = own * self.tile() * padded;
        let other = other * LANES * (padded + 1);
        narrow("bytes", 4 * (own + other + weights * self.tile() * LANES))
    }
}

/// What the backward pass reads.
pub(in crate::kernels) struct Saved<'a> {
    pub(in crate::kernels) q: View<'a>,
    pub(in crate::kernels) k: View<'a>,
    pub(in crate::kernels) v: View<'a>,
    pub(in crate::kernels) out: View<'a>,
    pub(in crate::kernels) log_sums: View<'a>,
}

impl Attention {
    /// The output `[N, Hq, d]`, and the log-sum-exp of every row of scores `[N, Hq]` in f32.
    pub(in crate::kernels) fn cuda_forward<M: Machine>(
        &self,
        machine: &M,
        [q, k, v]: [View<'_>; 3],
    ) -> Result<(M::Memory, M::Memory)> {
        let Heads { heads, size, .. } = self.shape;
        let variant = Variant::of(size)?;
        let out = machine.allocate(q.element, q.len)?;
        let log_sums = machine.allocate(Element::F32, q.len / size)?;
        let tiles = self.tiles(machine, variant, Side::Queries)?;
        let launch = self.tiled("forward", q.element, variant, machine.view(&tiles), heads)?;
        let launch = Launch { shared: variant.shared(size, 1, 2, 1)?, ..launch };
        let launch = launch.with(q).with(k).with(v).with(machine.view(&tiles));
        machine.launch(&self.sized(launch.with(machine.view(&out)).with(machine.view(&log_sums)))?)?;
        Ok((out, log_sums))
    }

    /// The gradients of q, and of k and v, where they are wanted.
    #[expect(clippy::type_complexity, reason = "two gradients that come together, beside one that may come")]
    pub(in crate::kernels) fn cuda_backward<M: Machine>(
        &self,
        machine: &M,
        saved: &Saved<'_>,
        grad: View<'_>,
        wanted: [bool; 2],
    ) -> Result<(Option<M::Memory>, Option<[M::Memory; 2]>)> {
        let Saved { q, k, v, out, log_sums } = *saved;
        let Heads { heads, key_heads, size } = self.shape;
        let (variant, element, rows) = (Variant::of(size)?, q.element, q.len / size);
        let means = machine.allocate(Element::F32, rows)?;
        let launch = Launch::each(&MODULE, "attention_means", element, rows * LANES)?.with(out).with(grad);
        machine.launch(&launch.with(machine.view(&means)).with_total(rows).with_count(size)?)?;

        let grad_q = wanted[0].then(|| -> Result<M::Memory> {
            let grad_q = machine.allocate(element, q.len)?;
            let tiles = self.tiles(machine, variant, Side::Queries)?;
            let launch = self.tiled("query_gradient", element, variant, machine.view(&tiles), heads)?;
            let launch = Launch { shared: variant.shared(size, 2, 2, 1)?, ..launch };
            let launch = launch.with(q).with(k).with(v).with(grad).with(log_sums).with(machine.view(&means));
            machine.launch(&self.sized(launch.with(machine.view(&tiles)).with(machine.view(&grad_q)))?)?;
            Ok(grad_q)
        });
        let grads_kv = wanted[1].then(|| -> Result<[M::Memory; 2]> {
            let grads = [machine.allocate(element, k.len)?, machine.allocate(element, v.len)?];
            let tiles = self.tiles(machine, variant, Side::Keys)?;
            let launch = self.tiled("key_gradients", element, variant, machine.view(&tiles), key_heads)?;
            let launch = Launch { shared: variant.shared(size, 2, 2, 2)?, ..launch };
            let launch = launch.with(q).with(k).with(v).with(grad).with(log_sums).with(machine.view(&means));
            let launch = launch.with(machine.view(&tiles));
            machine.launch(&self.sized(launch.with(machine.view(&grads[0])).with(machine.view(&grads[1])))?)?;
            Ok(grads)
        });
        Ok((grad_q.transpose()?, grads_kv.transpose()?))
    }

    /// A launch with a block for each tile of each head.
    fn tiled<'a>(
        &self,
        kernel: &str,
        element: Element,
        variant: Variant,
        tiles: View<'_>,
        heads: usize,
    ) -> Result<Launch<'a>> {
        let grid = [narrow("tiles", tiles.len / TILE)?, narrow("heads", heads)?, 1];
        let kernel = format!("attention_{kernel}_{}", variant.largest);
        Launch::blocks(&MODULE, &kernel, element, grid, (WARPS * LANES) as u32)
    }

    /// The arguments that all tiled kernels end with.
    fn sized<'a>(&self, launch: Launch<'a>) -> Result<Launch<'a>> {
        let Heads { heads, key_heads, size } = self.shape;
        let launch = launch.with_count(heads)?.with_count(key_heads)?.with_count(size)?.with(self.scale);
        // A window past every key is none, which the kernels know as 0.
        let window = self.window.filter(|window| *window <= self.spans.keys()).unwrap_or(0);
        Ok(launch.with_count(window)?.with(self.softcap.unwrap_or(0.0)))
    }

    /// The tiles of one side of all records, as the kernels read them.
    fn tiles<M: Machine>(&self, machine: &M, variant: Variant, side: Side) -> Result<M::Memory> {
        let mut tiles = Vec::new();
        for span in self.spans.iter() {
            let (own, other) = match side {
                Side::Queries => (&span.queries, &span.keys),
                Side::Keys => (&span.keys, &span.queries),
            };
            let ahead = if span.is_timeless() { 0 } else { span.keys.len() - span.queries.len() };
            for first in (0..own.len()).step_by(variant.tile()) {
                let rows = variant.tile().min(own.len() - first);
                let timeless = usize::from(span.is_timeless());
                for value in [own.start + first, rows, first, other.start, other.len(), ahead, timeless] {
                    tiles.push(narrow("rows", value)?);
                }
            }
        }
        machine.upload(&tiles)
    }
}

/// Numbers of a tile.
const TILE: usize = 7;

/// Whose rows a block has.
#[derive(Clone, Copy)]
enum Side {
    Queries,
    Keys,
}
