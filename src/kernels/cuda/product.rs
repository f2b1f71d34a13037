//! Products of matrices, which cuBLAS makes: how a product of row-major matrices is asked for from a library
//! whose matrices are column-major.

use candle_core::{Result, bail};

use super::launch::{Element, Machine, View, narrow};

/// A row-major matrix, perhaps transposed.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct Matrix<'a> {
    view: View<'a>,
    rows: usize,
    columns: usize,
    /// Whether `view` holds the rows of the transposed matrix.
    turned: bool,
}

impl<'a> Matrix<'a> {
    /// The `rows` by `columns` values of `view`.
    pub(super) fn new(view: View<'a>, rows: usize, columns: usize) -> Result<Self> {
        let view = view.expect("cuda", rows * columns)?;
        Ok(Self { view, rows, columns, turned: false })
    }

    /// Rows become columns.
    pub(super) fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, turned: !self.turned, ..self }
    }

    /// Values of a row as it lies in memory.
    fn stride(&self) -> usize {
        if self.turned { self.rows } else { self.columns }
    }
}

/// A call of cuBLAS: c = alpha · a · b + beta · c, everything column-major, a `[m, k]`, b `[k, n]`. Products are
/// added in f32.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct Product<'a> {
    /// Whether `a` lies transposed, `[k, m]`.
    pub(super) turn_a: bool,
    pub(super) turn_b: bool,
    pub(super) m: u32,
    pub(super) n: u32,
    pub(super) k: u32,
    pub(super) alpha: f32,
    pub(super) a: View<'a>,
    /// Values from one column to the next.
    pub(super) stride_a: u32,
    pub(super) b: View<'a>,
    pub(super) stride_b: u32,
    pub(super) beta: f32,
    pub(super) c: View<'a>,
    pub(super) stride_c: u32,
}

/// Whether a product takes the place of what was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    Replace,
    Add,
}

impl<'a> Product<'a> {
    /// `out` `[rows of a, columns of b]` = `alpha` · `a` · `b`, plus what is in `out` where it is to be added.
    pub(super) fn new(out: View<'a>, write: Write, alpha: f32, a: Matrix<'a>, b: Matrix<'a>) -> Result<Self> {
        if a.columns != b.rows || out.len != a.rows * b.columns || a.view.element != b.view.element {
            bail!("cuda: no product of {a:?} and {b:?} fits into {} values", out.len);
        }
        // A row-major matrix is its transpose column-major, and (ab)ᵀ = bᵀaᵀ: the operands change places.
        Ok(Self {
            turn_a: b.turned,
            turn_b: a.turned,
            m: narrow("columns", b.columns)?,
            n: narrow("rows", a.rows)?,
            k: narrow("inner values", a.columns)?,
            alpha,
            a: b.view,
            stride_a: narrow("columns", b.stride())?,
            b: a.view,
            stride_b: narrow("columns", a.stride())?,
            beta: if write == Write::Add { 1.0 } else { 0.0 },
            c: out,
            stride_c: narrow("columns", b.columns)?,
        })
    }
}

/// `alpha` · `a` · `b` in memory of its own, of `element`.
pub(super) fn multiplied<M: Machine>(
    machine: &M,
    element: Element,
    alpha: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
) -> Result<M::Memory> {
    let out = machine.allocate(element, a.rows * b.columns)?;
    machine.multiply(&Product::new(machine.view(&out), Write::Replace, alpha, a, b)?)?;
    Ok(out)
}
