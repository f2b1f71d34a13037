//! The tile over a panel with AVX-512: the sums of up to twelve rows in 24 of the 32 vector registers, so a panel is
//! read once for as many rows as are decoded together as a rule, in one stream that the CPU reads ahead of. Every lane
//! is the chain of [`super::avx2`].

use std::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_castsi512_ps, _mm512_fmadd_ps, _mm512_load_si512, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use super::{COLUMNS, PairRow, PanelSums, read_ahead};

/// Most rows of a tile.
pub(super) const ROWS: usize = 12;
/// Lanes of a vector: half of a panel's columns.
const LANES: usize = COLUMNS / 2;

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
}

#[expect(unsafe_code, reason = "what the functions need of the CPU and of their operands is checked right before")]
pub(super) fn panel(x: &[&[f32]], panel: &[PairRow], sums: &mut PanelSums) {
    let count = x.first().map_or(0, |row| row.len());
    assert!((1..=ROWS).contains(&x.len()) && count.div_ceil(2) == panel.len(), "a tile has another size");
    assert!(x.iter().all(|row| row.len() == count) && is_available(), "a tile's rows differ");
    // SAFETY: the CPU has the feature, and there are so many rows of one length, that of the panel.
    unsafe {
        match x.len() {
            1 => tile::<1>(x, count, panel, sums),
            2 => tile::<2>(x, count, panel, sums),
            3 => tile::<3>(x, count, panel, sums),
            4 => tile::<4>(x, count, panel, sums),
            5 => tile::<5>(x, count, panel, sums),
            6 => tile::<6>(x, count, panel, sums),
            7 => tile::<7>(x, count, panel, sums),
            8 => tile::<8>(x, count, panel, sums),
            9 => tile::<9>(x, count, panel, sums),
            10 => tile::<10>(x, count, panel, sums),
            11 => tile::<11>(x, count, panel, sums),
            _ => tile::<12>(x, count, panel, sums),
        }
    }
}

/// # Safety
/// `x` has `R` rows of `count` values, and the panel a pair for every two of them.
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "loads without bounds that the caller has checked")]
unsafe fn tile<const R: usize>(x: &[&[f32]], count: usize, panel: &[PairRow], sums: &mut PanelSums) {
    let mut starts = [std::ptr::null::<f32>(); R];
    starts.iter_mut().zip(x).for_each(|(start, row)| *start = row.as_ptr());
    let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    for (at, row) in panel[..count / 2].iter().enumerate() {
        read_ahead(row);
        let both = halves(row);
        // SAFETY: both values of a whole pair are in every row.
        unsafe {
            add(&mut acc, starts, 2 * at, both.map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half))));
            add(&mut acc, starts, 2 * at + 1, both.map(|half| _mm512_castsi512_ps(_mm512_and_si512(half, upper))));
        }
    }
    if count % 2 == 1 {
        let both = halves(&panel[count / 2]);
        // SAFETY: the last value is in every row.
        unsafe {
            add(&mut acc, starts, count - 1, both.map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half))))
        };
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.chunks_exact_mut(LANES).zip(acc) {
            // SAFETY: sixteen values lie there.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
        }
    }
}

/// Adds the value at `at` of each row, once for all lanes, times the weights to the row's sums.
///
/// # Safety
/// Every row has a value there.
#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "loads without bounds that the caller has checked")]
unsafe fn add<const R: usize>(acc: &mut [[__m512; 2]; R], starts: [*const f32; R], at: usize, weights: [__m512; 2]) {
    for (acc, start) in acc.iter_mut().zip(starts) {
        // SAFETY: the caller's promise.
        let value = _mm512_set1_ps(unsafe { *start.add(at) });
        acc[0] = _mm512_fmadd_ps(value, weights[0], acc[0]);
        acc[1] = _mm512_fmadd_ps(value, weights[1], acc[1]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "aligned loads of our own type")]
fn halves(row: &PairRow) -> [__m512i; 2] {
    let row: *const __m512i = row.0.as_ptr().cast();
    // SAFETY: a row is 128 bytes aligned to 64, that is, two aligned vectors.
    unsafe { [_mm512_load_si512(row), _mm512_load_si512(row.add(1))] }
}
