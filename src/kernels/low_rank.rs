//! Low-rank updates of rows that share a product with a weight: each range of rows has its own factors, or none.
//! The product is made once for all rows; here every range gets what its own tuning adds, in place.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::few_rows;
use super::linear::linear;
use super::matmul::{Output, Write};
use super::operand::{Values, values};
use super::vector::vectorized;

const NAME: &str = "low_rank";
/// Rows of a task: a few are not worth a second thread.
const TASK_ROWS: usize = 4;
/// Outputs that are made together, their factors turned for it.
const BLOCK: usize = 64;

/// What some rows get.
#[derive(Debug, Clone)]
pub struct RowsUpdate {
    /// Which rows.
    pub rows: Range<usize>,
    /// `[r, in]`.
    pub a: Tensor,
    /// `[out, r]`; on the CPU it is read fastest where its columns lie together.
    pub b: Tensor,
    /// What the update is multiplied with.
    pub scale: f64,
    /// What each output is multiplied with after the update, `[out]`.
    pub stretch: Option<Tensor>,
}

/// y = (y + s·xAᵀBᵀ)·stretch for the rows of each update, then y + bias for all rows. `y` `[N, out]` is the
/// product of `x` `[N, in]` with a weight, and nobody else's: on the CPU it is written over. The ranges of the
/// updates are in order and do not overlap. Nothing here has a gradient.
///
/// # Errors
/// When the shapes do not fit, or an operand is not f32.
pub fn update_rows(y: Tensor, x: &Tensor, updates: Vec<RowsUpdate>, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((rows, outputs), (x_rows, inputs)) = (y.dims2()?, x.dims2()?);
    let mut end = 0;
    for update in &updates {
        let (rank, rank_of_b) = (update.a.dim(0)?, update.b.dim(1)?);
        if update.a.dim(1)? != inputs
            || update.b.dim(0)? != outputs
            || rank != rank_of_b
            || rank * inputs * outputs == 0
        {
            bail!("{NAME}: A {:?} and B {:?} do not update {:?}", update.a.shape(), update.b.shape(), y.shape());
        }
        if update.rows.start < end || update.rows.end > rows || x_rows != rows {
            bail!("{NAME}: no rows {:?} after {end} among {rows} of y and {x_rows} of x", update.rows);
        }
        if update.stretch.as_ref().is_some_and(|stretch| stretch.dims() != [outputs]) {
            bail!("{NAME}: the lengths of {:?} are not {outputs}", update.rows);
        }
        end = update.rows.end;
    }
    if bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!("{NAME}: the bias is not of {outputs} outputs");
    }
    if updates.is_empty() && bias.is_none() {
        return Ok(y);
    }
    if !y.device().is_cpu() {
        return apart(&y, x, &updates, bias);
    }
    let bias = bias.map(Tensor::contiguous).transpose()?;
    y.inplace_op2(&x.contiguous()?, &UpdateRows { updates, bias })?;
    Ok(y)
}

/// The same with an operation for every step.
fn apart(y: &Tensor, x: &Tensor, updates: &[RowsUpdate], bias: Option<&Tensor>) -> Result<Tensor> {
    let mut parts = Vec::new();
    let mut done = 0;
    for RowsUpdate { rows, a, b, scale, stretch } in updates {
        parts.push(y.narrow(0, done, rows.start - done)?);
        let low = linear(&x.narrow(0, rows.start, rows.len())?, a, None)?;
        let added = (y.narrow(0, rows.start, rows.len())? + (linear(&low, b, None)? * *scale)?)?;
        parts.push(match stretch {
            Some(stretch) => added.broadcast_mul(stretch)?,
            None => added,
        });
        done = rows.end;
    }
    parts.push(y.narrow(0, done, y.dim(0)? - done)?);
    parts.retain(|part| part.elem_count() > 0);
    let all = Tensor::cat(&parts, 0)?;
    bias.map_or(Ok(all.clone()), |bias| all.broadcast_add(bias))
}

struct UpdateRows {
    updates: Vec<RowsUpdate>,
    bias: Option<Tensor>,
}

