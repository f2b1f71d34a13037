//! The product of a few rows with a weight, as decoding needs it: bound by how fast the weight comes out of
//! memory, so each value of it is read once for all rows, bf16 becomes f32 in registers and NF4 in a few rows
//! that a core's cache holds. What a row comes to does not depend on how many rows stand beside it, on the
//! threads or on the CPU: every output is a chain of fused multiply-adds in an order that the shape of the weight
//! alone decides. Only with more than [`MOST_ROWS`] rows, which no step of decoding has, a CPU with tile registers takes
//! those for a weight in bf16: each row as three terms in bf16 that are all its bits, so nothing is rounded that a
//! product in f32 would not round. So a sequence that is decoded among others gets the bits that it gets alone. Training
//! asks for something else, that a record gets the same bits in a small micro-batch as in a large one, and multiplies
//! them all in one way: this one is taken within [`each_row_alone`] only.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::sync::OnceLock;

use rayon::prelude::*;

use super::amx::{self, EXACT};
use super::bf16::panels::{COLUMNS, PairRow, Panels};
use super::bf16::product::in_registers;
use super::matmul::{Output, Write};
use super::nf4::Nf4;
#[cfg(target_arch = "x86_64")]
use super::vector::{LINE, prefetch};

/// Most rows that are multiplied this way with a weight in f32 or NF4, and with one in bf16 where there are tile
/// registers; more are bound by arithmetic, and blocked for that.
pub(crate) const MOST_ROWS: usize = 64;

