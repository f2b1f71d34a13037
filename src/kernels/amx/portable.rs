//! The product without its instruction, for the tests: the same memory, the same order, the same roundings, on
//! every CPU.

use super::{COLUMNS, Left, PAIRS, PairRow, ROWS, Sums};
use crate::kernels::bf16::panels::halves;
use crate::kernels::bf16::portable::flushed;
use crate::kernels::vector::vectorized;

/// As [`super::Product`] says.
pub(in crate::kernels) fn product(left: &[Left], terms: usize, panel: &[PairRow], sums: &mut Sums, add: bool) {
    let registers = left.len() / (panel.len() / PAIRS);
    let groups = registers / terms;
    assert!(panel.len().is_multiple_of(PAIRS) && (1..=2).contains(&groups), "a product has another size");
    if !add {
        *sums = Sums::default();
    }
    for (left, panel) in left.chunks_exact(registers).zip(panel.chunks_exact(PAIRS)) {
        for (index, left) in left.iter().enumerate() {
            let first = index % groups * ROWS;
            for (pairs, sums) in left.0.iter().zip(&mut sums.0[first..first + ROWS]) {
                add_row(pairs, panel, sums);
            }
        }
    }
}

fn add_row(pairs: &[u32; PAIRS], panel: &[PairRow], sums: &mut [f32; COLUMNS]) {
    vectorized(
        #[inline(always)]
        || {
            let (mut even, mut odd) = ([0f32; COLUMNS], [0f32; COLUMNS]);
            for (pair, row) in pairs.iter().zip(panel) {
                let [low, high] = halves(*pair).map(flushed);
                for ((even, odd), pair) in even.iter_mut().zip(&mut odd).zip(row.0) {
                    let [other_low, other_high] = halves(pair).map(flushed);
                    *even = flushed(low.mul_add(other_low, *even));
                    *odd = flushed(high.mul_add(other_high, *odd));
                }
            }
            for ((sum, even), odd) in sums.iter_mut().zip(even).zip(odd) {
                *sum = flushed(flushed(*sum) + flushed(even + odd));
            }
        },
    );
}
