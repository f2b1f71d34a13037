//! The product of many rows with a weight in panels on the tile registers of AMX: every row is split into three terms
//! in bfloat16 that are all its bits, so nothing is rounded that an f32 product would not round, at a third of the
//! registers' pace. What a row comes to does not depend on the rows beside it here either.

use super::{COLUMNS, Output, Panels, Write, tasks, write};
use crate::kernels::amx::{EXACT, Packed, Product, Sums, UNIT};
use crate::kernels::vector::vectorized;

/// Pairs of a block of the inner dimension.
const BLOCK_PAIRS: usize = 1024;
/// Bytes of a block of packed rows that go over a weight together, which stay in a second-level cache.
const ROWS_BYTES: usize = 5 << 18;
/// Panels that a block of rows goes over before the next block, where there are several.
const GROUP: usize = 8;

/// As [`super::panels`].
pub(super) fn panels(product: Product, x: &[f32], weight: &Panels, out: Output<'_>, into: Write) {
    let inner = weight.inner();
    let Output { values, columns, row_stride } = out;
    let row = EXACT * size_of::<u32>() * weight.pairs().min(BLOCK_PAIRS);
    let together = (ROWS_BYTES / row.max(1) / UNIT * UNIT).max(UNIT);
    for (x, values) in x.chunks(together * inner).zip(values.chunks_mut(together * row_stride)) {
        some(product, x, weight, Output { values, columns, row_stride }, into);
    }
}

fn some(product: Product, x: &[f32], weight: &Panels, out: Output<'_>, into: Write) {
    let (inner, pairs) = (weight.inner(), weight.pairs());
    let left = Packed::<EXACT>::new(x, inner);
    let group = if pairs > BLOCK_PAIRS { GROUP } else { 1 };
    tasks(x, inner, out, group * COLUMNS, |_, first, columns| {
        let mut sums = Sums::default();
        let width = columns[0].len();
        for from in (0..pairs).step_by(BLOCK_PAIRS) {
            let into = if from == 0 { into } else { Write::Add };
            for at in (0..width).step_by(COLUMNS) {
                let end = width.min(at + COLUMNS);
                let panel = &weight.panel((first + at) / COLUMNS)[from..pairs.min(from + BLOCK_PAIRS)];
                for (unit, columns) in left.units().zip(columns.chunks_mut(UNIT)) {
                    let sums = left.multiply(product, &unit, from, panel, &mut sums);
                    vectorized(
                        #[inline(always)]
                        || {
                            for (columns, sums) in columns.iter_mut().zip(sums) {
                                write(&mut columns[at..end], sums, into);
                            }
                        },
                    );
                }
            }
        }
    });
}