impl UpdateRows {
    fn update(update: &RowsUpdate, x: &[f32], y: &mut [f32], outputs: usize) -> Result<()> {
        let columns = update.b.t()?;
        let by_columns = columns.is_contiguous();
        let (a, b) = (update.a.contiguous()?, if by_columns { columns } else { update.b.contiguous()? });
        let (a, b, rank) = (Values::of(NAME, &a)?, Values::of(NAME, &b)?, update.a.dim(0)?);
        let (inputs, scale) = (a.len() / rank, update.scale as f32);
        let tasks = x.par_chunks(TASK_ROWS * inputs).zip(y.par_chunks_mut(TASK_ROWS * outputs)).with_max_len(1);
        tasks.for_each(|(x, y)| {
            let mut low = vec![0f32; x.len() / inputs * rank];
            let out = Output { values: &mut low, columns: rank, row_stride: rank };
            few_rows::dense(x, inputs, &a, out, Write::Replace);
            low.iter_mut().for_each(|value| *value *= scale);
            if by_columns { widen(&low, &b, rank, y, outputs) } else { widen_by_rows(&low, &b, rank, y, outputs) }
        });
        if let Some(stretch) = &update.stretch {
            let stretch = stretch.contiguous()?;
            let stretch = Values::of(NAME, &stretch)?;
            for row in y.chunks_exact_mut(outputs) {
                row.iter_mut().zip(stretch.iter()).for_each(|(value, stretch)| *value *= stretch);
            }
        }
        Ok(())
    }
}

impl InplaceOp2 for UpdateRows {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, yl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<()> {
        let ((_, outputs), (_, inputs)) = (yl.shape().dims2()?, xl.shape().dims2()?);
        let x = values(NAME, x, xl)?;
        let (CpuStorage::F32(y), Some((start, end))) = (y, yl.contiguous_offsets()) else {
            bail!("{NAME} computes in f32 on the CPU")
        };
        let y = &mut y[start..end];
        let mut tasks = Vec::with_capacity(self.updates.len());
        let (mut rest, mut done) = (&mut *y, 0);
        for update in &self.updates {
            let (before, later) = rest.split_at_mut((update.rows.end - done) * outputs);
            let own = &mut before[(update.rows.start - done) * outputs..];
            let x = &x[update.rows.start * inputs..update.rows.end * inputs];
            tasks.push((update, x, own));
            (rest, done) = (later, update.rows.end);
        }
        tasks.into_par_iter().try_for_each(|(update, x, y)| Self::update(update, x, y, outputs))?;
        if let Some(bias) = &self.bias {
            let bias = Values::of(NAME, bias)?;
            for row in y.chunks_exact_mut(outputs) {
                row.iter_mut().zip(bias.iter()).for_each(|(value, bias)| *value += bias);
            }
        }
        Ok(())
    }
}

/// Adds to each row of `y` the product of B with its row of `low`, from the columns of B, `[r, out]`: every output is a
/// chain of multiply-adds over the rank.
fn widen(low: &[f32], columns: &[f32], rank: usize, y: &mut [f32], outputs: usize) {
    vectorized(
        #[inline(always)]
        || {
            for first in (0..outputs).step_by(BLOCK) {
                let block = first..outputs.min(first + BLOCK);
                for (low, y) in low.chunks_exact(rank).zip(y.chunks_exact_mut(outputs)) {
                    let mut sums = [0f32; BLOCK];
                    for (low, column) in low.iter().zip(columns.chunks_exact(outputs)) {
                        match column[block.clone()].as_array::<BLOCK>() {
                            Some(column) => add(&mut sums, *low, column),
                            None => add(&mut sums, *low, &column[block.clone()]),
                        }
                    }
                    y[block.clone()].iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
                }
            }
        },
    );
}

#[inline(always)]
fn add(sums: &mut [f32; BLOCK], low: f32, values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = low.mul_add(*value, *sum);
    }
}

/// As [`widen`], with the same bits, from the rows of B, `[out, r]`, as they train. A row is too short for a product of
/// its own, so blocks are turned first.
fn widen_by_rows(low: &[f32], b: &[f32], rank: usize, y: &mut [f32], outputs: usize) {
    let mut turned = vec![[0f32; BLOCK]; rank];
    for (block, b) in b.chunks(BLOCK * rank).enumerate() {
        vectorized(
            #[inline(always)]
            || {
                turn(b, rank, &mut turned);
                for (low, y) in low.chunks_exact(rank).zip(y.chunks_exact_mut(outputs)) {
                    let mut sums = [0f32; BLOCK];
                    low.iter().zip(&turned).for_each(|(low, turned)| add(&mut sums, *low, turned));
                    let y = &mut y[block * BLOCK..outputs.min((block + 1) * BLOCK)];
                    y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
                }
            },
        );
    }
}

