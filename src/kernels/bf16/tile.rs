//! The kernels of a CPU, and the one for vectors: up to 12 packed rows times one panel of 32 columns. On x86-64 with
//! AVX512-BF16 the sums stay in 24 of the 32 vector registers, two hold a row of the panel, and a pair of each row of
//! the left side is broadcast as it is read.
//!
//! `VDPBF16PS` as Intel's Software Developer's Manual, volume 2, gives it: acc ← acc + high·high, then acc ←
//! acc + low·low, each a fused multiply-add, rounded to nearest even; subnormal operands count as zero and
//! subnormal results become zero, whatever the control register says.

use std::sync::OnceLock;

use super::panels::{COLUMNS, PairRow, round_pairs};
use crate::kernels::amx;

/// Most rows of a tile.
pub(super) const ROWS: usize = 12;

/// The sums of a tile; rows past those asked for hold what an earlier tile left.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[f32; COLUMNS]; ROWS]);

impl Default for Sums {
    fn default() -> Self {
        Self([[0.0; COLUMNS]; ROWS])
    }
}

/// Writes the products of `rows` (1 to [`ROWS`]) packed rows with a panel's columns. `left` holds a pair of
/// each row for every row of the panel; see [`super::panels::pack_rows`].
pub(super) type Tile = fn(left: &[u32], rows: usize, panel: &[PairRow], sums: &mut Sums);

/// How a CPU multiplies.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kernel {
    /// In the lanes of vectors.
    Lanes(Tile),
    /// In tile registers.
    Registers(amx::Product),
}

/// The fastest of this CPU, if one is faster than products in f32.
pub(super) fn native() -> Option<Kernel> {
    #[cfg(test)]
    if super::portable::is_chosen() {
        return Some(Kernel::Lanes(super::portable::tile));
    }
    amx::native().map(Kernel::Registers).or_else(|| lanes().map(Kernel::Lanes))
}

/// The micro-kernel of this CPU, if it has one that is worth it.
pub(super) fn lanes() -> Option<Tile> {
    #[cfg(target_arch = "x86_64")]
    {
        static IS_RIGHT: OnceLock<bool> = OnceLock::new();
        if avx512::is_fast() && *IS_RIGHT.get_or_init(|| is_exact(avx512::tile)) {
            return Some(avx512::tile);
        }
    }
    None
}

/// Whether a micro-kernel multiplies small whole numbers without an error, as both formats can. Tried once,
/// before the first use: a CPU, or a machine that only plays one, whose instruction does something else would
/// spoil every weight that is trained on it.
pub(super) fn is_exact(tile: Tile) -> bool {
    const PAIRS: usize = 5;
    // All different enough that a swapped row, column or half shows.
    let left = |row: usize, at: usize| ((row * 37 + at * 11) % 61) as f32 - 30.0;
    let right = |at: usize, column: usize| ((at * 53 + column * 17) % 59) as f32 - 29.0;
    let pair = |first: f32, second: f32| {
        let mut pair = [0];
        round_pairs(&[first, second], &mut pair);
        pair[0]
    };
    let panel: Vec<PairRow> = (0..PAIRS)
        .map(|at| PairRow(std::array::from_fn(|column| pair(right(2 * at, column), right(2 * at + 1, column)))))
        .collect();
    (1..=ROWS).all(|rows| {
        let pairs = (0..PAIRS).flat_map(|at| (0..rows).map(move |row| (at, row)));
        let packed: Vec<u32> = pairs.map(|(at, row)| pair(left(row, 2 * at), left(row, 2 * at + 1))).collect();
        let mut sums = Sums::default();
        tile(&packed, rows, &panel, &mut sums);
        (0..rows).all(|row| {
            (0..COLUMNS).all(|column| {
                let exact: f32 = (0..2 * PAIRS).map(|at| left(row, at) * right(at, column)).sum();
                sums.0[row][column] == exact
            })
        })
    })
}

/// Calls a generic function with the number of rows as a constant.
macro_rules! with_rows {
    ($rows:expr, $call:ident($($argument:expr),*)) => {
        match $rows {
            1 => $call::<1>($($argument),*),
            2 => $call::<2>($($argument),*),
            3 => $call::<3>($($argument),*),
            4 => $call::<4>($($argument),*),
            5 => $call::<5>($($argument),*),
            6 => $call::<6>($($argument),*),
            7 => $call::<7>($($argument),*),
            8 => $call::<8>($($argument),*),
            9 => $call::<9>($($argument),*),
            10 => $call::<10>($($argument),*),
            11 => $call::<11>($($argument),*),
            _ => $call::<12>($($argument),*),
        }
    };
}
#[cfg(test)]
pub(super) use with_rows;

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __cpuid, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_set1_epi32, _mm512_setzero_ps,
        _mm512_store_ps,
    };

    use super::{COLUMNS, PairRow, ROWS, Sums};

    /// Whether the CPU has the instruction, and it makes more products a second than one in f32: Intel's make half as
    /// many, measured on Emerald Rapids, and leave the rest to AMX.
    pub(super) fn is_fast() -> bool {
        let vendor = __cpuid(0);
        let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        is_available() && name.as_flattened() != b"GenuineIntel"
    }

    pub(super) fn is_available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
    }

    #[expect(unsafe_code, reason = "what the function needs of the CPU is checked right before the call")]
    pub(super) fn tile(left: &[u32], rows: usize, panel: &[PairRow], sums: &mut Sums) {
        assert!((1..=ROWS).contains(&rows) && left.len() == rows * panel.len(), "a tile has another size");
        assert!(is_available(), "this CPU has no AVX512-BF16");
        // SAFETY: the CPU has all three features that the function is compiled for.
        unsafe { with_rows!(rows, products(left, panel, sums)) }
    }

    /// Lanes of a vector.
    const LANES: usize = COLUMNS / 2;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[expect(unsafe_code, reason = "aligned loads and stores of whole vectors of our own types")]
    fn products<const R: usize>(left: &[u32], panel: &[PairRow], sums: &mut Sums) {
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        for (pairs, row) in left.chunks_exact(R).zip(panel) {
            let halves: *const u32 = row.0.as_ptr();
            // SAFETY: a row is 128 bytes aligned to 64, that is, two aligned vectors.
            let (first, second) = unsafe { (bf16(load(halves)), bf16(load(halves.add(LANES)))) };
            for (acc, pair) in acc.iter_mut().zip(pairs) {
                let pair = bf16(_mm512_set1_epi32(pair.cast_signed()));
                acc[0] = _mm512_dpbf16_ps(acc[0], pair, first);
                acc[1] = _mm512_dpbf16_ps(acc[1], pair, second);
            }
        }
        for (sums, acc) in sums.0.iter_mut().zip(acc) {
            let sums = sums.as_mut_ptr();
            // SAFETY: a row of sums is 128 bytes, and the first is aligned to 64, so all are.
            unsafe {
                _mm512_store_ps(sums, acc[0]);
                _mm512_store_ps(sums.add(LANES), acc[1]);
            }
        }
    }

    /// # Safety
    /// `from` is aligned to 64 bytes, and 64 bytes lie there.
    #[target_feature(enable = "avx512f")]
    #[expect(unsafe_code, reason = "an aligned load through a pointer")]
    unsafe fn load(from: *const u32) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_load_si512(from.cast()) }
    }

    /// The same 512 bits as 32 bf16 values.
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[expect(unsafe_code, reason = "a reinterpretation that has no intrinsic of its own")]
    fn bf16(vector: __m512i) -> __m512bh {
        // SAFETY: both types are 512 bits of plain data, and every pattern is valid in both.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(vector) }
    }
}
