//! Products of rows with a matrix in panels on the tile registers of AMX, which multiply sixteen rows with sixteen
//! columns over 32 values of bfloat16 by one instruction: at best sixteen times as many a second as in f32. A row is the
//! sum of one or of three terms in bfloat16: one is the row rounded, three are every bit of it, so that its product
//! with a weight that is in bfloat16 itself is one of f32 and still costs a fraction of it.
//!
//! `TDPBF16PS` as Intel's Software Developer's Manual, volume 2, gives it: the products of the even values and those
//! of the odd ones are summed from zero by fused multiply-adds, both sums are added, and their sum to what the
//! register holds; rounded to nearest even, subnormal operands and results zero, whatever the control register says.

#[cfg(test)]
pub(super) mod portable;
#[cfg(test)]
mod tests;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::bf16::panels::{COLUMNS, PairRow, Panels, round_pairs};
use super::vector::vectorized;

/// Rows of a register, and pairs of values of a row.
const ROWS: usize = 16;
const PAIRS: usize = 16;
/// Rows that go over a panel together: those of two registers.
pub(super) const UNIT: usize = 2 * ROWS;
/// Terms of a row that is rounded.
pub(super) const ROUNDED: usize = 1;
/// Terms that are every bit of an f32 value: each holds eight of the 24.
pub(super) const EXACT: usize = 3;

/// What a register holds of a left side.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Left([[u32; PAIRS]; ROWS]);

/// Sums of the rows of two registers over the columns of a panel.
#[repr(C, align(64))]
pub(super) struct Sums([[f32; COLUMNS]; UNIT]);

impl Default for Sums {
    fn default() -> Self {
        Self([[0.0; COLUMNS]; UNIT])
    }
}

/// Adds to `sums` the products of `left` with rows of a panel, a whole number of [`PAIRS`] and at least one, or
/// replaces them. For every [`PAIRS`] rows `left` holds `terms` ([`ROUNDED`] or [`EXACT`]) times a register, or one for
/// each of two groups of rows.
pub(super) type Product = fn(left: &[Left], terms: usize, panel: &[PairRow], sums: &mut Sums, add: bool);

/// The product of this CPU, if it has one.
pub(super) fn native() -> Option<Product> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static IS_RIGHT: OnceLock<bool> = OnceLock::new();
        if *IS_RIGHT.get_or_init(|| tiles::is_available() && is_exact(tiles::product)) {
            return Some(tiles::product);
        }
    }
    None
}

/// Registers whose memory is kept for the next rows: 2 MiB.
const KEPT: usize = (2 << 20) / size_of::<Left>();

thread_local! {
    /// Memory of the rows that this thread packed last: to clear it anew would take as long as to pack them.
    static EARLIER: Cell<Vec<Left>> = const { Cell::new(Vec::new()) };
}

/// Rows of f32 values as registers take them, in units that go over a panel together.
pub(super) struct Packed<const TERMS: usize> {
    tiles: Vec<Left>,
    /// Registers of a row, one after the other.
    steps: usize,
}

impl<const TERMS: usize> Packed<TERMS> {
    /// Packs rows of `inner` values.
    pub(super) fn new(values: &[f32], inner: usize) -> Self {
        let (rows, steps) = (values.len() / inner.max(1), inner.div_ceil(2 * PAIRS));
        // What is left from an earlier use stands where rows are missing, and comes to sums that nobody reads.
        let mut tiles = EARLIER.take();
        tiles.resize(rows.div_ceil(ROWS) * steps * TERMS, Left([[0; PAIRS]; ROWS]));
        if inner > 0 {
            let units = values.par_chunks(UNIT * inner).zip(tiles.par_chunks_mut(UNIT / ROWS * steps * TERMS));
            units.for_each(|(values, tiles)| pack::<TERMS>(values, inner, tiles));
        }
        Self { tiles, steps }
    }

