//! The packed memory of a right-hand matrix `[K, N]`: panels of 32 columns, in each of them one row of 32
//! pairs of bf16 values for every two rows of the matrix, the earlier in the low half. Two aligned vector
//! loads read such a row. What is missing at the edges is zero.

use rayon::prelude::*;

use crate::kernels::vector::vectorized;

/// Columns of a panel: two vectors of 16 lanes.
pub(in crate::kernels) const COLUMNS: usize = 32;
/// Panel rows that are written or read together, so that what lies apart in one matrix and together in the
/// other is touched while it is in the first-level cache.
const BLOCK: usize = COLUMNS / 2;

/// A pair of bf16 values for each column of a panel.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::kernels) struct PairRow(pub(in crate::kernels) [u32; COLUMNS]);

/// A matrix in panels.
#[derive(Debug, Clone)]
pub(in crate::kernels) struct Panels {
    /// Columns of the matrix, N.
    columns: usize,
    /// Rows of the matrix, K.
    inner: usize,
    /// Panel after panel, each of [`Panels::pairs`] rows.
    rows: Vec<PairRow>,
}

impl Panels {
    /// Packs the transpose of a row-major matrix of `columns` rows and `inner` columns.
    pub(in crate::kernels) fn pack(values: &[f32], columns: usize, inner: usize) -> Self {
        let mut panels = Self::zeros(columns, inner);
        if inner > 0 {
            let of_panel = values.par_chunks(COLUMNS * inner);
            panels.rows.par_chunks_mut(inner.div_ceil(2)).zip(of_panel).for_each(|(panel, values)| {
                let mut rounded = [0u32; BLOCK];
                for (block, panel) in panel.chunks_mut(BLOCK).enumerate() {
                    for (lane, values) in values.chunks_exact(inner).enumerate() {
                        let start = 2 * BLOCK * block;
                        let values = &values[start..inner.min(start + 2 * BLOCK)];
                        round_pairs(values, &mut rounded);
                        for (row, pair) in panel.iter_mut().zip(rounded) {
                            row.0[lane] = pair;
                        }
                    }
                }
            });
        }
        panels
    }

    fn zeros(columns: usize, inner: usize) -> Self {
        let rows = vec![PairRow([0; COLUMNS]); columns.div_ceil(COLUMNS) * inner.div_ceil(2)];
        Self { columns, inner, rows }
    }

    /// Columns of the matrix, N.
    pub(in crate::kernels) fn columns(&self) -> usize {
        self.columns
    }

    /// Rows of the matrix, K.
    pub(in crate::kernels) fn inner(&self) -> usize {
        self.inner
    }

    /// Rows of a panel.
    pub(in crate::kernels) fn pairs(&self) -> usize {
        self.inner.div_ceil(2)
    }

    /// Bytes in memory.
    pub(in crate::kernels) fn bytes(&self) -> usize {
        size_of_val(self.rows.as_slice())
    }

    /// All rows of a panel.
    pub(in crate::kernels) fn panel(&self, index: usize) -> &[PairRow] {
        &self.rows[index * self.pairs()..(index + 1) * self.pairs()]
    }

    /// The panels of the transposed matrix.
    pub(in crate::kernels) fn transposed(&self) -> Self {
        let mut other = Self::zeros(self.inner, self.columns);
        let (own_pairs, pairs) = (self.pairs().max(1), other.pairs().max(1));
        for (to, panel) in other.rows.chunks_mut(pairs).enumerate() {
            for (from, own) in self.rows.chunks(own_pairs).enumerate() {
                // 16 rows of our panel are 32 columns of the other's, and our 32 columns 16 of its rows.
                let own = &own[to * BLOCK..own.len().min((to + 1) * BLOCK)];
                let end = panel.len().min((from + 1) * BLOCK);
                for (at, row) in panel[from * BLOCK..end].iter_mut().enumerate() {
                    for (two, own) in row.0.chunks_exact_mut(2).zip(own) {
                        let (first, second) = (own.0[2 * at], own.0[2 * at + 1]);
                        two[0] = first & 0xffff | second << 16;
                        two[1] = first >> 16 | second & 0xffff_0000;
                    }
                }
            }
        }
        other
    }

    /// Writes columns from `start` on, a multiple of [`COLUMNS`], as rows of `width` = K values.
    pub(in crate::kernels) fn decode(&self, start: usize, width: usize, out: &mut [f32]) {
        debug_assert!(start.is_multiple_of(COLUMNS) && width == self.inner);
        if width == 0 {
            return;
        }
        out.par_chunks_mut(COLUMNS * width).enumerate().for_each(|(index, out)| {
            let panel = self.panel(start / COLUMNS + index);
            for (block, panel) in panel.chunks(BLOCK).enumerate() {
                for (lane, out) in out.chunks_exact_mut(width).enumerate() {
                    let values = out[2 * BLOCK * block..].chunks_mut(2);
                    for (values, row) in values.zip(panel) {
                        let [low, high] = halves(row.0[lane]);
                        values[0] = low;
                        if let Some(value) = values.get_mut(1) {
                            *value = high;
                        }
                    }
                }
            }
        });
    }
}

/// The nearest bf16 in the upper half of the bits, ties to even; subnormal values are zero with their sign,
/// and what is no number stays none. So does the CPU's own conversion.
#[inline(always)]
pub(in crate::kernels) fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    let nearest = if value.is_nan() { (bits | 0x0040_0000) & 0xffff_0000 } else { nearest };
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { nearest }
}

/// Rounds values two by two, the earlier into the low half; a value without a partner gets zero.
#[inline(always)]
pub(in crate::kernels) fn round_pairs(values: &[f32], out: &mut [u32]) {
    let pairs = values.chunks_exact(2);
    if let ([last], Some(out)) = (pairs.remainder(), out.get_mut(values.len() / 2)) {
        *out = rounded(*last) >> 16;
    }
    for (out, pair) in out.iter_mut().zip(pairs) {
        *out = rounded(pair[0]) >> 16 | rounded(pair[1]);
    }
}

/// The two values of a pair, the low half's first.
#[inline(always)]
pub(in crate::kernels) fn halves(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// Pairs that are rounded before they are laid side by side.
const CHUNK: usize = 64;

/// Rounds and packs rows of `inner` values side by side: for every two columns one pair of each row. `out`
/// has room for `rows · ⌈inner / 2⌉` pairs.
pub(in crate::kernels) fn pack_rows<const MOST: usize>(values: &[f32], inner: usize, out: &mut [u32]) {
    let rows = values.len() / inner.max(1);
    let mut rounded = [[0u32; CHUNK]; MOST];
    vectorized(
        #[inline(always)]
        || {
            for (chunk, out) in out.chunks_mut(CHUNK * rows.max(1)).enumerate() {
                let start = 2 * CHUNK * chunk;
                for (rounded, row) in rounded.iter_mut().zip(values.chunks_exact(inner)) {
                    round_pairs(&row[start..inner.min(start + 2 * CHUNK)], rounded);
                }
                for (at, out) in out.chunks_exact_mut(rows).enumerate() {
                    for (out, rounded) in out.iter_mut().zip(&rounded) {
                        *out = rounded[at];
                    }
                }
            }
        },
    );
}
