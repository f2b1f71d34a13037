//! The tiles on any CPU. Every step is a fused multiply-add, so the bits are those of [`super::avx2`].

use super::{COLUMNS, LANES, PairRow, PanelSums, RowSums};
use crate::kernels::bf16::panels::halves;
use crate::kernels::vector::vectorized;

pub(super) fn panel(x: &[&[f32]], panel: &[PairRow], sums: &mut PanelSums) {
    vectorized(
        #[inline(always)]
        || {
            for (x, sums) in x.iter().zip(sums) {
                let mut acc = [0f32; COLUMNS];
                for (pair, row) in x.chunks(2).zip(panel) {
                    for (acc, weights) in acc.iter_mut().zip(row.0) {
                        *acc = pair[0].mul_add(halves(weights)[0], *acc);
                    }
                    if let Some(second) = pair.get(1) {
                        for (acc, weights) in acc.iter_mut().zip(row.0) {
                            *acc = second.mul_add(halves(weights)[1], *acc);
                        }
                    }
                }
                *sums = acc;
            }
        },
    );
}

pub(super) fn rows(x: &[&[f32]], weight: &[&[f32]], sums: &mut RowSums) {
    vectorized(
        #[inline(always)]
        || {
            for (x, sums) in x.iter().zip(sums) {
                for (weight, sum) in weight.iter().zip(sums) {
                    *sum = dot(x, weight);
                }
            }
        },
    );
}

#[inline(always)]
fn dot(x: &[f32], weight: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, weights) = (x.chunks_exact(LANES), weight.chunks_exact(LANES));
    let tail = tail(xs.remainder(), weights.remainder());
    for (x, weight) in xs.zip(weights) {
        for ((lane, x), weight) in lanes.iter_mut().zip(x).zip(weight) {
            *lane = x.mul_add(*weight, *lane);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h)) + tail
}

/// What is left over at the end of two rows.
#[inline(always)]
pub(super) fn tail(x: &[f32], weight: &[f32]) -> f32 {
    x.iter().zip(weight).fold(0f32, |sum, (x, weight)| x.mul_add(*weight, sum))
}
