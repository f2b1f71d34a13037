//! The micro-kernel's arithmetic without its instruction, for the tests: the same packed memory, the same
//! order, the same roundings, on every CPU.

use std::cell::Cell;

use rayon::ThreadPoolBuilder;

use super::panels::{COLUMNS, PairRow, halves};
use super::tile::{ROWS, Sums, with_rows};
use crate::kernels::vector::vectorized;

thread_local! {
    static CHOSEN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` on `threads` threads of their own. What is packed there is multiplied, wherever that is, as if the
/// CPU had the instruction.
pub(crate) fn emulated<R: Send>(threads: usize, body: impl FnOnce() -> R + Send) -> R {
    let pool = ThreadPoolBuilder::new().num_threads(threads).start_handler(|_| CHOSEN.set(true)).build().unwrap();
    pool.install(body)
}

/// Whether this thread packs so.
pub(super) fn is_chosen() -> bool {
    CHOSEN.get()
}

/// As [`super::tile::Tile`] says.
pub(super) fn tile(left: &[u32], rows: usize, panel: &[PairRow], sums: &mut Sums) {
    assert!((1..=ROWS).contains(&rows) && left.len() == rows * panel.len(), "a tile has another size");
    with_rows!(rows, products(left, panel, sums));
}

fn products<const R: usize>(left: &[u32], panel: &[PairRow], sums: &mut Sums) {
    vectorized(
        #[inline(always)]
        || {
            for (row, sums) in sums.0[..R].iter_mut().enumerate() {
                let mut acc = [0f32; COLUMNS];
                for (pairs, panel) in left.chunks_exact(R).zip(panel) {
                    let [low, high] = halves(pairs[row]);
                    for (acc, pair) in acc.iter_mut().zip(panel.0) {
                        let [other_low, other_high] = halves(pair);
                        // Packing leaves no subnormal operand.
                        *acc = flushed(high.mul_add(other_high, *acc));
                        *acc = flushed(low.mul_add(other_low, *acc));
                    }
                }
                *sums = acc;
            }
        },
    );
}

/// Zero with the value's sign in place of a subnormal value.
#[inline(always)]
pub(in crate::kernels) fn flushed(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0f32.copysign(value) } else { value }
}
