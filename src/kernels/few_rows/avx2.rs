//! The tiles with AVX2 and FMA. Eight chains of multiply-adds hide the latency of each: of a panel four rows by two
//! vectors of outputs, or two rows by four, which leaves registers for what is multiplied. A single row has four
//! chains, and memory is slower than they are.

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_hadd_ps, _mm_storeu_ps, _mm256_and_si256, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_load_si256, _mm256_loadu_ps, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_storeu_ps,
};

use super::portable::tail;
use super::{LANES, OUTPUTS, PANEL_ROWS, PairRow, PanelSums, ROWS, RowSums};

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[expect(unsafe_code, reason = "what the functions need of the CPU and of their operands is checked right before")]
pub(super) fn panel(x: &[&[f32]], panel: &[PairRow], sums: &mut PanelSums) {
    let count = x.first().map_or(0, |row| row.len());
    assert!((1..=PANEL_ROWS).contains(&x.len()) && count.div_ceil(2) == panel.len(), "a tile has another size");
    assert!(x.iter().all(|row| row.len() == count) && is_available(), "a tile's rows differ");
    // SAFETY: the CPU has both features, the rows are of one length, that of the panel, and every vector of a row of
    // the panel is asked for once.
    unsafe {
        match x.len() {
            1 => over_panel::<1, 4>(x, count, panel, 0, sums),
            2 => over_panel::<2, 4>(x, count, panel, 0, sums),
            3 => (0..2).for_each(|half| over_panel::<3, 2>(x, count, panel, half, sums)),
            _ => (0..2).for_each(|half| over_panel::<4, 2>(x, count, panel, half, sums)),
        }
    }
}

#[expect(unsafe_code, reason = "as above")]
pub(super) fn rows(x: &[&[f32]], weight: &[&[f32]], sums: &mut RowSums) {
    let count = x.first().map_or(0, |row| row.len());
    let same = |rows: &[&[f32]]| rows.iter().all(|row| row.len() == count);
    assert!((1..=ROWS).contains(&x.len()) && (1..=OUTPUTS).contains(&weight.len()), "a tile has another size");
    assert!(same(x) && same(weight) && is_available(), "a tile's rows differ");
    // One that is missing is read as the last: what it comes to is not asked for.
    let weight: [&[f32]; OUTPUTS] = std::array::from_fn(|index| weight[index.min(weight.len() - 1)]);
    // SAFETY: the CPU has both features, and all rows are of one length.
    unsafe {
        match x.len() {
            1 => over_rows::<1>(x, count, weight, sums),
            2 => over_rows::<2>(x, count, weight, sums),
            _ => over_rows::<3>(x, count, weight, sums),
        }
    }
}

/// The `part`-th V vectors of the panel's columns.
///
/// # Safety
/// `x` has R rows of `count` values, the panel a pair for every two of them, and a row of it so many vectors.
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "loads without bounds that the caller has checked")]
unsafe fn over_panel<const R: usize, const V: usize>(
    x: &[&[f32]],
    count: usize,
    panel: &[PairRow],
    part: usize,
    sums: &mut PanelSums,
) {
    let mut rows = [std::ptr::null::<f32>(); R];
    rows.iter_mut().zip(x).for_each(|(place, row)| *place = row.as_ptr());
    let mut acc = [[_mm256_setzero_ps(); V]; R];
    let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
    let mut weights = [_mm256_setzero_ps(); V];
    let mut both = [_mm256_setzero_si256(); V];
    for (pair, row) in panel.iter().enumerate() {
        let at: *const __m256i = row.0.as_ptr().cast();
        for vector in 0..V {
            // SAFETY: the row has this vector, and rows of panels are aligned to 64 bytes.
            both[vector] = unsafe { _mm256_load_si256(at.add(part * V + vector)) };
            weights[vector] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both[vector]));
        }
        for (acc, x) in acc.iter_mut().zip(rows) {
            // SAFETY: the panel has no more pairs than half the values of a row, rounded up.
            let value = _mm256_set1_ps(unsafe { *x.add(2 * pair) });
            for (acc, weights) in acc.iter_mut().zip(weights) {
                *acc = _mm256_fmadd_ps(value, weights, *acc);
            }
        }
        if 2 * pair + 1 == count {
            break;
        }
        for (weights, both) in weights.iter_mut().zip(both) {
            *weights = _mm256_castsi256_ps(_mm256_and_si256(both, upper));
        }
        for (acc, x) in acc.iter_mut().zip(rows) {
            // SAFETY: this value is not past the end, as just seen.
            let value = _mm256_set1_ps(unsafe { *x.add(2 * pair + 1) });
            for (acc, weights) in acc.iter_mut().zip(weights) {
                *acc = _mm256_fmadd_ps(value, weights, *acc);
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums[part * V * LANES..].chunks_exact_mut(LANES).zip(acc) {
            // SAFETY: eight values lie there.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), acc) };
        }
    }
}

/// # Safety
/// `x` has R rows of `count` values, and so have the rows of the weight.
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "loads without bounds that the caller has checked")]
unsafe fn over_rows<const R: usize>(x: &[&[f32]], count: usize, weight: [&[f32]; OUTPUTS], sums: &mut RowSums) {
    let mut rows = [std::ptr::null::<f32>(); R];
    rows.iter_mut().zip(x).for_each(|(place, row)| *place = row.as_ptr());
    let weights = [weight[0].as_ptr(), weight[1].as_ptr(), weight[2].as_ptr(), weight[3].as_ptr()];
    let mut acc = [[_mm256_setzero_ps(); OUTPUTS]; R];
    let whole = count / LANES * LANES;
    let mut at = 0;
    while at < whole {
        let mut values = [_mm256_setzero_ps(); R];
        for (value, x) in values.iter_mut().zip(rows) {
            // SAFETY: eight values from `at` on are within a row.
            *value = unsafe { _mm256_loadu_ps(x.add(at)) };
        }
        for output in 0..OUTPUTS {
            // SAFETY: as above.
            let weight = unsafe { _mm256_loadu_ps(weights[output].add(at)) };
            for (acc, value) in acc.iter_mut().zip(values) {
                acc[output] = _mm256_fmadd_ps(value, weight, acc[output]);
            }
        }
        at += LANES;
    }
    for ((sums, acc), x) in sums.iter_mut().zip(acc).zip(x) {
        folded(acc, sums);
        for (sum, weight) in sums.iter_mut().zip(weight) {
            *sum += tail(&x[whole..], &weight[whole..]);
        }
    }
}

/// The lanes of four vectors, each added up in the order of [`super::portable`].
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "a store through a pointer")]
fn folded(acc: [__m256; OUTPUTS], sums: &mut [f32; OUTPUTS]) {
    let [a, b, c, d] = acc;
    let half = |vector: __m256| _mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps::<1>(vector));
    let all = _mm_hadd_ps(_mm_hadd_ps(half(a), half(b)), _mm_hadd_ps(half(c), half(d)));
    // SAFETY: four values lie there.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), all) };
}