/// Writes rows of `rank` values as columns, in squares that vector registers hold.
#[inline(always)]
fn turn(b: &[f32], rank: usize, turned: &mut [[f32; BLOCK]]) {
    const SIDE: usize = 8;
    let (outputs, whole) = (b.len() / rank, rank / SIDE * SIDE);
    for from in (0..outputs).step_by(SIDE) {
        let rows = &b[from * rank..outputs.min(from + SIDE) * rank];
        let mut squared = 0;
        if rows.len() == SIDE * rank {
            for at in (0..whole).step_by(SIDE) {
                let mut square = [[0f32; SIDE]; SIDE];
                for (line, row) in square.iter_mut().zip(rows.chunks_exact(rank)) {
                    line.copy_from_slice(&row[at..at + SIDE]);
                }
                for (column, turned) in turned[at..at + SIDE].iter_mut().enumerate() {
                    let line: [f32; SIDE] = std::array::from_fn(|row| square[row][column]);
                    turned[from..from + SIDE].copy_from_slice(&line);
                }
            }
            squared = whole;
        }
        for (output, row) in rows.chunks_exact(rank).enumerate() {
            for (turned, value) in turned[squared..].iter_mut().zip(&row[squared..]) {
                turned[from + output] = *value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gradcheck::{assert_close, flat, operand};

    /// More than a block, and no whole number of them.
    const OUTPUTS: usize = 150;
    const ROWS: usize = 17;

    fn updates() -> Vec<RowsUpdate> {
        let update = |rows: Range<usize>, rank: usize, scale, stretched: bool| RowsUpdate {
            a: operand(&[rank, 20], rows.start as u32),
            b: operand(&[OUTPUTS, rank], rows.end as u32),
            rows,
            scale,
            stretch: stretched.then(|| operand(&[OUTPUTS], 9)),
        };
        vec![update(0..2, 3, 2.0, false), update(3..4, 16, 0.5, true), update(4..15, 1, 1.0, true)]
    }

    #[test]
    fn every_range_gets_its_own_update_and_all_rows_the_bias() {
        let (y, x, bias) = (operand(&[ROWS, OUTPUTS], 1), operand(&[ROWS, 20], 2), operand(&[OUTPUTS], 3));
        for bias in [None, Some(&bias)] {
            let expected = apart(&y, &x, &updates(), bias).unwrap();
            let got = update_rows(y.copy().unwrap(), &x, updates(), bias).unwrap();
            assert_close(&got, &expected, 1e-5);
            assert!(flat(&got) != flat(&y));
        }
    }

    #[test]
    fn a_b_that_lies_by_columns_gives_the_bits_of_one_that_lies_by_rows() {
        let (y, x) = (operand(&[ROWS, OUTPUTS], 1), operand(&[ROWS, 20], 2));
        let by_columns = |update: RowsUpdate| {
            let b = update.b.t().unwrap().contiguous().unwrap().t().unwrap();
            assert!(update.b.dim(1).unwrap() == 1 || !b.is_contiguous());
            RowsUpdate { b, ..update }
        };
        let rows = update_rows(y.copy().unwrap(), &x, updates(), None).unwrap();
        let columns = updates().into_iter().map(by_columns).collect();
        let columns = update_rows(y.copy().unwrap(), &x, columns, None).unwrap();
        assert_eq!(flat(&rows), flat(&columns));
    }

    #[test]
    fn a_row_gets_the_same_bits_whoever_stands_beside_it() {
        let (y, x, bias) = (operand(&[ROWS, OUTPUTS], 1), operand(&[ROWS, 20], 2), operand(&[OUTPUTS], 3));
        let all = flat(&update_rows(y.copy().unwrap(), &x, updates(), Some(&bias)).unwrap());
        for row in 0..ROWS {
            let own = updates().into_iter().find(|update| update.rows.contains(&row));
            let own = own.map(|update| RowsUpdate { rows: 0..1, ..update }).into_iter().collect();
            let one = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap().copy().unwrap();
            let alone = update_rows(one(&y), &one(&x), own, Some(&bias)).unwrap();
            assert_eq!(flat(&alone), all[row * OUTPUTS..(row + 1) * OUTPUTS], "row {row}");
        }
    }

    #[test]
    fn updates_that_do_not_fit_are_refused() {
        let (y, x) = (operand(&[ROWS, OUTPUTS], 1), operand(&[ROWS, 20], 2));
        let with = |change: &dyn Fn(&mut RowsUpdate)| {
            let mut wrong = updates();
            change(&mut wrong[1]);
            update_rows(y.clone(), &x, wrong, None)
        };
        assert!(with(&|update| update.rows = 1..4).is_err());
        assert!(with(&|update| update.a = operand(&[15, 20], 1)).is_err());
        assert!(with(&|update| update.stretch = Some(operand(&[3], 1))).is_err());
    }
}
