//! A product of rows of f32 values with a matrix in panels, blocked for the caches and cut into tasks by its
//! shape alone. Every output is the sum of the same products in the same order whatever the rows around it,
//! the tasks and the threads: within a block of the inner dimension pair by pair, then block by block.

use rayon::prelude::*;

use super::panels::{COLUMNS, Panels, pack_rows};
use super::tile::{Kernel, ROWS, Sums, Tile};
use crate::kernels::amx::{self, ROUNDED};
use crate::kernels::matmul::{Output, Write};
use crate::kernels::vector::vectorized;

/// Most pairs of a block of the inner dimension: 12 rows of it take 18 KiB of the first-level cache, a panel 48 KiB.
const BLOCK_PAIRS: usize = 384;
/// The same in tile registers, which fetch rows from the second-level cache as fast as they multiply.
const REGISTER_PAIRS: usize = 1024;
/// Most panels of a task: 384 KiB of a block, in the second-level cache for all the task's rows.
const GROUP: usize = 8;
/// A task has fewer panels where that makes so many tasks, for cores to share evenly.
const TASKS: usize = 32;
/// Rows of a task: 144 KiB of a block.
const TASK_ROWS: usize = 8 * ROWS;

/// One task: some rows and columns of the output.
struct Task<'a> {
    /// Its first row's place.
    first_row: usize,
    first_panel: usize,
    /// Its columns of each of its rows.
    rows: Vec<&'a mut [f32]>,
}

/// `x`, `rows` rows of K values, times `panels` `[K, N]` replaces `out`, rows of N adjacent values that begin
/// `row_stride` apart, or is added to it; the rows are rounded to bf16.
pub(super) fn product(kernel: Kernel, x: &[f32], rows: usize, panels: &Panels, out: Output<'_>, into: Write) {
    match kernel {
        Kernel::Lanes(tile) => in_lanes(tile, x, rows, panels, out, into),
        Kernel::Registers(product) => in_registers::<ROUNDED>(product, x, rows, panels, out, into),
    }
}

fn in_lanes(tile: Tile, x: &[f32], rows: usize, panels: &Panels, out: Output<'_>, into: Write) {
    let (inner, pairs) = (panels.inner(), panels.pairs());
    let tasks = tasks(x, rows, panels, out);
    let mut packed = vec![0u32; rows * pairs];
    if inner > 0 {
        let blocks = packed.par_chunks_mut(ROWS * pairs).zip(x.par_chunks(ROWS * inner));
        blocks.for_each(|(packed, rows)| pack_rows::<ROWS>(rows, inner, packed));
    }
    tasks.into_par_iter().for_each(|Task { first_row, first_panel, rows: mut all }| {
        let mut sums = Sums::default();
        for block in blocks(pairs) {
            for (index, rows) in all.chunks_mut(ROWS).enumerate() {
                let first = (first_row + index * ROWS) * pairs;
                let left = &packed[first + block.start * rows.len()..first + block.end * rows.len()];
                let into = if block.start == 0 { into } else { Write::Add };
                for (panel, at) in (first_panel..).zip((0..rows[0].len()).step_by(COLUMNS)) {
                    tile(left, rows.len(), &panels.panel(panel)[block.clone()], &mut sums);
                    write(rows, at, &sums.0, into);
                }
            }
        }
    });
}

/// As [`product`], in tile registers, with rows as sums of so many terms.
pub(in crate::kernels) fn in_registers<const TERMS: usize>(
    product: amx::Product,
    x: &[f32],
    rows: usize,
    panels: &Panels,
    out: Output<'_>,
    into: Write,
) {
    let tasks = tasks(x, rows, panels, out);
    let left = amx::Packed::<TERMS>::new(x, panels.inner());
    let pairs = panels.pairs();
    tasks.into_par_iter().for_each(|Task { first_row, first_panel, rows: mut all }| {
        let mut sums = amx::Sums::default();
        for from in (0..pairs.max(1)).step_by(REGISTER_PAIRS) {
            let into = if from == 0 { into } else { Write::Add };
            for (index, rows) in all.chunks_mut(amx::UNIT).enumerate() {
                let first = first_row + index * amx::UNIT;
                for (panel, at) in (first_panel..).zip((0..rows[0].len()).step_by(COLUMNS)) {
                    let block = &panels.panel(panel)[from..pairs.min(from + REGISTER_PAIRS)];
                    let sums = left.multiply(product, first..first + rows.len(), from, block, &mut sums);
                    write(rows, at, sums, into);
                }
            }
        }
    });
}

/// Writes the sums of a panel's columns, of which the first is the rows' at `at`.
#[inline]
fn write(rows: &mut [&mut [f32]], at: usize, sums: &[[f32; COLUMNS]], into: Write) {
    vectorized(
        #[inline(always)]
        || {
            for (row, sums) in rows.iter_mut().zip(sums) {
                let end = row.len().min(at + COLUMNS);
                let out = &mut row[at..end];
                match into {
                    Write::Replace => out.copy_from_slice(&sums[..out.len()]),
                    Write::Add => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                }
            }
        },
    );
}

/// The inner dimension in blocks of nearly one size; one that is empty when there is nothing to sum.
fn blocks(pairs: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let size = pairs.div_ceil(pairs.div_ceil(BLOCK_PAIRS).max(1));
    let count = if size == 0 { 1 } else { pairs.div_ceil(size) };
    (0..count).map(move |index| index * size..pairs.min((index + 1) * size))
}

/// The tasks of a product, none where the output is empty.
fn tasks<'a>(x: &[f32], rows: usize, panels: &Panels, out: Output<'a>) -> Vec<Task<'a>> {
    let Output { values, columns, row_stride } = out;
    assert!(x.len() == rows * panels.inner(), "the left-hand matrix of a product has another size");
    assert!(columns == panels.columns() && columns <= row_stride, "the output of a product has another size");
    if rows == 0 || columns == 0 {
        return Vec::new();
    }
    let values = &mut values[..(rows - 1) * row_stride + columns];
    let panels = columns.div_ceil(COLUMNS) * rows.div_ceil(TASK_ROWS);
    let group = (panels / TASKS).clamp(1, GROUP);
    let width = group * COLUMNS;
    let per_rows = columns.div_ceil(width);
    let mut tasks = Vec::with_capacity(rows.div_ceil(TASK_ROWS) * per_rows);
    for first_row in (0..rows).step_by(TASK_ROWS) {
        let room = TASK_ROWS.min(rows - first_row);
        tasks.extend((0..per_rows).map(|index| Task {
            first_row,
            first_panel: index * group,
            rows: Vec::with_capacity(room),
        }));
    }
    for (index, row) in values.chunks_mut(row_stride).enumerate() {
        let first = index / TASK_ROWS * per_rows;
        for (task, values) in tasks[first..].iter_mut().zip(row[..columns].chunks_mut(width)) {
            task.rows.push(values);
        }
    }
    tasks
}