/// Rows that go over a weight in panels together, of which there may be any number: they stay in a second-level cache,
/// and packed for registers they do not grow with the text.
const ROWS_TOGETHER: usize = 512;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body`, in which products that this thread begins with few rows are made of each row by itself. What a thread
/// pool has this thread do meanwhile is done so too: training begins its products on threads of its own.
pub fn each_row_alone<T>(body: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _restore = Restore(ALONE.replace(true));
    body()
}

/// Whether so many rows are each multiplied alone, where `most` may be.
pub(super) fn asked(rows: usize, most: usize) -> bool {
    rows <= most && ALONE.get()
}

/// Most rows that a tile of any CPU multiplies with a panel.
const PANEL_ROWS: usize = 12;
/// Rows that a tile multiplies with rows of a row-major weight: as many as leave the registers of AVX2 room for the
/// weight.
const ROWS: usize = 3;
/// Rows of a row-major weight that a tile takes at a time.
const OUTPUTS: usize = 4;
/// Partial sums of an output of a row-major weight.
const LANES: usize = 8;
/// Pairs of a block of the inner dimension of a panel, which the second-level cache holds for all rows.
const BLOCK_PAIRS: usize = 512;
/// Values of a task, about: enough to be worth handing out.
const PIECE: usize = 1 << 16;
/// A task has fewer values where that makes so many tasks, for cores to share evenly, but not fewer than
/// [`LEAST`].
const TASKS: usize = 8;
const LEAST: usize = 1 << 14;
/// Rows of a weight in NF4 that are decoded at a time.
const DECODED: usize = 4 * OUTPUTS;

/// Rows of a panel that are asked for ahead: a page. At its end a CPU stops to read ahead by itself, and a few rows
/// are multiplied in less time than the next page takes to come.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096 / size_of::<PairRow>();

/// Asks for what lies [`AHEAD`] rows of a panel further on, or for nothing where nothing lies.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn read_ahead(row: *const PairRow) {
    let ahead: *const u8 = row.wrapping_add(AHEAD).cast();
    prefetch(ahead);
    prefetch(ahead.wrapping_add(LINE));
}

/// A row of one of the matrices.
type Row<'a> = &'a [f32];
/// The sums of a tile over a panel: for each of its rows one of every column.
type PanelSums = [[f32; COLUMNS]; PANEL_ROWS];
/// The sums of a tile over rows of a weight.
type RowSums = [[f32; OUTPUTS]; ROWS];

/// The two tiles as one instruction set computes them. The rows of `x` are of one length.
#[derive(Clone, Copy)]
struct Tiles {
    /// Sums of up to `panel_rows` rows over a block of a panel, pair by pair, the earlier value of a pair first. The
    /// rows are as long as the block, or one value shorter.
    panel: fn(x: &[Row<'_>], panel: &[PairRow], sums: &mut PanelSums),
    /// As many rows as leave the registers room for the weight; no more than [`PANEL_ROWS`].
    panel_rows: usize,
    /// Sums of up to [`ROWS`] rows over up to [`OUTPUTS`] rows of a weight, each as long as those of `x`: in [`LANES`] lanes that are
    /// added in a fixed order, and what is left over at the end of a row after them.
    rows: fn(x: &[Row<'_>], weight: &[Row<'_>], sums: &mut RowSums),
}

impl Tiles {
    /// Those of this CPU, the fastest last; all give the same bits.
    fn all() -> Vec<(&'static str, Self)> {
        let mut all = vec![("portable", Self::portable())];
        #[cfg(target_arch = "x86_64")]
        if avx2::is_available() {
            let avx2 = Self { panel: avx2::panel, panel_rows: avx2::PANEL_ROWS, rows: avx2::rows };
            all.push(("AVX2", avx2));
            if avx512::is_available() {
                all.push(("AVX-512", Self { panel: avx512::panel, panel_rows: avx512::ROWS, ..avx2 }));
            }
        }
        all
    }

    fn native() -> Self {
        static NATIVE: OnceLock<Tiles> = OnceLock::new();
        *NATIVE.get_or_init(|| Self::all().pop().map_or(Self::portable(), |(_, tiles)| tiles))
    }

    fn portable() -> Self {
        Self { panel: portable::panel, panel_rows: 4, rows: portable::rows }
    }
}

/// `x`, `rows` rows of `inputs` values, times the transpose of `weight` `[out, inputs]`, row-major, replaces the
/// adjacent rows of `out` or is added to them.
pub(super) fn dense(x: &[f32], inputs: usize, weight: &[f32], out: Output<'_>, into: Write) {
    dense_by(Tiles::native(), x, inputs, weight, out, into);
}

/// As [`dense`], with a weight in panels.
pub(super) fn panels(x: &[f32], weight: &Panels, out: Output<'_>, into: Write) {
    let inner = weight.inner();
    let registers = amx::native().filter(|_| x.len() > MOST_ROWS * inner);
    let Output { values, columns, row_stride } = out;
    let some = x.chunks(ROWS_TOGETHER * inner).zip(values.chunks_mut(ROWS_TOGETHER * row_stride));
    for (x, values) in some {
        let out = Output { values, columns, row_stride };
        match registers {
            Some(product) => in_registers::<EXACT>(product, x, x.len() / inner, weight, out, into),
            None => panels_by(Tiles::native(), x, weight, out, into),
        }
    }
}

/// As [`dense`], with a weight in NF4.
pub(super) fn nf4(x: &[f32], weight: &Nf4, out: Output<'_>, into: Write) {
    nf4_by(Tiles::native(), x, weight, out, into);
}

fn dense_by(tiles: Tiles, x: &[f32], inputs: usize, weight: &[f32], out: Output<'_>, into: Write) {
    assert!(weight.len() == out.columns * inputs, "the weight of a product has another size");
    tasks(x, inputs, out, |x, first, columns| {
        let end = first + columns[0].len();
        row_major(tiles, x, &weight[first * inputs..end * inputs], inputs, columns, 0, into);
    });
}

fn nf4_by(tiles: Tiles, x: &[f32], weight: &Nf4, out: Output<'_>, into: Write) {
    thread_local! {
        static DECODED_ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    let (outputs, inputs) = weight.dims();
    assert!(outputs == out.columns, "the weight of a product has another size");
    tasks(x, inputs, out, |x, first, columns| {
        let width = columns[0].len();
        DECODED_ROWS.with_borrow_mut(|decoded| {
            for start in (0..width).step_by(DECODED) {
                let count = DECODED.min(width - start);
                decoded.resize(count * inputs, 0.0);
                weight.decode((first + start) * inputs, decoded);
                row_major(tiles, x, decoded, inputs, columns, start, into);
            }
        });
    });
}

/// Multiplies some rows of a weight, of which the first gives the output at `at` in each of `columns`.
fn row_major(
    tiles: Tiles,
    x: &[&[f32]],
    weight: &[f32],
    inputs: usize,
    columns: &mut [&mut [f32]],
    at: usize,
    into: Write,
) {
    let mut sums = RowSums::default();
    for (tile, weight) in weight.chunks(OUTPUTS * inputs).enumerate() {
        let (count, at) = (weight.len() / inputs, at + tile * OUTPUTS);
        let row = |index: usize| &weight[index * inputs..(index + 1) * inputs];
        let weight: [&[f32]; OUTPUTS] = std::array::from_fn(|index| row(index.min(count - 1)));
        for (x, columns) in x.chunks(ROWS).zip(columns.chunks_mut(ROWS)) {
            (tiles.rows)(x, &weight[..count], &mut sums);
            for (columns, sums) in columns.iter_mut().zip(&sums) {
                write(&mut columns[at..at + count], sums, into);
            }
        }
    }
}

fn panels_by(tiles: Tiles, x: &[f32], weight: &Panels, out: Output<'_>, into: Write) {
    let inputs = weight.inner();
    assert!(weight.columns() == out.columns, "the weight of a product has another size");
    tasks(x, inputs, out, |x, first, columns| {
        let mut sums: PanelSums = [[0.0; COLUMNS]; PANEL_ROWS];
        let width = columns[0].len();
        // Tiles of about one size.
        let together = x.len().div_ceil(x.len().div_ceil(tiles.panel_rows));
        for at in (0..width).step_by(COLUMNS) {
            let end = width.min(at + COLUMNS);
            let panel = weight.panel((first + at) / COLUMNS);
            for (block, panel) in panel.chunks(BLOCK_PAIRS).enumerate() {
                let from = 2 * BLOCK_PAIRS * block;
                let into = if block == 0 { into } else { Write::Add };
                for (x, columns) in x.chunks(together).zip(columns.chunks_mut(together)) {
                    let mut parts: [&[f32]; PANEL_ROWS] = [&[]; PANEL_ROWS];
                    for (part, row) in parts.iter_mut().zip(x) {
                        *part = &row[from..inputs.min(from + 2 * panel.len())];
                    }
                    (tiles.panel)(&parts[..x.len()], panel, &mut sums);
                    for (columns, sums) in columns.iter_mut().zip(&sums) {
                        write(&mut columns[at..end], sums, into);
                    }
                }
            }
        }
    });
}

/// The inner products of each of `x` with `count` rows of a matrix of which `row(i)` is the i-th; `scale` times each
/// goes to `out` `[x, count]`.
pub(super) fn inner_products<'a>(
    x: &[Row<'_>],
    count: usize,
    row: impl Fn(usize) -> &'a [f32],
    scale: f32,
    out: &mut [f32],
) {
    assert!(out.len() == x.len() * count, "the output of inner products has another size");
    let tiles = Tiles::native();
    let mut sums = RowSums::default();
    for first in (0..count).step_by(OUTPUTS) {
        let width = OUTPUTS.min(count - first);
        let rows: [&[f32]; OUTPUTS] = std::array::from_fn(|index| row(first + index.min(width - 1)));
        for (x, out) in x.chunks(ROWS).zip(out.chunks_mut(ROWS * count)) {
            (tiles.rows)(x, &rows[..width], &mut sums);
            for (out, sums) in out.chunks_exact_mut(count).zip(&sums) {
                out[first..first + width].iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * scale);
            }
        }
    }
}

#[inline(always)]
fn write(out: &mut [f32], sums: &[f32], into: Write) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if into == Write::Add { *out + sum } else { *sum };
    }
}

/// Calls `body(rows of x, first column, columns of each row)` for task after task of some columns.
fn tasks(x: &[f32], inputs: usize, out: Output<'_>, body: impl Fn(&[&[f32]], usize, &mut [&mut [f32]]) + Sync) {
    let (outputs, stride) = (out.columns, out.row_stride);
    let rows = x.len() / inputs.max(1);
    assert!(inputs > 0 && x.len() == rows * inputs, "the left-hand matrix of a product has another size");
    if rows == 0 || outputs == 0 {
        return;
    }
    assert!(outputs <= stride && out.values.len() >= (rows - 1) * stride + outputs, "the output has another size");
    // Many rows are enough to do with a panel each.
    let width = if rows > PANEL_ROWS { 1 } else { (PIECE / inputs).min(outputs / TASKS).max(LEAST / inputs).max(1) };
    let width = width.next_multiple_of(COLUMNS);
    let x: Vec<&[f32]> = x.chunks_exact(inputs).collect();
    if let [one] = x[..] {
        let columns = out.values[..outputs].par_chunks_mut(width).enumerate().with_max_len(1);
        columns.for_each(|(index, columns)| body(&[one], index * width, &mut [columns]));
        return;
    }
    let mut tasks: Vec<Vec<&mut [f32]>> = (0..outputs.div_ceil(width)).map(|_| Vec::with_capacity(rows)).collect();
    for row in out.values.chunks_mut(stride).take(rows) {
        for (task, columns) in tasks.iter_mut().zip(row[..outputs].chunks_mut(width)) {
            task.push(columns);
        }
    }
    // One by one: whoever is late, waking up, leaves the others more of them.
    tasks
        .into_par_iter()
        .enumerate()
        .with_max_len(1)
        .for_each(|(index, mut columns)| body(&x, index * width, &mut columns));
}