    /// The products of a unit of rows with the rows of a panel that begin with the one at `from`, a multiple of
    /// [`PAIRS`]: one for each row and column.
    pub(super) fn multiply<'a>(
        &self,
        product: Product,
        unit: Range<usize>,
        from: usize,
        panel: &[PairRow],
        sums: &'a mut Sums,
    ) -> &'a [[f32; COLUMNS]] {
        let registers = unit.len().div_ceil(ROWS) * TERMS;
        let of_unit = &self.tiles[unit.start / ROWS * self.steps * TERMS..][..registers * self.steps];
        let left = &of_unit[registers * (from / PAIRS)..];
        if panel.is_empty() {
            *sums = Sums::default();
        }
        let (whole, last) = panel.split_at(panel.len() / PAIRS * PAIRS);
        let (of_whole, left) = left.split_at(registers * (whole.len() / PAIRS));
        if !whole.is_empty() {
            product(of_whole, TERMS, whole, sums, false);
        }
        if !last.is_empty() {
            let mut rows = [PairRow([0; COLUMNS]); PAIRS];
            rows[..last.len()].copy_from_slice(last);
            product(&left[..registers], TERMS, &rows, sums, !whole.is_empty());
        }
        &sums.0[..unit.len()]
    }
}

impl<const TERMS: usize> Drop for Packed<TERMS> {
    fn drop(&mut self) {
        if self.tiles.capacity() <= KEPT {
            EARLIER.set(std::mem::take(&mut self.tiles));
        }
    }
}

/// Packs the rows of a unit: for every 32 values a register for each term and, of each, for each group of rows.
fn pack<const TERMS: usize>(values: &[f32], inner: usize, tiles: &mut [Left]) {
    let groups = (values.len() / inner).div_ceil(ROWS);
    vectorized(
        #[inline(always)]
        || {
            for (row, values) in values.chunks_exact(inner).enumerate() {
                let (group, row) = (row / ROWS, row % ROWS);
                for (values, tiles) in values.chunks(2 * PAIRS).zip(tiles.chunks_exact_mut(TERMS * groups)) {
                    let terms = match values.try_into() {
                        Ok(whole) => split::<TERMS>(whole),
                        Err(_) => {
                            let mut padded = [0f32; 2 * PAIRS];
                            padded[..values.len()].copy_from_slice(values);
                            split::<TERMS>(&padded)
                        }
                    };
                    for (tiles, term) in tiles.chunks_exact_mut(groups).zip(terms) {
                        tiles[group].0[row] = term;
                    }
                }
            }
        },
    );
}

/// Each term of some values, two of them a pair.
#[inline(always)]
fn split<const TERMS: usize>(values: &[f32; 2 * PAIRS]) -> [[u32; PAIRS]; TERMS] {
    let mut terms = [[0; PAIRS]; TERMS];
    if let [one] = &mut terms[..] {
        round_pairs(values, one);
        return terms;
    }
    let mut rest = *values;
    for term in &mut terms {
        let mut upper = [0u32; 2 * PAIRS];
        for (upper, rest) in upper.iter_mut().zip(&mut rest) {
            *upper = rest.to_bits() & 0xffff_0000;
            // What is left has eight bits fewer, so nothing is lost.
            *rest -= f32::from_bits(*upper);
        }
        for (pair, upper) in term.iter_mut().zip(upper.chunks_exact(2)) {
            *pair = upper[0] >> 16 | upper[1];
        }
    }
    terms
}

/// Whether a product multiplies small whole numbers without an error, as the formats can. Tried once, before the
/// first use: a CPU, or a machine that only plays one, whose instruction does something else would spoil every
/// answer.
fn is_exact(product: Product) -> bool {
    const STEPS: usize = 3;
    const INNER: usize = STEPS * 2 * PAIRS - 5;
    // All different enough that a swapped row, column or half shows.
    let left = |row: usize, at: usize| ((row * 37 + at * 11) % 61) as f32 - 30.0;
    let right = |at: usize, column: usize| ((at * 53 + column * 17) % 59) as f32 - 29.0;
    let columns: Vec<f32> = (0..COLUMNS).flat_map(|column| (0..INNER).map(move |at| right(at, column))).collect();
    let panels = Panels::pack(&columns, COLUMNS, INNER);
    // A unit at a time: no other thread is asked, so nobody comes here again meanwhile.
    [1, ROWS, ROWS + 1, UNIT].into_iter().all(|rows| {
        let values: Vec<f32> = (0..rows).flat_map(|row| (0..INNER).map(move |at| left(row, at))).collect();
        let mut sums = Sums::default();
        let packed = Packed::<EXACT>::new(&values, INNER);
        packed.multiply(product, 0..rows, 0, panels.panel(0), &mut sums).iter().enumerate().all(|(row, sums)| {
            sums.iter().enumerate().all(|(column, sum)| {
                let exact: f32 = (0..INNER).map(|at| left(row, at) * right(at, column)).sum();
                *sum == exact
            })
        })
    })
}
