//! Loops over rows of f32, written so that the compiler makes vector instructions of them, and run
//! with the best instruction set the machine has. Sums go through a fixed number of lanes that are
//! added in a fixed order, so the bits depend neither on the instruction set nor on the threads.

/// Partial sums of a reduction: enough to keep two 8-wide vector units busy.
const LANES: usize = 16;

/// Bytes that memory gives at a time.
pub(super) const LINE: usize = 64;

/// Asks for the line of memory at `at`, which is then there sooner when it is read; for nothing where nothing lies.
#[inline(always)]
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "an instruction that reads nothing, wherever it points")
)]
pub(super) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect that a program could see, and x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for all lines of some values.
#[inline(always)]
pub(super) fn prefetch_all(values: &[f32]) {
    let start: *const u8 = values.as_ptr().cast();
    (0..size_of_val(values)).step_by(LINE).for_each(|at| prefetch(start.wrapping_add(at)));
}

/// Runs `body` compiled for the machine's own vector instructions; that needs
/// `#[inline(always)]` on the closure, or it stays a function for the oldest machine.
#[inline]
pub(super) fn vectorized<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// e^x to about two units in the last place, for x in [-87, 87] and clamped there: no result is
/// zero, subnormal or infinite. NaN stays NaN. Coefficients: Cephes' single-precision `expf`. Call it
/// inside [`vectorized`]: elsewhere a fused multiply-add may be a library call.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, so that n·ln 2 is subtracted without losing the low bits.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, coefficient);
    }
    let power = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(power)
}

/// The logistic function 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent to about two units in the last place. A polynomial near zero, where the
/// exponential's form would cancel. Coefficients: Cephes' single-precision `tanhf`.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3f32;
    for coefficient in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = p.mul_add(square, coefficient);
    }
    let near = (p * square).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.625 { near } else { far }
}

/// Replaces each x of a row by cap · tanh(x / cap), which keeps it within ± cap.
#[inline(always)]
pub(super) fn soft_cap(row: &mut [f32], cap: f32) {
    let inverse = cap.recip();
    for x in row {
        *x = cap * tanh(*x * inverse);
    }
}

/// Adds `LANES` partial sums, always in the same order.
#[inline(always)]
fn fold(lanes: [f32; LANES], tail: f32) -> f32 {
    let mut sum = tail;
    for lane in lanes {
        sum += lane;
    }
    sum
}

/// The sum of `term(a, b)` over two rows of one length.
#[inline(always)]
pub(super) fn sum_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut tail = 0f32;
    for (x, y) in a_chunks.remainder().iter().zip(b_chunks.remainder()) {
        tail += term(*x, *y);
    }
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += term(x[lane], y[lane]);
        }
    }
    fold(lanes, tail)
}

/// The inner product of two rows.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of(a, b, |x, y| x * y)
}

/// The largest of some values, or minus infinity of none. NaN is not seen.
pub fn largest(values: &[f32]) -> f32 {
    vectorized(
        #[inline(always)]
        || max(values),
    )
}

/// The largest value of a row, or minus infinity for an empty one. NaN is not seen here; it shows
/// in the sum that follows.
#[inline(always)]
pub(super) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let mut largest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    for lane in lanes {
        largest = if lane > largest { lane } else { largest };
    }
    largest
}

/// Replaces each x of a row by e^(x - shift) and returns their sum.
#[inline(always)]
pub(super) fn exp_and_sum(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - shift);
            lanes[lane] += chunk[lane];
        }
    }
    let mut tail = 0f32;
    for x in chunks.into_remainder() {
        *x = exp(*x - shift);
        tail += *x;
    }
    fold(lanes, tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_exact_value_to_three_units_in_the_last_place() {
        for i in -87_000..=87_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn exp_of_a_far_value_is_finite_and_of_nan_is_nan() {
        assert!(exp(f32::NEG_INFINITY) > 0.0 && exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_agrees_with_the_exact_value_to_four_units_in_the_last_place() {
        for i in -20_000..=20_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - exact).abs();
            assert!(error <= 4.0 * f64::from(f32::EPSILON) * exact.abs(), "tanh({x}) is off by {error:e}");
        }
        assert_eq!((tanh(0.0), tanh(1e30), tanh(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_count_every_element_of_any_length() {
        for len in 0..70u16 {
            let row: Vec<f32> = (0..len).map(|i| f32::from(i) - 20.0).collect();
            let ones = vec![1f32; row.len()];
            let sum: f32 = row.iter().sum();
            assert_eq!(dot(&row, &ones), sum);
            assert_eq!(max(&row), row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut zeros = vec![3f32; row.len()];
            assert_eq!(exp_and_sum(&mut zeros, 3.0), f32::from(len));
        }
    }
}
