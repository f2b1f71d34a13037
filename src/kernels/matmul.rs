//! Matrix products over borrowed f32 memory: the `gemm` crate that candle's own matmul stands on,
//! behind bounds that are checked, so that operations can multiply strided views (one head of many,
//! one record of a batch) and add into what is already there without copies.

use gemm::Parallelism;
use rayon::prelude::*;

/// A matrix in someone else's memory: element (i, j) lies at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `cols` values, one after the other.
    pub(super) fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(values, rows, cols, cols)
    }

    /// Rows of `cols` adjacent values that begin `row_stride` values apart.
    pub(super) fn strided(values: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { values: &values[..extent(rows, cols, row_stride)], rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, in the same memory.
    pub(super) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The columns `start..end`.
    fn columns(self, start: usize, end: usize) -> Self {
        Self { values: &self.values[start * self.col_stride..], cols: end - start, ..self }
    }
}

/// How many values a matrix with adjacent columns spans.
fn extent(rows: usize, cols: usize, row_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols }
}

/// What happens to the values that stand in the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// They are replaced.
    Replace,
    /// The product is added to them.
    Add,
}

/// Who does the work: operations that already run one task per core multiply alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// The calling thread.
    One,
    /// All threads of the current rayon pool.
    All,
}

/// Up to this many rows on the left, a product is bound by reading the right-hand matrix once: it is
/// then cut by columns and each piece multiplied row by row, without gemm's packing.
const FEW_ROWS: usize = 4;
/// Size of such a piece in values: it stays in a core's second-level cache for all rows.
const PIECE: usize = 1 << 16;

/// Where a product goes: rows of `columns` adjacent values that begin `row_stride` values apart.
pub(super) struct Output<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) columns: usize,
    pub(super) row_stride: usize,
}

/// `out = scale · lhs · rhs`, or `out += …`. `out` holds `lhs.rows` rows of `rhs.cols` adjacent values.
pub(super) fn matmul(out: &mut [f32], into: Write, scale: f32, lhs: Matrix<'_>, rhs: Matrix<'_>, threads: Threads) {
    assert_eq!(out.len(), lhs.rows * rhs.cols, "the output of a matrix product has another size");
    let out = Output { values: out, columns: rhs.cols, row_stride: rhs.cols };
    matmul_into(out, into, scale, lhs, rhs, threads);
}

/// As [`matmul`], into some columns of a wider matrix.
pub(super) fn matmul_into(
    out: Output<'_>,
    into: Write,
    scale: f32,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    threads: Threads,
) {
    let columns = rhs.cols;
    let extent = extent(lhs.rows, columns, out.row_stride);
    assert!(out.columns == columns && columns <= out.row_stride, "the output of a matrix product has another size");
    if extent == 0 {
        return;
    }
    let out = Output { values: &mut out.values[..extent], ..out };
    // A weight matrix seen transposed: its rows, our columns, are contiguous.
    let few = lhs.rows <= FEW_ROWS && lhs.cols > 0 && lhs.col_stride == 1 && rhs.row_stride == 1;
    if !few {
        return gemm_into(out, into, scale, lhs, rhs, threads);
    }
    let piece = (PIECE / rhs.rows.max(1)).clamp(16, columns.max(16));
    for_pieces(out, piece, threads, |start, row, values| {
        let columns = values.len();
        let lhs = Matrix { values: &lhs.values[row * lhs.row_stride..], rows: 1, ..lhs };
        let out = Output { values, columns, row_stride: columns };
        gemm_into(out, into, scale, lhs, rhs.columns(start, start + columns), Threads::One);
    });
}

/// `scale · lhs · rhs` in fresh memory, by all threads.
pub(super) fn product(scale: f32, lhs: Matrix<'_>, rhs: Matrix<'_>) -> Vec<f32> {
    let mut out = vec![0f32; lhs.rows * rhs.cols];
    matmul(&mut out, Write::Replace, scale, lhs, rhs, Threads::All);
    out
}

/// Calls `body(first column, row, values)` for every row within every piece of columns.
fn for_pieces(out: Output<'_>, piece: usize, threads: Threads, body: impl Fn(usize, usize, &mut [f32]) + Sync) {
    let mut pieces: Vec<(usize, Vec<&mut [f32]>)> =
        (0..out.columns.div_ceil(piece)).map(|index| (index * piece, Vec::with_capacity(FEW_ROWS))).collect();
    for row in out.values.chunks_mut(out.row_stride) {
        for (values, (_, rows)) in row[..out.columns].chunks_mut(piece).zip(&mut pieces) {
            rows.push(values);
        }
    }
    let run = |(start, rows): (usize, Vec<&mut [f32]>)| {
        for (row, values) in rows.into_iter().enumerate() {
            body(start, row, values);
        }
    };
    match threads {
        Threads::One => pieces.into_iter().for_each(run),
        Threads::All => pieces.into_par_iter().for_each(run),
    }
}

#[expect(unsafe_code, reason = "gemm takes raw pointers; the bounds are checked right before the call")]
fn gemm_into(out: Output<'_>, into: Write, scale: f32, lhs: Matrix<'_>, rhs: Matrix<'_>, threads: Threads) {
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    assert_eq!(k, rhs.rows, "the inner sizes of a matrix product differ");
    let fits = out.columns == n && n <= out.row_stride && out.values.len() == extent(m, n, out.row_stride);
    assert!(fits, "the output of a matrix product has another size");
    for matrix in [lhs, rhs] {
        let last = (matrix.rows.max(1) - 1) * matrix.row_stride + (matrix.cols.max(1) - 1) * matrix.col_stride;
        assert!(k == 0 || last < matrix.values.len(), "a matrix reaches past its memory");
    }
    if k == 0 {
        if into == Write::Replace {
            out.values.chunks_mut(out.row_stride).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        // Zero: as many as the current pool has.
        Threads::All => Parallelism::Rayon(0),
    };
    let add = into == Write::Add;
    // SAFETY: `out` is borrowed exclusively and holds m rows of n values `row_stride` ≥ n apart; the last
    // element of each operand lies within its slice, as just checked, and strides are not negative.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.values.as_mut_ptr(),
            1,
            out.row_stride as isize,
            add,
            lhs.values.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.values.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    #[test]
    fn products_of_every_shape_and_view_equal_the_definition() {
        for (m, n, k) in [(1, 1, 1), (1, 37, 5), (2, 300, 700), (4, 9, 3), (5, 9, 3), (33, 70, 65), (3, 4, 0)] {
            let (a, b) = (row(m * (k + 3), 1), row(k * n, 2));
            let transposed: Vec<f32> = (0..n * k).map(|i| b[(i % k.max(1)) * n + i / k.max(1)]).collect();
            let lhs = Matrix::strided(&a, m, k, k + 3);
            for rhs in [Matrix::new(&b, k, n), Matrix::new(&transposed, n, k).t()] {
                for threads in [Threads::One, Threads::All] {
                    let mut out = vec![2f32; m * n];
                    matmul(&mut out, Write::Replace, 0.5, lhs, rhs, threads);
                    matmul(&mut out, Write::Add, 1.0, lhs, rhs, threads);
                    for i in 0..m {
                        for j in 0..n {
                            let exact: f64 =
                                (0..k).map(|p| f64::from(a[i * (k + 3) + p]) * f64::from(b[p * n + j])).sum();
                            let error = (f64::from(out[i * n + j]) - 1.5 * exact).abs();
                            assert!(error < 1e-4, "({m}, {n}, {k}) at ({i}, {j}): {error}");
                        }
                    }
                }
            }
        }
    }
}
