//! The tiles with AVX2 and FMA. Eight chains of multiply-adds hide the latency of each: of a panel four rows by two
//! vectors of outputs, or two rows by four, which leaves registers for what is multiplied. A single row has four
//! chains, and memory is slower than they are.

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_hadd_ps, _mm_storeu_ps, _mm256_and_si256, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_load_si256, _mm256_loadu_ps, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};

use super::portable::tail;
use super::{COLUMNS, LANES, OUTPUTS, PairRow, PanelSums, ROWS, RowSums, read_ahead};

/// Most rows of a tile over a panel.
pub(super) const PANEL_ROWS: usize = 4;

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
            1 => panel_of_1(x, count, panel, 0, sums),
            2 => panel_of_2(x, count, panel, 0, sums),
            3 => (0..2).for_each(|half| panel_of_3(x, count, panel, half, sums)),
            _ => (0..2).for_each(|half| panel_of_4(x, count, panel, half, sums)),
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
            1 => rows_of_1(x, count, weight, sums),
            2 => rows_of_2(x, count, weight, sums),
            _ => rows_of_3(x, count, weight, sums),
        }
    }
}

/// For each row its value at `$at`, once for all lanes, times the weights is added to the row's sums. Written out
/// and not a loop, which a compiler that is told to be quick would not unroll.
macro_rules! add_products {
    ($acc:ident, $x:ident[$at:expr], $weights:ident, [$($row:literal)*], $vectors:tt) => { $({
        // SAFETY: the caller of the tile has checked that the value is there.
        let value = _mm256_set1_ps(unsafe { *$x[$row].add($at) });
        add_products!(@row $acc[$row], value, $weights, $vectors);
    })* };
    (@row $acc:ident[$row:literal], $value:expr, $weights:ident, [$($vector:literal)*]) => { $(
        $acc[$row][$vector] = _mm256_fmadd_ps($value, $weights[$vector], $acc[$row][$vector]);
    )* };
}

/// A tile of so many rows with the `part`-th so many vectors of a panel's columns.
macro_rules! panel_tile {
    ($name:ident, $rows:literal: $row:tt, $vectors:literal: [$($vector:literal)*]) => {
        /// # Safety
        /// `x` has so many rows of `count` values, the panel a pair for every two of them, and a row of the panel
        /// so many parts.
        #[target_feature(enable = "avx2,fma")]
        #[expect(unsafe_code, reason = "loads without bounds that the caller has checked")]
        unsafe fn $name(x: &[&[f32]], count: usize, panel: &[PairRow], part: usize, sums: &mut PanelSums) {
            let mut starts = [std::ptr::null::<f32>(); $rows];
            starts.iter_mut().zip(x).for_each(|(start, row)| *start = row.as_ptr());
            let panel: *const __m256i = panel.as_ptr().cast();
            let mut acc = [[_mm256_setzero_ps(); $vectors]; $rows];
            let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let mut at = 0;
            while at < count {
                read_ahead(panel.wrapping_add(at / 2 * (COLUMNS / LANES) + part * $vectors).cast());
                // SAFETY: the panel has this row, aligned to 64 bytes, and the row this part.
                let both = unsafe {
                    let row = panel.add(at / 2 * (COLUMNS / LANES) + part * $vectors);
                    [$(_mm256_load_si256(row.add($vector))),*]
                };
                let weights = [$(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both[$vector]))),*];
                add_products!(acc, starts[at], weights, $row, [$($vector)*]);
                if at + 1 == count {
                    break;
                }
                let weights = [$(_mm256_castsi256_ps(_mm256_and_si256(both[$vector], upper))),*];
                add_products!(acc, starts[at + 1], weights, $row, [$($vector)*]);
                at += 2;
            }
            for (sums, acc) in sums.iter_mut().zip(acc) {
                for (sums, acc) in sums[part * $vectors * LANES..].chunks_exact_mut(LANES).zip(acc) {
                    // SAFETY: eight values lie there.
                    unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), acc) };
                }
            }
        }
    };
}

panel_tile!(panel_of_1, 1: [0], 4: [0 1 2 3]);
panel_tile!(panel_of_2, 2: [0 1], 4: [0 1 2 3]);
panel_tile!(panel_of_3, 3: [0 1 2], 2: [0 1]);
panel_tile!(panel_of_4, 4: [0 1 2 3], 2: [0 1]);

/// A tile of so many rows with four rows of a weight.
macro_rules! rows_tile {
    ($name:ident, $rows:literal: [$($row:literal)*]) => {
        /// # Safety
        /// `x` has so many rows of `count` values, and so have the rows of the weight.
        #[target_feature(enable = "avx2,fma")]
        #[expect(unsafe_code, reason = "loads without bounds that the caller has checked")]
        unsafe fn $name(x: &[&[f32]], count: usize, weight: [&[f32]; OUTPUTS], sums: &mut RowSums) {
            let mut starts = [std::ptr::null::<f32>(); $rows];
            starts.iter_mut().zip(x).for_each(|(start, row)| *start = row.as_ptr());
            let [a, b, c, d] = weight.map(<[f32]>::as_ptr);
            let mut acc = [[_mm256_setzero_ps(); OUTPUTS]; $rows];
            let whole = count / LANES * LANES;
            let mut at = 0;
            while at < whole {
                // SAFETY: eight values from `at` on are within every row.
                let weights = unsafe {
                    [
                        _mm256_loadu_ps(a.add(at)),
                        _mm256_loadu_ps(b.add(at)),
                        _mm256_loadu_ps(c.add(at)),
                        _mm256_loadu_ps(d.add(at)),
                    ]
                };
                $({
                    // SAFETY: as above.
                    let values = unsafe { _mm256_loadu_ps(starts[$row].add(at)) };
                    add_products!(@row acc[$row], values, weights, [0 1 2 3]);
                })*
                at += LANES;
            }
            for ((sums, acc), x) in sums.iter_mut().zip(acc).zip(x) {
                folded(acc, sums);
                for (sum, weight) in sums.iter_mut().zip(weight) {
                    *sum += tail(&x[whole..], &weight[whole..]);
                }
            }
        }
    };
}

rows_tile!(rows_of_1, 1: [0]);
rows_tile!(rows_of_2, 2: [0 1]);
rows_tile!(rows_of_3, 3: [0 1 2]);

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
